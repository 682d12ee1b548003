"""ZeroTuning beside ACT, PASTA and controls: every method calibrated on the same questions, tested on the same others.

ACT (Yu et al. 2024) damps sinks other than the first token, in heads where that alone helps on calibration questions.
PASTA (Zhang et al. 2023) turns attention to the focus of each question, in the heads where that alone helps most; the
paper lets a person mark the focus and AutoPASTA the model, here the task names it. Controls: the gamma found in as many
random heads, and on a random token instead of the first; PASTA with the first token kept at factor 1, as PASTA scales
the sink down too.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import xarray as xr

from sinkscope import metrics
from sinkscope.edits.base import AttentionEdit, Edit
from sinkscope.edits.calibrate import CalibrateSinks
from sinkscope.edits.keys import ScaleKeys, SteerKeys
from sinkscope.errors import MetricError
from sinkscope.methods.coarse_to_fine import SearchSettings, coarse_to_fine
from sinkscope.methods.zerotuning import ZeroTuningResult, ZeroTuningSettings, zerotune
from sinkscope.methods.zerotuning_heads import estimate, helpful_heads, other_heads, profile
from sinkscope.registry import method
from sinkscope.tasks import Questions, Task, evaluate, rate

if TYPE_CHECKING:
    from sinkscope.models.handle import Model


@dataclass(frozen=True)
class BaselineSettings:
    """What ACT, PASTA and the controls fix beforehand.

    Attributes:
        threshold: ACT: mean attention that makes a key a sink (0.1 in the released scripts).
        beta: ACT: what a sink keeps of its weight (0.4 in the released scripts).
        alpha: PASTA: factor of the prompt's other keys (0.01 in the paper).
        share: PASTA: at most this part of all heads (the paper advises 50 to 150 of 1024, here a quarter).
        search: how ACT and PASTA find their heads: ``"heads"``, each one alone as in the papers (PASTA's are
            estimated where ``ZeroTuningSettings.profile_by`` is ``"gradient"``), or ``"layers"``: groups of
            layers, then the layers of the best group, all heads of those that gain.
        groups: of ``search="layers"``.
        draws: random draws of each control.
        seed: of the draws.
    """

    threshold: float = 0.1
    beta: float = 0.4
    alpha: float = 0.01
    share: float = 0.25
    search: str = "heads"
    groups: int = 6
    draws: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the search.

        Raises:
            MetricError: no such search.
        """
        if self.search not in ("heads", "layers"):
            raise MetricError(f"BaselineSettings(search={self.search!r}): use 'heads' or 'layers'.")


@method()
def act(
    model: Model, task: Task, settings: ZeroTuningSettings | None = None, fixed: BaselineSettings | None = None
) -> CalibrateSinks:
    """ACT with the heads in which it helps on ``task.calibration``, judged by ``settings.mode``.

    ``heads`` is empty where it helps in none: the edit then does nothing.
    """
    chosen, values = settings or ZeroTuningSettings(), fixed or BaselineSettings()
    questions = Questions.of(task.calibration, model)
    template = CalibrateSinks(values.threshold, beta=values.beta)
    if values.search == "layers":
        helpful = _by_layers(model, questions, template, chosen, values)
    else:
        helpful = helpful_heads(profile(model, questions, template, by=chosen.mode, batch_size=chosen.batch_size))
    heads = metrics.head_list(helpful)
    return dataclasses.replace(template, heads=heads, allow_empty=not heads)


@method()
def pasta(
    model: Model, task: Task, settings: ZeroTuningSettings | None = None, fixed: BaselineSettings | None = None
) -> Callable[[Questions], SteerKeys]:
    """PASTA with the heads in which it helps most on ``task.calibration``, judged by ``settings.mode``.

    Returns a function that gives the edit for other questions: which tokens are the focus differs with the prompts.

    Raises:
        PromptError: a question names no focus.
    """
    chosen, values = settings or ZeroTuningSettings(), fixed or BaselineSettings()
    questions = Questions.of(task.calibration, model)
    template = SteerKeys(values.alpha, keys=questions.focus(model))
    if values.search == "layers":
        helpful = _by_layers(model, questions, template, chosen, values)
    else:
        if chosen.profile_by == "gradient":
            others = ScaleKeys(values.alpha, keys=_unfocused(questions, model))
            found = estimate(model, questions, others, by=chosen.mode)
        else:
            found = profile(model, questions, template, by=chosen.mode, batch_size=chosen.batch_size)
        most = max(1, round(values.share * int((found["head_class"] != "").sum())))
        helpful = helpful_heads(found, most)
    heads = metrics.head_list(helpful)
    return lambda asked: SteerKeys(values.alpha, keys=asked.focus(model), heads=heads, allow_empty=not heads)


def _by_layers(
    model: Model, questions: Questions, template: AttentionEdit, chosen: ZeroTuningSettings, values: BaselineSettings
) -> xr.DataArray:
    search = SearchSettings(chosen.mode, values.groups, heads=False, batch_size=chosen.batch_size)
    return coarse_to_fine(model, questions, template, search)


