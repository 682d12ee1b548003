"""LVLMs-Saliency: does a word rest on the words before it; and SGRS, which writes on with those that do.

Saliency is attention times its gradient, in the row that predicts the word: ``AttentionGradient``. The released code
reads the row after it, which is zero by causality, so that its rejection never rejects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
import xarray as xr

from sinkscope import metrics
from sinkscope.edits.base import Edit
from sinkscope.engine.generation import extended
from sinkscope.engine.run import find_tower, run
from sinkscope.errors import PromptError
from sinkscope.methods.base import MethodResult
from sinkscope.probes import AttentionGradient, Logits
from sinkscope.registry import method
from sinkscope.roles import ROLE_INDEX
from sinkscope.tasks.scores import rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sinkscope.models.handle import Model
    from sinkscope.prompts import Prompts


def _columns(prompts: Prompts, which: int, before: int) -> np.ndarray:
    """The keys that count for a token at ``before``: those after the picture; without one all but the first."""
    image = np.flatnonzero(prompts.roles[which] == ROLE_INDEX["image"])
    return np.arange(int(image[-1]) + 1 if len(image) else 1, before)


def _saliency(
    model: Model, prompts: Prompts, which: int, layers: Sequence[int], target: tuple[int, int], edits: Sequence[Edit]
) -> float:
    """Saliency of one token id at one place; the row before it is read. 1 where no key counts, as the paper has it."""
    place = target[0]
    columns = _columns(prompts, which, place)
    if not len(columns):
        return 1.0
    return metrics.token_saliency(_rows(model, prompts, which, layers, target, edits), columns)


def _rows(
    model: Model, prompts: Prompts, which: int, layers: Sequence[int], target: tuple[int, int], edits: Sequence[Edit]
) -> np.ndarray:
    """|weight x gradient| in the row that predicts a token, mean over heads: (layer, key)."""
    place, token = target
    heads = range(find_tower(model, None).attention[0].heads)

    def said(logits: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(logits[place - 1].float(), -1)[token]

    found = run(model, prompts.subset([which]), [AttentionGradient(layers, heads, said)], edits).attention_gradient
    return np.nan_to_num(np.abs(found[0].isel(query=place - 1).transpose("layer", "head", "key").values).mean(1))


def _layers(model: Model, layers: Sequence[int] | None) -> list[int]:
    depth = find_tower(model, None).depth
    return list(layers) if layers is not None else list(range(depth // 2, depth))


@method()
def word_saliency(
    model: Model, prompts: Prompts, layers: Sequence[int] | None = None, *, roles: Sequence[str] = ("generated",),
    edits: Sequence[Edit] = (),
) -> xr.DataArray:  # fmt: skip
    """Return how much each written token rests on the text before it: dims (prompt query), NaN at other tokens.

    Args:
        model: a decoder.
        prompts: prompts with the tokens that were written, such as ``sk.generate`` gives.
        layers: whose maps are read; None takes the second half. The released code takes 6, 7 and 8 of 32.
        roles: roles of the tokens asked about; ``("answer",)`` for answers that were given.
        edits: what was in force when they were written.

    Of the row that predicts the token, ``|weight x gradient|`` of its log probability, mean over heads, over its norm,
    averaged over the keys after the picture (all but the first where there is none) and the layers. One pass with
    autograd a token. Source: Zhang et al. 2026 (zhang2026).

    Raises:
        PromptError: no token has such a role.
    """
    wanted = [ROLE_INDEX[role] for role in roles]
    chosen = _layers(model, layers)
    found = np.full((len(prompts), max(prompts.lengths)), np.nan)
    for which in range(len(prompts)):
        for place in np.flatnonzero(np.isin(prompts.roles[which], wanted)):
            token = int(prompts.ids[which][place])
            if place:
                found[which, place] = _saliency(model, prompts, which, chosen, (int(place), token), edits)
    if not np.isfinite(found).any():
        raise PromptError(f"word_saliency(roles={list(roles)}): no token of these prompts has such a role. Generate.")
    attrs = {"units": "1", "long_name": "saliency of the text before", "reference": "zhang2026", "layers": chosen}
    coords = {"prompt": np.arange(len(prompts)), "query": np.arange(found.shape[1])}
    return xr.DataArray(found, dims=("prompt", "query"), coords=coords, name="word_saliency", attrs=attrs)


@method()
def word_map(
    model: Model, prompts: Prompts, which: int = 0, layers: Sequence[int] | None = None, *,
    roles: Sequence[str] = ("generated",), edits: Sequence[Edit] = (),
) -> xr.DataArray:  # fmt: skip
    """Return what each written token of one prompt rests on, token by token: dims (query key), the paper's figure 2.

    A row holds ``|weight x gradient|`` of the token's log probability in the row that predicts it, mean over heads,
    over its norm, mean over ``layers`` (the second half when left out); 0 at keys that it could not see. Source: Zhang
    et al. 2026 (zhang2026).

    Raises:
        PromptError: no token has such a role.
    """
    chosen = _layers(model, layers)
    places = np.flatnonzero(np.isin(prompts.roles[which], [ROLE_INDEX[role] for role in roles]))
    if not len(places):
        raise PromptError(f"word_map(roles={list(roles)}): no token of prompt {which} has such a role. Generate.")
    found = np.zeros((len(places), prompts.lengths[which]))
    for row, place in enumerate(places):
        target = int(place), int(prompts.ids[which][place])
        own = _rows(model, prompts, which, chosen, target, edits)
        size = np.linalg.norm(own, axis=-1, keepdims=True).clip(1e-9)
        found[row, : own.shape[-1]] = (own / size).mean(0)[: found.shape[1]]
    coords = {"query": places, "key": np.arange(found.shape[1]), "token": ("key", list(prompts.tokens[which]))}
    attrs = {"units": "1", "long_name": "attention times gradient", "reference": "zhang2026"}
    return xr.DataArray(found, dims=("query", "key"), coords=coords, name="word_map", attrs=attrs)


def rate_by_bin(values: Iterable[float], wrong: Iterable[bool], bins: int = 5) -> pd.DataFrame:
    """Return the share of wrong words in each bin of saliency: ``low``, ``high``, ``rate``, its Wilson interval, ``n``.

    Bins hold as many words each, as far as ties allow.

    Raises:
        PromptError: fewer words than bins, or other numbers of values and verdicts.
    """
    numbers, verdicts = np.asarray(list(values), np.float64), np.asarray(list(wrong), bool)
    if len(numbers) != len(verdicts) or len(numbers) < bins or bins < 1:
        raise PromptError(
            f"rate_by_bin: {len(numbers)} values, {len(verdicts)} verdicts, {bins} bins. Give one verdict a value, and "
            "no more bins than values."
        )
    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, bins + 1)))
    where = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, max(len(edges) - 2, 0))
    rows: list[dict[str, float]] = []
    for place in range(max(len(edges) - 1, 1)):
        inside = where == place
        share = rate(xr.DataArray(verdicts[inside].astype(float), dims="prompt"))
        interval = {"rate": share.value, "rate_low": share.low, "rate_high": share.high, "n": share.n}
        ends = {"low": edges[place], "high": edges[min(place + 1, len(edges) - 1)]}
        rows.append(ends | {name: value.item() for name, value in interval.items()})
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class SgrsSettings:
    """What is fixed beforehand; the defaults are the released code's, but for the layers.

    Attributes:
        top: candidates, the most likely next tokens.
        tries: candidates drawn, by their probabilities and each once, before the most salient of all is taken.
        alpha: share of the mean saliency of the words before that a candidate must reach; 0 is plain top-k sampling.
        window: how many words before.
        layers: whose maps are read; None takes the second half.
        max_new_tokens: how many tokens are written.
        seed: of the draws.
    """

    top: int = 5
    tries: int = 3
    alpha: float = 0.6
    window: int = 5
    layers: Sequence[int] | None = None
    max_new_tokens: int = 12
    seed: int = 0


@dataclass(frozen=True, eq=False)
class SgrsResult(MethodResult):
    """What :func:`sgrs` wrote: the prompts with the new tokens, and one row per token."""

    reference: ClassVar[tuple[str, ...]] = ("zhang2026",)

    prompts: Prompts
    steps: pd.DataFrame
    settings: SgrsSettings

    def table(self) -> pd.DataFrame:
        """Return token, saliency, threshold, draws and whether a draw was accepted, one row per written token."""
        return self.steps

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw saliency and threshold along the first prompt's words."""
        from sinkscope.plot.theme import axes_for

        own = self.steps.query("prompt == 0")
        axes = axes_for(xr.DataArray(np.asarray(own["saliency"]), dims="step"), ax)
        axes.plot(np.asarray(own["saliency"]), marker="o", label="saliency")
        axes.plot(np.asarray(own["threshold"]), linestyle="--", label="threshold")
        axes.set(title="Words and what they rest on", xlabel="written token", ylabel="saliency")
        axes.set_xticks(range(len(own)), list(own["token"]), rotation=45, ha="right")
        axes.legend()
        return axes


