"""Search for the heads of an edit coarse to fine: groups of layers, layers, heads (Zhang et al. 2024, AutoPASTA)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from sinkscope.edits.base import AttentionEdit
from sinkscope.engine.run import find_tower
from sinkscope.methods.zerotuning_heads import BETTER, TIE, check_measure, means
from sinkscope.tasks import Questions, evaluate

if TYPE_CHECKING:
    from sinkscope.models.handle import Model

HeadsByLayer = dict[int, list[int]]


@dataclass(frozen=True)
class SearchSettings:
    """How fine the search goes.

    Attributes:
        by: measure that decides; one of ``zerotuning_heads.MEASURES``.
        groups: how many groups of neighbouring layers to begin with; None: each layer is one, as in the paper.
        heads: whether to go on to single heads. Without, all heads of the chosen layers are taken.
        batch_size: prompts per pass.

    Raises:
        MetricError: no such measure.
    """

    by: str = "loss"
    groups: int | None = None
    heads: bool = True
    batch_size: int = 1

    def __post_init__(self) -> None:
        """Check the measure."""
        check_measure(self.by, "SearchSettings")


def coarse_to_fine(
    model: Model, questions: Questions, template: AttentionEdit, settings: SearchSettings | None = None
) -> xr.DataArray:
    """Search layers first, then heads in the best ones: bool, dims (layer, head).

    The edit is put into every head of a group of layers, group after group; the best group is kept, of it the layers
    that gain by themselves, and of those the heads that do. Where no part of what is kept gains by itself, the whole
    stays; where no group gains, nothing is chosen.

    Args:
        model: the model.
        questions: calibration questions.
        template: the edit; its own ``layers`` are kept to, its ``heads`` are replaced.
        settings: what is fixed beforehand.
    """
    chosen = settings or SearchSettings()
    tower = find_tower(model, None)
    acting = sorted(set(template.layers_in(tower)))
    width = {layer: max(site.heads for site in tower.sites_of(layer)) for layer in acting}

    def gains(parts: list[HeadsByLayer]) -> np.ndarray:
        variants = {str(i): [dataclasses.replace(template, layers=None, heads=part)] for i, part in enumerate(parts)}
        scores = evaluate(model, questions, {"none": [], **variants}, batch_size=chosen.batch_size)
        found = means(scores)[chosen.by]
        return BETTER[chosen.by] * (found - found.sel(edit="none")).sel(edit=list(variants)).values

    def whole(layers: list[int]) -> HeadsByLayer:
        return {layer: list(range(width[layer])) for layer in layers}

    split = np.array_split(acting, min(chosen.groups or len(acting), len(acting)))
    blocks = [whole([int(layer) for layer in part]) for part in split]
    gain = gains(blocks)
    kept = blocks[int(gain.argmax())] if gain.max() > TIE else {}
    if len(kept) > 1:
        kept = _those_that_gain(kept, [whole([layer]) for layer in kept], gains)
    if chosen.heads and kept:
        kept = _those_that_gain(kept, [{layer: [head]} for layer, held in kept.items() for head in held], gains)
    layers = sorted({site.layer for site in tower.attention})
    shape = (len(layers), max(site.heads for site in tower.attention))
    places = xr.DataArray(np.zeros(shape, bool), {"layer": layers, "head": np.arange(shape[1])}, ("layer", "head"))
    for layer, held in kept.items():
        places.loc[{"layer": layer, "head": held}] = True
    return places.rename("chosen").assign_attrs(kind="coarse to fine", n=int(places.sum()))


def _those_that_gain(
    whole: HeadsByLayer, parts: list[HeadsByLayer], gains: Callable[[list[HeadsByLayer]], np.ndarray]
) -> HeadsByLayer:
    kept: HeadsByLayer = {}
    for part, gain in zip(parts, gains(parts), strict=True):
        for layer, held in part.items() if gain > TIE else ():
            kept.setdefault(layer, []).extend(held)
    return kept or whole