def compare_methods(
    model: Model, task: Task, settings: ZeroTuningSettings | None = None, fixed: BaselineSettings | None = None
) -> tuple[xr.Dataset, ZeroTuningResult]:
    """Calibrate every method on ``task.calibration`` and answer ``task.test`` once with each.

    Returns the scores (edit, prompt) on the test questions and ZeroTuning's own result. The edits are ``none``,
    ``zerotuning``, ``act``, ``pasta``, ``pasta, sink kept``, ``random heads 1`` ..., ``random token 1`` ...; methods
    that found nothing to do are there too, equal to ``none``; there are no random heads where all heads or none were
    taken. The attribute ``methods`` holds each as JSON.

    Raises:
        PromptError: a question names no focus.
    """
    chosen, values = settings or ZeroTuningSettings(), fixed or BaselineSettings()
    result = zerotune(model, task, chosen)
    steer = pasta(model, task, chosen, values)
    asked = Questions.of(task.test, model)
    variants: dict[str, Sequence[Edit]] = {
        "none": [], "zerotuning": [result.edit], "act": [act(model, task, chosen, values)], "pasta": [steer(asked)],
        "pasta, sink kept": [dataclasses.replace(steer(asked), protect_sink=True)],
    }  # fmt: skip
    variants |= _controls(result, asked, values)
    ds = evaluate(model, asked, variants, batch_size=chosen.batch_size)
    told = {label: [_short(edit) for edit in edits] for label, edits in variants.items()}
    ds.attrs |= {"methods": json.dumps(told), "task": task.name, "mode": chosen.mode, "chance": task.chance}
    return ds, result


def table(scores: xr.Dataset, score: str = "correct") -> xr.Dataset:
    """Each method's share of right answers, and its difference to ``none``.

    Control draws are averaged first: ``random heads 1``, ``random heads 2`` become ``random heads``, whose interval is
    that of the difference only. Dims (method,): ``value``, ``low``, ``high`` (Wilson; NaN for averaged draws), ``n``,
    ``invalid``, ``difference``, ``difference_low``, ``difference_high``, ``p_value``.
    """
    groups: dict[str, list[str]] = {}
    for label in scores["edit"].values.tolist():
        groups.setdefault(label.rstrip("0123456789 ") if label.startswith("random") else label, []).append(label)
    averaged = {name: scores[[score, "invalid"]].sel(edit=labels).mean("edit") for name, labels in groups.items()}
    joined = xr.concat(
        [part.assign_coords(edit=name) for name, part in averaged.items()], dim="edit", combine_attrs="drop"
    )
    single = [name for name, labels in groups.items() if len(labels) == 1]
    shares = rate(joined[score].sel(edit=single)).reindex(edit=list(groups))
    against = metrics.compare(joined[score], to="none").reindex(edit=list(groups))
    ds = shares[["low", "high"]].assign(value=joined[score].mean("prompt"), invalid=joined["invalid"].mean("prompt"))
    ds["n"] = ("edit", [joined.sizes["prompt"]] * len(groups))
    ds["difference"], ds["p_value"] = against["difference"], against["p_value"]
    ds = ds.assign(difference_low=against["low"], difference_high=against["high"])
    return ds.assign_attrs(score=score, interval="Wilson; bootstrap of the paired difference")


def _controls(result: ZeroTuningResult, asked: Questions, fixed: BaselineSettings) -> dict[str, Sequence[Edit]]:
    out: dict[str, Sequence[Edit]] = {}
    seeds = range(fixed.seed, fixed.seed + fixed.draws)
    for turn, seed in enumerate(seeds, 1):
        drawn = in_random_heads(result, seed)
        if drawn is not None:
            out[f"random heads {turn}"] = [drawn]
    for turn, seed in enumerate(seeds, 1):
        out[f"random token {turn}"] = [dataclasses.replace(result.edit, keys=asked.random_token(seed))]
    return out


def in_random_heads(result: ZeroTuningResult, seed: int) -> ScaleKeys | None:
    """Return the edit of ``result`` in as many random heads; None where it is in all heads or in none."""
    if result.profile is None:
        return None
    among = result.profile["head_class"] != ""
    drawn = other_heads(_as_map(result.edit, among), among, seed)
    return None if drawn is None else dataclasses.replace(result.edit, heads=metrics.head_list(drawn))


def _unfocused(questions: Questions, model: Model) -> xr.DataArray:
    """The tokens of each question that are not its focus."""
    focus = questions.focus(model)
    lengths = xr.DataArray(list(questions.prompts.lengths), dims="prompt")
    return ~focus & (xr.DataArray(range(focus.sizes["key"]), dims="key") < lengths)


def _as_map(edit: ScaleKeys, like: xr.DataArray) -> xr.DataArray:
    chosen = like & False
    for layer, heads in (edit.heads or {}).items():
        chosen.loc[{"layer": layer, "head": list(heads)}] = True
    return chosen


def _short(edit: Edit) -> Mapping[str, Any]:
    """The edit as JSON data, its selection of tokens in words: one bit per token would be long."""
    data = edit.to_dict()
    if isinstance(edit, AttentionEdit) and isinstance(data.get("keys"), dict):
        data["keys"] = repr(getattr(edit, "keys"))  # noqa: B009
    return data
