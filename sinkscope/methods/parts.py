"""Maps of many prompts without holding them all: a few prompts at a time, and only what is made of them is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import xarray as xr

from sinkscope import schema
from sinkscope.engine.run import run

if TYPE_CHECKING:
    from sinkscope.models.handle import Model
    from sinkscope.probes.base import Probe
    from sinkscope.prompts import Prompts

BYTES = 256 << 20
"""Maps that are held at a time, about; those of one prompt are held whole."""


def run_in_parts(
    model: Model,
    prompts: Prompts,
    probes: Sequence[Probe],
    reduce: Callable[[xr.Dataset], xr.Dataset],
    *,
    maps: int,
    fill: Mapping[str, object] | None = None,
) -> xr.Dataset:
    """Run ``probes`` on a few prompts at a time and join what ``reduce`` makes of each reading along ``prompt``.

    Args:
        model: The model.
        prompts: All prompts; one that is run whole (an output of the processor) makes one part.
        probes: What is read, maps among it.
        reduce: Gives a dataset with the dimension ``prompt``; the maps should not be in it.
        maps: Number of maps (layer, head) of a prompt, query by key float32 each.
        fill: Value by variable where a shorter prompt has no token; NaN if left out.
    """
    longest = max(len(ids) for ids in prompts.ids)
    step = max(1, BYTES // (4 * maps * longest**2)) if prompts.whole is None else len(prompts)
    found = [
        reduce(run(model, prompts.subset(range(start, min(start + step, len(prompts)))), probes))
        for start in range(0, len(prompts), step)
    ]
    return schema.join(found, fill=fill)
