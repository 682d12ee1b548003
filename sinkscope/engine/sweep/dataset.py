"""The results of a sweep put together: one reading with the dimension ``edit``, or the dimensions of a grid."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from sinkscope.engine.reading import provenance
from sinkscope.engine.sweep.passes import Sweep
from sinkscope.engine.sweep.variants import BASELINE, edits_json
from sinkscope.errors import EditHasNoEffect
from sinkscope.schema import validate


def assemble(sweep: Sweep, axes: Mapping[str, Sequence[Any]] | None) -> xr.Dataset:
    """Make the reading of a finished sweep.

    Raises:
        EditHasNoEffect: a variant changed nothing.
    """
    _judge(sweep)
    arrays, builder = _stack(sweep), sweep.builder()
    labels = [variant.label for variant in sweep.variants]
    if axes is None:
        builder.arrays = arrays
        ds = builder.dataset(sweep.prompts, ("edit",)).assign_coords(edit=labels)
    else:
        shape = [len(values) for values in axes.values()]
        count = int(np.prod(shape))
        builder.arrays = {name: array[:count].reshape(*shape, *array.shape[1:]) for name, array in arrays.items()}
        ds = builder.dataset(sweep.prompts, tuple(axes)).assign_coords({dim: list(v) for dim, v in axes.items()})
        if labels[count:] == [BASELINE]:
            builder.arrays = {name: array[count] for name, array in arrays.items()}
            plain = builder.dataset(sweep.prompts)
            ds = ds.assign({f"{name}_{BASELINE}": plain[name] for name in arrays})
    ds.attrs = _attributes(sweep)
    return validate(ds, tuple(axes or ()))


def _judge(sweep: Sweep) -> None:
    """Let each variant's guard judge what its edits did in all batches.

    Raises:
        EditHasNoEffect: a variant changed nothing; the message names it.
    """
    for index, (variant, guard) in enumerate(zip(sweep.variants, sweep.guards, strict=True)):
        for b in range(len(sweep.batches)):
            guard.take(sweep.results[b, index])
        try:
            guard.verdict()
        except EditHasNoEffect as error:
            raise EditHasNoEffect(f"sweep: variant {variant.label!r}: {error}") from None


def _stack(sweep: Sweep) -> dict[str, np.ndarray]:
    """All results in arrays with the variant first, then the prompt; NaN where a prompt ends before the longest."""
    stacked: dict[str, np.ndarray] = {}
    firsts = [sweep.results[b, 0].arrays for b in range(len(sweep.batches))]
    for name in firsts[0]:
        shape = np.max([arrays[name].shape[1:] for arrays in firsts], axis=0).astype(int)
        whole = np.full((len(sweep.variants), len(sweep.prompts), *shape), np.nan, dtype=np.float32)
        for b, batch in enumerate(sweep.batches):
            for index in range(len(sweep.variants)):
                array = sweep.results[b, index].arrays[name]
                whole[(index, list(batch.indices), *(slice(0, size) for size in array.shape[1:]))] = array
        stacked[name] = whole
    return stacked


def _attributes(sweep: Sweep) -> dict[str, Any]:
    paths = {path for result in sweep.results.values() for path in result.paths}
    attrs = provenance(sweep.model, sweep.tower, sweep.prompts, sweep.probes, edits_json(sweep.variants), paths)
    found = {v.label: guard.attributes() for v, guard in zip(sweep.variants, sweep.guards, strict=True)}
    notes = [f"{label}: {said['edit_notes']}" for label, said in found.items() if said["edit_notes"]]
    why_not = sweep.runner.why_not
    if sweep.cache_off:
        attrs["cache"] = f"off: {sweep.cache_off}"
    return attrs | {
        "seed": 0,  # nothing random enters a sweep; the process's own seed would make equal sweeps differ
        "edit_counts": json.dumps({label: json.loads(said["edit_counts"]) for label, said in found.items()}),
        "edit_notes": "; ".join(notes),
        "sharing": f"full passes: {why_not}" if why_not else "restarted at the first edited block",
        "executor": sweep.executor,
    }
