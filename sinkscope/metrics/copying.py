"""Heads that copy, and what a patch brings back: scores of retrieval heads, recovery rates, exits of visual tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sinkscope.definitions import Definition
from sinkscope.errors import MetricError
from sinkscope.metrics.base import metric

Array = NDArray[np.float64]


@metric(
    Definition(
        "retrieval_score", "wu2024", "share of the needle's tokens that the head copied", "share of the needle",
        (("threshold", 0.1),), "wu2024",
    ),
    Definition(
        "retrieval_score", "released", "copied tokens over the needle's length, repeats counted: can exceed 1",
        "share of the needle", (("threshold", 0.1),), "wu2024",
    ),
)  # fmt: skip
def retrieval_score(
    top_keys: ArrayLike, generated: Sequence[int], prompt: Sequence[int], needle: tuple[int, int], unique: bool = True
) -> Array:
    """Return the retrieval score of heads: which tokens of the needle they looked at when the model copied them.

    Args:
        top_keys: ``(..., step)``, the key of the largest weight in the row that predicts each generated token
            (``TopKey``).
        generated: the ids that were generated.
        prompt: the ids of the prompt.
        needle: first position of the needle and the one after its last.
        unique: True counts each token of the needle once, the paper's score (at most 1); False is the released code.

    A step counts where the top key lies in the needle and holds the id that was generated. Source: Wu et al. (wu2024);
    a retrieval head has a score of at least .1, averaged over tests in which the answer is right.

    Raises:
        MetricError: the needle is empty or not in the prompt, or there are other numbers of steps and ids.
    """
    keys, ids = np.asarray(top_keys, dtype=np.float64), np.asarray(prompt)
    start, stop = needle
    if not 0 <= start < stop <= len(ids):
        raise MetricError(f"retrieval_score(needle={needle}): the prompt has positions 0..{len(ids) - 1}.")
    if keys.shape[-1] != len(generated):
        raise MetricError(f"retrieval_score: {keys.shape[-1]} steps of top keys but {len(generated)} generated ids.")
    inside = (keys >= start) & (keys < stop)
    place = np.where(inside, keys, start).astype(int)
    hit = inside & (ids[place] == np.asarray(generated))
    if not unique:
        return hit.sum(-1) / (stop - start)
    copied = np.stack([(hit & (place == position)).any(-1) for position in range(start, stop)], -1)
    return copied.sum(-1) / (stop - start)


@metric(
    Definition(
        "recovery_rate", "li2026", "(patched - corrupt) / (clean - corrupt)", "share of the difference",
        (("floor", 0.01),), "li2026",
    )
)  # fmt: skip
def recovery_rate(patched: ArrayLike, clean: ArrayLike, corrupt: ArrayLike, floor: float = 0.01) -> Array:
    """Return the part of the clean probability that a patch brings back: 0 none, 1 all; can lie outside.

    ``(P_patched - P_corrupt) / (P_clean - P_corrupt)``; NaN where the two runs differ by less than ``floor``. Source:
    Li et al. (li2026); the floor is ours.
    """
    if floor < 0:
        raise MetricError(f"recovery_rate(floor={floor}): give 0 or more.")
    low = np.asarray(corrupt, dtype=np.float64)
    whole = np.asarray(clean, dtype=np.float64) - low
    part, whole = np.broadcast_arrays(np.asarray(patched, dtype=np.float64) - low, whole)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=np.abs(whole) >= floor)


@metric(
    Definition(
        "exit_layer", "dyvte", "first layer after which the visual tokens can leave", "layer",
        (("agreement", 0.99), ("loss_ratio", 1.03)), "dyvte",
    )
)  # fmt: skip
def exit_layer(agreement: ArrayLike, loss_ratio: ArrayLike) -> int | None:
    """Return the first layer from which on the visual tokens can be hidden without a change; None where there is none.

    ``agreement`` (layer) is the share of answer tokens that stay the same when they leave at a layer, ``loss_ratio``
    the loss over that of the full run. The rule for DyVTE's labels: agreement above .99 and a ratio below 1.03.
    """
    fine = (np.asarray(agreement, dtype=np.float64) > 0.99) & (np.asarray(loss_ratio, dtype=np.float64) < 1.03)
    return int(np.argmax(fine)) if fine.any() else None


@metric()
def paint_tokens(first: ArrayLike, late: ArrayLike, local: float = 0.25) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the local and the summary tokens of an image, bool (token): what PAINT amplifies (arif2025).

    Args:
        first: CLS attention on each patch in the vision tower's first layer, summed over heads.
        late: the same in the layer that the language model reads (-2 in LLaVA).
        local: share of the patches that are local.

    Summary tokens are outliers of ``late``, above the upper quartile by 1.5 interquartile ranges: the tower's sinks.
    Local ones are the top quarter of ``first`` without these.
    """
    early, values = (np.asarray(x, dtype=np.float64) for x in (first, late))
    low, high = np.quantile(values, [0.25, 0.75])
    summary = values > high + 1.5 * (high - low)
    chosen = np.zeros(early.shape, dtype=bool)
    chosen[np.argsort(-early, kind="stable")[: round(local * early.size)]] = True
    return chosen & ~summary, summary


@metric()
def sublayer_peak(streams: dict[str, NDArray[np.float32]]) -> dict[str, Array]:
    """Return the largest magnitude that attention and MLP of each block add to the residual stream.

    ``streams`` is what ``methods.residual.residual_stream`` gives: states by site. ``attention`` and ``mlp`` have one
    number per block; NaN where a block has no site between the two. The jump that makes a massive activation is in the
    one that wrote it (anand2026).
    """
    depth = sum(name.endswith(".post") for name in streams)
    found = {"attention": np.full(depth, np.nan), "mlp": np.full(depth, np.nan)}
    for block in range(depth):
        before = streams["embed" if block == 0 else f"{block - 1}.post"].astype(np.float64)
        middle, after = streams.get(f"{block}.mid"), streams[f"{block}.post"]
        if middle is not None:
            found["attention"][block] = np.abs(middle - before).max()
            found["mlp"][block] = np.abs(after.astype(np.float64) - middle).max()
    return found
