"""What several scripts need: effects in words and points, tokens with the highest score, some layers, questions."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from sinkscope import metrics
from sinkscope.analysis.claims import Estimate, Verdict
from sinkscope.errors import MetricError, SinkscopeWarning

if TYPE_CHECKING:
    from sinkscope.models.handle import Model
    from sinkscope.tasks import Task

LARGE = 20_000_000
"""Parameters from which on a model is asked less: fewer tasks, fewer questions, heads by estimate or sample."""


def describe_difference(
    values: xr.DataArray, to: xr.DataArray | None = None, *, digits: int = 3
) -> tuple[str, xr.Dataset]:
    """Return the mean over prompts, or the paired difference to ``to``, in words, and as ``metrics.compare`` gives it.

    The words hold the bootstrap interval and n: what a claim needs.
    """
    found = metrics.compare(values, to=xr.zeros_like(values) if to is None else to)
    mean, low, high = (f"{float(found[name]):+.{digits}f}" for name in ("difference", "low", "high"))
    return f"{mean} [{low}, {high}], n = {int(found['n'])} prompts", found


def has_sign(found: xr.Dataset, sign: int = 1) -> bool | None:
    """Return whether an effect has the sign claimed; None where its interval holds 0, so that it cannot be seen."""
    low, high = float(found["low"]), float(found["high"])
    if low <= 0 <= high or not np.isfinite([low, high]).all():
        return None
    return (low > 0) == (sign > 0)


def heads_that_change(effect: xr.DataArray) -> tuple[xr.Dataset, int, int, float]:
    """Test each head over prompts (Wilcoxon, false discovery rate over the heads), and say what could have been found.

    Args:
        effect: paired differences, dims prompt, layer, head; NaN for heads that were not measured.

    Returns:
        The tests as ``metrics.compare`` gives them; heads above and below 0 at q < 0.05; the smallest mean effect that
        a test finds with a power of 80 per cent (first to pass the correction), in the median head.
    """
    with warnings.catch_warnings():
        # That few prompts can show nothing is what the smallest effect says, in the claim itself.
        warnings.simplefilter("ignore", SinkscopeWarning)
        tested = metrics.compare(effect, to=xr.zeros_like(effect), test="wilcoxon")
    sure = tested["q_value"] < 0.05
    above, below = (int((sure & (sign * tested["difference"] > 0)).sum()) for sign in (1, -1))
    return tested, above, below, float(metrics.smallest_effect(effect).median())


def largest_changes(tested: xr.Dataset) -> str:
    """Say the lowest and the highest mean change among the heads, each with its interval over prompts.

    Args:
        tested: what :func:`heads_that_change` gave first.
    """
    ends: list[Estimate] = []
    middle = tested["difference"].transpose("layer", "head")
    for place in (np.nanargmin(middle.values), np.nanargmax(middle.values)):
        layer, head = np.unravel_index(int(place), middle.shape)
        ends.append(Estimate.of(tested.isel(layer=int(layer), head=int(head)), "+.2g"))
    return f"from {ends[0]} to {ends[1]} nat in one head"


def highest_tokens(scores: xr.DataArray, among: xr.DataArray, count: int | Sequence[int]) -> xr.DataArray:
    """Return the ``count`` tokens of each prompt with the highest score: bool (prompt key), as ``among`` is.

    Args:
        scores: any number per token; dims prompt and key.
        among: which tokens can be chosen; bool (prompt key).
        count: how many, or how many of each prompt.
    """
    order = np.where(among.values, scores.transpose("prompt", "key").values, -np.inf)
    ranked = np.argsort(-order, axis=1, kind="stable")
    chosen = np.zeros(among.shape, dtype=bool)
    wanted = np.arange(order.shape[1]) < np.broadcast_to(count, len(order))[:, None]
    np.put_along_axis(chosen, ranked, wanted, axis=1)
    return among.copy(data=chosen & among.values)


def spread_layers(model: Model, most: int = 8) -> list[int]:
    """Return all layers of a shallow model, else ``most`` of them at even distances."""
    depth = int(model.config.get_text_config().num_hidden_layers)
    return sorted({int(layer) for layer in np.linspace(0, depth - 1, min(depth, most)).round()})


def points_above(scores: xr.DataArray, to: xr.DataArray) -> tuple[Estimate, Verdict, str]:
    """Compare two shares of right answers, question by question.

    Args:
        scores: 1 or 0, or their mean over draws; dim prompt.
        to: the same of the other method.

    Returns:
        The difference in points with its interval; whether it is above 0, or why that cannot be said; in words, the
        smallest difference that so many questions find with a power of 80 per cent.
    """
    pairs = (100 * (scores - to)).reset_coords(drop=True).rename("points")
    if not float(abs(pairs).max()):
        return Estimate(0.0, n=pairs.size, unit="points", spec="+.1f"), "no answer differs", "no answer differs"
    made = Estimate.mean(pairs, "+.1f", "points")
    least = float(metrics.smallest_effect(pairs)) if float(pairs.std()) else float("nan")
    return made, made.above(0.0), f"smallest effect found with power .8: {least:.1f} points"


def points_by_score(scores: Mapping[str, xr.DataArray], edit: str, to: str) -> tuple[str, Verdict]:
    """Compare two methods by several scores of the same answers; one is above the other where it is by each of them.

    An answer format that comes back raises exact match alone, so that score is no evidence without the label logits.

    Args:
        scores: 1 or 0, or their mean over draws, by what the score is called; dims edit and prompt.
        edit: label of the one method.
        to: label of the other.

    Returns:
        The differences in words, each with its interval, n, both shares and the smallest difference that could have
        been found; whether all are above 0, or why that cannot be said.
    """
    told: list[str] = []
    verdicts: list[Verdict] = []
    for name, values in scores.items():
        after, before = values.sel(edit=edit), values.sel(edit=to)
        more, above, least = points_above(after, before)
        shares = f"{100 * float(before.mean()):.1f} to {100 * float(after.mean()):.1f} %"
        told.append(f"{more.counted} by {name} ({shares}; {least})")
        verdicts.append(above)
    return ", ".join(told), together(verdicts)


def visual_tau(model: Model, reading: xr.Dataset) -> tuple[float, str]:
    """Return the threshold on phi that a visual sink passes, and where it is from.

    The one relative to the width, or where that lies among ordinary text tokens the middle of the gap between these and
    first tokens (:func:`sinkscope.methods.var.choose_tau`); without a gap the first, as nothing better is known.

    Args:
        model: the model.
        reading: ``phi`` of prompts of it.
    """
    from sinkscope.methods.var import VarSettings, choose_tau, tau_of

    bound = tau_of(model, VarSettings())
    try:
        return choose_tau(reading, bound)
    except MetricError:
        return bound, "relative to the width; phi of first tokens and ordinary ones has no gap"


def visual_sink_layers(phi: xr.DataArray, image: xr.DataArray, tau: float) -> tuple[int, ...]:
    """Return the layers at whose input visual tokens pass tau, one a picture or more, that with most first.

    Args:
        phi: at the input of each layer; dims prompt, layer and key.
        image: which tokens are visual; dims prompt and key.
        tau: the threshold.
    """
    passing = ((phi >= tau) & image).sum("key").mean("prompt")
    order = passing.sortby(passing, ascending=False)
    return tuple(int(layer) for layer in order["layer"].values[order.values >= 1])


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """Join verdicts on parts of a claim: False where one part differs, else why one cannot be seen, else True."""
    if any(verdict is False for verdict in verdicts):
        return False
    return next((verdict for verdict in verdicts if verdict is not True), True)


def is_large(model: Model) -> bool:
    """Whether a model has so many parameters (``LARGE``) that a script asks it less."""
    return model.model.num_parameters() > LARGE


def ask(model: Model, name: str, calibration: int, test: int) -> Task:
    """Load a task as this model is asked it: in plain English through its chat template, where it has one."""
    from sinkscope import tasks

    task = tasks.load(name, calibration=calibration, test=test)
    chat = name in tasks.ENGLISH and getattr(model.tokenizer, "chat_template", None)
    return tasks.in_chat(task, model) if chat else task
