"""Retrieval heads: which heads look at the word that the model copies, and what is lost without them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from sinkscope import metrics
from sinkscope.edits.heads import AblateHeads
from sinkscope.engine.generation import generate
from sinkscope.engine.run import find_tower, run
from sinkscope.engine.sweep import sweep
from sinkscope.errors import PromptError
from sinkscope.probes import Logits, TopKey
from sinkscope.registry import method
from sinkscope.roles import ROLE_INDEX

if TYPE_CHECKING:
    from sinkscope.models.handle import Model
    from sinkscope.tasks.needles import NeedleTests

THRESHOLD = 0.1
"""Score from which on a head is a retrieval head."""


@method()
def retrieval_heads(model: Model, tests: NeedleTests, *, recall: float = 0.5, batch_size: int = 8) -> xr.Dataset:
    """Return each head's retrieval score: the share of the needle that it looked at while the model copied it.

    Variables: ``score`` and ``released`` (layer, head), the paper's score and that of the released code, which counts
    repeats; ``score_by_test`` (prompt, layer, head), NaN where a test is not counted; ``recall`` (prompt), the share of
    the needle that was written. Tests below ``recall`` are not counted, NaN
    where none is left; ``n`` is how many were. Greedy, as many tokens as the needle has. A retrieval head has a score
    of at least .1. Source: Wu et al. 2024 (wu2024).
    """
    length = max(len(answer) for answer in tests.answers)
    written = generate(model, tests.prompts, max_new_tokens=length, batch_size=batch_size, eos_token_id=[])
    reading = run(model, written, [TopKey()], batch_size=batch_size)
    shape = (len(tests), reading.sizes["layer"], reading.sizes["head"])
    found = {name: np.full(shape, np.nan) for name in ("score", "released")}
    recalled = np.zeros(len(tests))
    for which, (span, answer) in enumerate(zip(tests.spans, tests.answers, strict=True)):
        ids, own = written.ids[which], written.roles[which] == ROLE_INDEX["generated"]
        start = int(own.argmax())
        new = ids[start : start + len(answer)].tolist()
        recalled[which] = len(set(new) & set(answer)) / len(answer)
        if recalled[which] < recall:
            continue
        keys = reading["top_key"].isel(prompt=which, query=slice(start - 1, start - 1 + len(new)))
        keys = keys.transpose("layer", "head", "query").values
        for name, unique in (("score", True), ("released", False)):
            found[name][which] = metrics.retrieval_score(keys, new, ids[:start].tolist(), span, unique)
    counted = np.isfinite(found["score"]).all((1, 2))
    means = {name: values[counted].mean(0) if counted.any() else values[0] * np.nan for name, values in found.items()}
    data: dict[str, Any] = {name: (("layer", "head"), values) for name, values in means.items()}
    data |= {"score_by_test": (("prompt", "layer", "head"), found["score"]), "recall": ("prompt", recalled)}
    coords = {"layer": reading["layer"].values, "head": reading["head"].values, "prompt": reading["prompt"].values}
    return xr.Dataset(data, coords=coords, attrs=reading.attrs | {"n": int(counted.sum()), "reference": "wu2024"})


def strongest(score: xr.DataArray, count: int) -> xr.DataArray:
    """Return the ``count`` heads with the highest score, bool (layer head); of equal ones the first."""
    values = score.transpose("layer", "head").fillna(-np.inf)
    chosen = np.zeros(values.size, bool)
    chosen[np.argsort(-values.values.ravel(), kind="stable")[:count]] = True
    return values.copy(data=chosen.reshape(values.shape))


@method()
def knock_out(
    model: Model, tests: NeedleTests, score: xr.DataArray, counts: Sequence[int], *, draws: int = 3, how: str = "zero"
) -> xr.Dataset:
    """Return how much of the needle is still predicted when the strongest heads are gone, and as many others.

    Variables ``retrieval`` (removed, prompt) and ``random`` (draw, removed, prompt): the share of the needle's tokens
    that are the most likely next one, the right ones before them. ``score`` is that of :func:`retrieval_heads` on other
    tests; random heads are none of the strongest ``max(counts)``. ``how`` is that of ``AblateHeads``: the released code
    makes attention ``"uniform"``, which is another question than ``"zero"``. Source: Wu et al. 2024 (wu2024).

    Raises:
        PromptError: needles of different lengths, no count, or too few other heads.
    """
    lengths = {len(answer) for answer in tests.answers}
    wanted = sorted({int(count) for count in counts} - {0})
    total = sum(site.heads for site in find_tower(model, None).attention)
    if len(lengths) != 1 or not wanted or wanted[-1] * 2 > total:
        raise PromptError(
            f"knock_out(counts={list(counts)}): needles of {sorted(lengths)} tokens, {total} heads. Give needles of "
            "one length, and counts of at most half the heads."
        )
    most = strongest(score, wanted[-1])
    variants: dict[str, list[AblateHeads]] = {}
    for count in wanted:
        chosen = strongest(score, count)
        sets = {"retrieval": chosen} | {f"random {draw}": _others(most, count, draw) for draw in range(draws)}
        for name, heads in sets.items():
            variants[f"{name} {count}"] = [AblateHeads(metrics.head_list(heads), how=how)]
    (length,) = lengths
    places = list(range(-length - 1, -1))
    prompts = tests.answered(model)
    reading = sweep(model, prompts, variants, [Logits(positions=places)], baseline=True)
    right = np.asarray(tests.answers)
    hits = reading["logits"].transpose("edit", "prompt", "position", "vocab").values.argmax(-1) == right
    share = dict(zip(reading["edit"].values.tolist(), hits.mean(-1), strict=True))
    plain = next(value for name, value in share.items() if name not in variants)
    curves = {
        name: np.stack([plain, *(share[f"{name} {count}"] for count in wanted)])
        for name in ("retrieval", *(f"random {draw}" for draw in range(draws)))
    }
    random = np.stack([curves[f"random {draw}"] for draw in range(draws)]) if draws else np.zeros((0, 1, 1))
    data = {
        "retrieval": (("removed", "prompt"), curves["retrieval"]),
        "random": (("draw", "removed", "prompt"), random),
    }
    coords = {"removed": [0, *wanted], "prompt": reading["prompt"].values}
    return xr.Dataset(data, coords=coords, attrs=reading.attrs | {"reference": "wu2024", "how": how})


def _others(most: xr.DataArray, count: int, seed: int) -> xr.DataArray:
    """As many heads as ``count``, none of the strongest."""
    free = np.flatnonzero(~most.values.ravel())
    drawn = np.zeros(most.size, bool)
    drawn[np.random.default_rng(seed).permutation(free)[:count]] = True
    return most.copy(data=drawn.reshape(most.shape))
