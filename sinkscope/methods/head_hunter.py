"""A set of heads for an aim: the best one first, then the one that helps most beside those chosen (HeadHunter)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from sinkscope.engine.sweep import sweep
from sinkscope.errors import EditError
from sinkscope.registry import method

if TYPE_CHECKING:
    from sinkscope.edits.base import Edit
    from sinkscope.models.handle import Model
    from sinkscope.probes.base import Probe
    from sinkscope.prompts import Prompts

Heads = Mapping[int, Sequence[int]]


@method()
def head_hunter(
    model: Model, prompts: Prompts, edit: Callable[[Heads], Edit],
    objective: Callable[[xr.Dataset], xr.DataArray], probes: Sequence[Probe], *, count: int = 4,
) -> xr.Dataset:  # fmt: skip
    """Return a greedy set of heads that raises an objective when they are edited: one more head a round.

    Args:
        model: any model that can be edited.
        prompts: what the objective is measured on; judge the set on others.
        edit: makes the edit of a set of heads, such as ``lambda heads: sk.MixIdentity(0.5, heads=heads)``.
        objective: takes the reading of a sweep, which has a dim ``edit``, and returns one number per edit; more is
            better.
        probes: what the objective reads.
        count: heads to choose; fewer are chosen where no further one raises the objective.

    ``layer``, ``head`` and ``value`` over (round): who was added and what the objective then was. Source: Ahn et al.
    2025 (ahn2025), which chooses by rounds as well; the stop is ours.

    Raises:
        EditError: ``count`` is below 1.
    """
    if count < 1:
        raise EditError(f"head_hunter(count={count}): at least one head is to be chosen.")
    tower = model.backend.towers[model.backend.default_tower]
    left = [(site.layer, head) for site in tower.attention for head in range(site.heads)]
    chosen: list[tuple[int, int]] = []
    values: list[float] = []
    while left and len(chosen) < count:
        sets = {f"{layer}.{head}": [edit(_by_layer([*chosen, (layer, head)]))] for layer, head in left}
        scores = objective(sweep(model, prompts, sets, probes, executor="serial")).sel(edit=list(sets)).values
        best = int(np.nanargmax(scores))
        if values and not scores[best] > values[-1]:
            break
        chosen.append(left.pop(best))
        values.append(float(scores[best]))
    columns = {"layer": [layer for layer, _ in chosen], "head": [head for _, head in chosen], "value": values}
    attrs = {"method": "head_hunter", "reference": "ahn2025"}
    return xr.Dataset({name: ("round", column) for name, column in columns.items()}, attrs=attrs)


def _by_layer(heads: Sequence[tuple[int, int]]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for layer, head in heads:
        found.setdefault(layer, []).append(head)
    return found
