"""Head profiling: what an edit does to a task when one head alone is edited, and the heads chosen by it.

Han et al. 2025 (arXiv 2505.11739) call a head up-effective where accuracy rises when the first token is scaled up, and
down-effective otherwise, ties included; with few questions ties are common, so they are a class of their own here. Yu
et al. 2024 (ACT) and Zhang et al. 2023 (PASTA) choose heads in the same way: by the score with one head edited.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from sinkscope.edits.base import AttentionEdit
from sinkscope.edits.keys import ScaleKeys
from sinkscope.engine.run import find_tower
from sinkscope.errors import EditError, MetricError
from sinkscope.methods.profiling import HeadProfileSettings, profile_heads
from sinkscope.tasks import Questions, evaluate

if TYPE_CHECKING:
    from sinkscope.models.backends.base import Output
    from sinkscope.models.handle import Model
    from sinkscope.prompts import Batch

MEASURES: dict[str, tuple[str, float]] = {
    "accuracy": ("correct", 1.0), "exact": ("exact", 1.0), "loss": ("log_probability", -1.0),
    "option_loss": ("option_log_probability", -1.0), "entropy": ("answer_entropy", 1.0),
}  # fmt: skip
"""What a setting may be chosen by: the score it is the mean of, and the factor that makes the measure of it."""
BETTER = {"accuracy": 1, "exact": 1, "loss": -1, "option_loss": -1, "entropy": -1}
"""1 where more is better. ``entropy`` needs no labels."""
SMOOTH = ("loss", "option_loss", "entropy")
"""Measures that have a derivative."""
TIE = 1e-9
"""Mean changes this small are no change: sums of 0 and 1 in double precision are no more exact."""


def means(scores: xr.Dataset) -> xr.Dataset:
    """Every measure of ``MEASURES``, mean over the prompts, and ``n``."""
    data = {name: factor * scores[score].mean("prompt") for name, (score, factor) in MEASURES.items()}
    return xr.Dataset(data | {"invalid": scores["invalid"].mean("prompt")}, attrs={"n": scores.sizes["prompt"]})


def profile(
    model: Model, questions: Questions, template: AttentionEdit, *, by: str = "accuracy", batch_size: int = 1,
    executor: Any = None,
) -> xr.Dataset:  # fmt: skip
    """Answer the questions with ``template`` in one head after the other.

    Args:
        model: the model.
        questions: calibration questions.
        template: the edit; its own ``layers`` are kept to, its ``heads`` are replaced.
        by: measure that decides whether a head helps; one of ``MEASURES``.
        batch_size: prompts per pass.
        executor: as in :func:`sinkscope.sweep`.

    Returns a Dataset over (layer, head): each measure; ``gain``, the change of measure ``by`` against the model as it
    is, positive where it is better; ``head_class``, ``"up"`` (gains), ``"down"`` (loses), ``"tied"``. NaN and ``""``
    where the edit does not act or a layer has fewer heads. ``baseline_...`` are the measures without an edit.

    Raises:
        MetricError: no such measure.
        EditHasNoEffect: the edit changes nothing in some head; the message names it.
    """
    check_measure(by, "profile")
    tower = find_tower(model, None)
    acting = set(template.layers_in(tower))
    places = [(site.layer, head) for site in tower.attention if site.layer in acting for head in range(site.heads)]
    variants: dict[str, list[AttentionEdit]] = {"none": []}
    variants |= {f"{at[0]}.{at[1]}": [dataclasses.replace(template, layers=[at[0]], heads=[at[1]])] for at in places}
    scores = evaluate(model, questions, variants, batch_size=batch_size, executor=executor)
    found = means(scores)
    layers = sorted({site.layer for site in tower.attention})
    shape = (len(layers), max(site.heads for site in tower.attention))
    ds = xr.Dataset(coords={"layer": layers, "head": np.arange(shape[1])})
    for name in found.data_vars:
        grid = np.full(shape, np.nan)
        for layer, head in places:
            grid[layers.index(layer), head] = float(found[name].sel(edit=f"{layer}.{head}"))
        ds[name] = (("layer", "head"), grid)
        ds[f"baseline_{name}"] = float(found[name].sel(edit="none"))
    ds["gain"] = (BETTER[by] * (ds[by] - ds[f"baseline_{by}"])).assign_attrs(units=units_of(by))
    ds["head_class"] = (("layer", "head"), _classes(ds["gain"].values))
    ds.attrs = dict(scores.attrs) | {"by": by, "template": repr(template), "n": len(questions.items)}
    return ds


def estimate(model: Model, questions: Questions, template: ScaleKeys, *, by: str = "option_loss") -> xr.Dataset:
    """Estimate :func:`profile` to first order, from one backward pass per question instead of one pass per head.

    Scaling weights by gamma is a bias log gamma on their logits; the gain of a head is the derivative of the measure
    with respect to that bias, at gamma 1, times log gamma. It ranks heads; the further gamma is from 1 the less it says
    about sizes. Returns ``by``, ``gain``, ``head_class`` and ``baseline_BY`` as :func:`profile` does.

    Raises:
        MetricError: ``by`` is not in ``SMOOTH``, whose measures alone have a derivative, or gamma is 0.
    """
    check_measure(by, "estimate")
    if by not in SMOOTH or template.gamma <= 0:
        raise MetricError(
            f"estimate(by={by!r}), gamma {template.gamma:g}: a derivative needs by='loss', 'option_loss' or 'entropy' "
            "and a gamma above 0. For others use profile."
        )

    def right(output: Output, batch: Batch) -> Float[torch.Tensor, " batch"]:
        assert output.logits is not None
        (which,) = batch.indices
        scores = output.logits[0, int(batch.real[0].nonzero().max())].float()
        if by == "entropy":
            logs = scores.log_softmax(-1)
            return (logs.exp() * logs.clamp(min=-1e4)).sum()[None]
        among = scores if by == "loss" else scores[list(questions.options[which])]
        answer = int(questions.answers[which])
        return among.log_softmax(-1)[questions.options[which][answer] if by == "loss" else answer][None]

    found = profile_heads(model, questions.prompts, HeadProfileSettings(keys=template.keys, metric=right)).found
    tower = find_tower(model, None)
    found = found.sel(layer=sorted({site.layer for site in tower.attention}))
    acts = found["layer"].isin(template.layers_in(tower))
    gain = (math.log(template.gamma) * found["first_order"].mean("prompt")).where(acts)
    ds = xr.Dataset({"gain": gain.astype("float64").assign_attrs(units="nat")})
    ds[f"baseline_{by}"] = -float(found["metric"].mean())
    ds[by] = ds[f"baseline_{by}"] - ds["gain"]
    ds["head_class"] = (("layer", "head"), _classes(ds["gain"].values))
    ds.attrs = {"by": by, "template": repr(template), "n": len(questions.items), "estimate": "first order"}
    return ds


def choose_heads(
    found: xr.Dataset, kind: str = "dominant", *, share: float | None = None, ties: str = "separate"
) -> xr.DataArray:
    """Heads of one class of a profile: bool, dims (layer, head).

    Args:
        found: what :func:`profile` gave.
        kind: ``"up"``, ``"down"``, ``"dominant"`` (whichever of the two has more heads; of equal numbers the one whose
            gains or losses sum to more), or ``"all"``.
        share: at most this part of all heads, those with the largest effect first; None takes the whole class.
        ties: ``"separate"``, or ``"down"``: tied heads count as down-effective, which is the paper's definition.

    The attribute ``kind`` of the result is the class that was taken.

    Raises:
        EditError: no such kind, share or treatment of ties.
    """
    if kind not in ("up", "down", "dominant", "all") or ties not in ("separate", "down"):
        raise EditError(
            f"choose_heads({kind!r}, ties={ties!r}): kinds are 'up', 'down', 'dominant' and 'all'; ties are "
            "'separate' or 'down'."
        )
    if share is not None and not 0 < share <= 1:
        raise EditError(f"choose_heads(share={share}): a share of the heads is above 0 and at most 1, such as 0.5.")
    classes, gain = found["head_class"], found["gain"]
    down = classes.isin(["down", "tied"] if ties == "down" else ["down"])
    members = {"up": classes == "up", "down": down, "all": classes != ""}
    if kind == "dominant":
        kind = max(("up", "down"), key=lambda k: (int(members[k].sum()), float(abs(gain.where(members[k])).sum())))
    chosen = members[kind].copy()
    if share is not None:
        most = math.floor(share * int(members["all"].sum()))
        strength = np.where(chosen.values, np.abs(gain.values), -np.inf).ravel()
        kept = np.argsort(-strength, kind="stable")[:most]
        chosen &= np.isin(np.arange(strength.size), kept).reshape(chosen.shape)
    return chosen.rename("chosen").assign_attrs(kind=kind, n=int(chosen.sum()))


def helpful_heads(found: xr.Dataset, most: int | None = None) -> xr.DataArray:
    """Heads in which the profiled edit gains, the best ``most`` of them: bool, dims (layer, head)."""
    gain = found["gain"].values
    order = np.argsort(-np.where(gain > TIE, gain, -np.inf), axis=None, kind="stable")[:most]
    chosen = np.isin(np.arange(gain.size), order).reshape(gain.shape) & (gain > TIE)
    return found["gain"].copy(data=chosen).rename("chosen").assign_attrs(kind="helpful", n=int(chosen.sum()))


def other_heads(chosen: xr.DataArray, among: xr.DataArray, seed: int = 0) -> xr.DataArray | None:
    """As many random heads of ``among`` as are chosen, not the same set; None where there is no other set."""
    places = np.flatnonzero(among.values)
    count = int(chosen.sum())
    if not 0 < count < len(places):
        return None
    rng = np.random.default_rng(seed)
    while True:
        drawn = np.isin(np.arange(chosen.size), rng.choice(places, count, replace=False)).reshape(chosen.shape)
        if (drawn != chosen.values).any():
            return chosen.copy(data=drawn).rename("random_heads").assign_attrs(kind="random", n=count)


def check_measure(by: str, asked: str) -> None:
    """Refuse a measure that is not in ``MEASURES``."""
    if by not in MEASURES:
        raise MetricError(f"{asked}(by={by!r}): measures are {sorted(MEASURES)}.")


def units_of(measure: str) -> str:
    """Return the units of a measure: a share of the questions, or nats."""
    return "nat" if measure in ("loss", "option_loss", "entropy") else "1"


def _classes(gain: np.ndarray) -> np.ndarray:
    words = np.where(gain > TIE, "up", np.where(gain < -TIE, "down", "tied"))
    return np.where(np.isnan(gain), "", words)