def accept(order: Sequence[int], saliency: Callable[[int], float], threshold: float, tries: int) -> tuple[int, int]:
    """Return the candidate that SGRS takes and how many were drawn; 0 draws where all were refused.

    ``order`` holds the candidates as they are drawn; the first of ``tries`` that reaches the threshold is taken, else
    the most salient of all.
    """
    for drawn, candidate in enumerate(order[:tries], 1):
        if saliency(candidate) >= threshold:
            return candidate, drawn
    return max(order, key=saliency), 0


@method()
def sgrs(
    model: Model, prompts: Prompts, settings: SgrsSettings | None = None, *, edits: Sequence[Edit] = ()
) -> SgrsResult:
    """Continue each prompt, refusing words that rest too little on the text before (saliency-guided rejection).

    ``edits=[sk.BoostRecent()]`` is the paper's SGRS with LocoRE. The threshold of the first word is 0. Writing ends at
    the model's end of sequence. One pass with autograd per candidate: slow. Source: Zhang et al. 2026 (zhang2026).

    Raises:
        PromptError: no candidate, no draw or no token is asked for.
    """
    chosen = settings or SgrsSettings()
    if min(chosen.top, chosen.tries, chosen.window, chosen.max_new_tokens) < 1:
        raise PromptError(f"sgrs({chosen}): top, tries, window and max_new_tokens must be at least 1.")
    layers, ends = _layers(model, chosen.layers), _ends(model)
    written: list[np.ndarray] = []
    rows: list[dict[str, Any]] = []
    for which in range(len(prompts)):
        rng = np.random.default_rng([chosen.seed, which])
        now, past, new = prompts.subset([which]), list[float](), list[int]()
        while len(new) < chosen.max_new_tokens and not (new and new[-1] in ends):
            threshold = chosen.alpha * float(np.mean(past[-chosen.window :])) if past else 0.0
            taken, value, drawn = _step(model, now, (layers, threshold, edits), chosen, rng)
            new.append(taken)
            past.append(value)
            now = extended(now, [np.asarray([taken], np.int64)], model)
            step = {"prompt": which, "token": now.tokens[0][-1], "id": taken, "saliency": value}
            rows.append(step | {"threshold": threshold, "draws": drawn or chosen.tries, "accepted": drawn > 0})
        written.append(np.asarray(new, np.int64))
    return SgrsResult(extended(prompts, written, model), pd.DataFrame(rows), chosen)


def _step(
    model: Model, now: Prompts, how: tuple[Sequence[int], float, Sequence[Edit]], settings: SgrsSettings,
    rng: np.random.Generator,
) -> tuple[int, float, int]:  # fmt: skip
    """The next token, its saliency, and how many were drawn."""
    layers, threshold, edits = how
    logits = run(model, now, [Logits()], edits).logits[0, 0].values.astype(np.float64)
    best = np.argsort(-logits, kind="stable")[: settings.top]
    share = np.exp(logits[best] - logits[best].max())
    order = rng.choice(best, len(best), replace=False, p=share / share.sum()).tolist()
    place, known = len(now.ids[0]), dict[int, float]()

    def saliency(token: int) -> float:
        if token not in known:
            known[token] = _saliency(model, now, 0, layers, (place, token), edits)
        return known[token]

    taken, drawn = accept(order, saliency, threshold, settings.tries)
    return taken, saliency(taken), drawn


def _ends(model: Model) -> set[int]:
    found: Any = getattr(model.model.generation_config, "eos_token_id", None)
    return set() if found is None else {int(i) for i in (found if isinstance(found, list) else [found])}
