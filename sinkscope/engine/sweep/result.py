"""Parts of a sweep put together: one reading with the dimension ``edit``, or the dimensions of a grid."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from sinkscope.engine.reading import Shelf, provenance
from sinkscope.engine.sweep.job import Job, judge
from sinkscope.engine.sweep.packs import Part
from sinkscope.engine.sweep.variants import BASELINE, edits_json
from sinkscope.schema import validate


def assemble(
    job: Job, parts: Mapping[tuple[int, int], Part], how: str, axes: Mapping[str, Sequence[Any]] | None
) -> xr.Dataset:
    """Make the reading of a finished sweep.

    Raises:
        EditHasNoEffect: a variant changed nothing.
    """
    judge(job, parts)
    arrays = _stack(job, parts)
    shelf = Shelf(job.probes, job.tower, job.prompts.lengths)
    shelf.arrays = {name: array[0] for name, array in arrays.items()}
    ds = shelf.dataset(job.prompts)
    dims = {name: ds[name].dims for name in arrays}
    attrs = {name: ds[name].attrs for name in arrays}
    data: dict[str, Any] = {}
    labels = [variant.label for variant in job.variants]
    if axes is None:
        data = {name: (("edit", *dims[name]), array, attrs[name]) for name, array in arrays.items()}
        ds = ds.assign(data).assign_coords(edit=labels)
    else:
        shape = [len(values) for values in axes.values()]
        count = int(np.prod(shape))
        for name, array in arrays.items():
            data[name] = ((*axes, *dims[name]), array[:count].reshape(*shape, *array.shape[1:]), attrs[name])
            if labels[count:] == [BASELINE]:
                data[f"{name}_{BASELINE}"] = (dims[name], array[count], attrs[name])
        ds = ds.assign(data).assign_coords({dim: list(values) for dim, values in axes.items()})
    ds.attrs = _attributes(job, parts, how)
    return validate(ds, tuple(axes or ()))


def _stack(job: Job, parts: Mapping[tuple[int, int], Part]) -> dict[str, np.ndarray]:
    """All parts in arrays with the variant first, then the prompt; NaN where a prompt ends before the longest."""
    stacked: dict[str, np.ndarray] = {}
    firsts = [parts[b, 0].arrays for b in range(len(job.batches))]
    for name in firsts[0]:
        shape = np.max([arrays[name].shape[1:] for arrays in firsts], axis=0).astype(int)
        whole = np.full((len(job.variants), len(job.prompts), *shape), np.nan, dtype=np.float32)
        for b, batch in enumerate(job.batches):
            for index in range(len(job.variants)):
                array = parts[b, index].arrays[name]
                whole[(index, list(batch.indices), *(slice(0, size) for size in array.shape[1:]))] = array
        stacked[name] = whole
    return stacked


def _attributes(job: Job, parts: Mapping[tuple[int, int], Part], how: str) -> dict[str, Any]:
    paths = {path for part in parts.values() for path in part.paths}
    attrs = provenance(job.model, job.tower, job.prompts, job.probes, edits_json(job.variants), paths)
    found = {v.label: guard.attributes() for v, guard in zip(job.variants, job.guards, strict=True)}
    notes = [f"{label}: {said['edit_notes']}" for label, said in found.items() if said["edit_notes"]]
    relay = job.bench.relay
    return attrs | {
        "seed": 0,  # nothing random enters a sweep; the process's own seed would make equal sweeps differ
        "edit_counts": json.dumps({label: json.loads(said["edit_counts"]) for label, said in found.items()}),
        "edit_notes": "; ".join(notes),
        "sharing": "restarted at the first edited block" if relay.usable else f"full passes: {relay.why_not}",
        "executor": how,
    }
