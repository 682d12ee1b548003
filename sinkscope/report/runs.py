"""The runs that a page shows: one reading, two that are compared, or the variants of a sweep."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass

import numpy as np
import xarray as xr

from sinkscope import schema
from sinkscope.arguments import is_iterable
from sinkscope.errors import SchemaError
from sinkscope.report.text import call_text

MAX_RUNS = 64
"""Most variants of a sweep that a page shows."""
BASELINES = ("baseline", "none")
NO_EDITS = "no edits"


@dataclass(frozen=True, eq=False)
class ShownRun:
    """One run of a page: its label, its edits in words, and its reading, which has no dimension in front.

    ``at`` says where it stands in a sweep: a label for each dimension that was in front.
    """

    label: str
    edits: str
    ds: xr.Dataset
    at: tuple[tuple[str, object], ...] = ()


def leading_dims(ds: xr.Dataset) -> list[str]:
    """Name the dimensions that a sweep put in front of a reading, outermost first."""
    if "survey" in ds.attrs:
        return []
    declared = schema.variables(ds)
    found: dict[str, None] = {}
    for name, array in ds.data_vars.items():
        if str(name) in declared:
            found |= dict.fromkeys(str(d) for d in array.dims if d not in declared[str(name)].dims)
    return list(found)


def runs_of(ds: xr.Dataset, against: xr.Dataset | None = None, labels: tuple[str, str] | None = None) -> list[ShownRun]:
    """List the runs of a page; the last or the one called baseline is what the others are compared with.

    Args:
        ds: a reading, or a sweep.
        against: a reading of the same prompts that ``ds`` is compared with.
        labels: names of the two; by their edits or models if left out.

    Raises:
        SchemaError: a sweep of more than ``MAX_RUNS`` variants, or ``against`` has other prompts, layers or heads.
    """
    runs = _variants(ds)
    if against is None:
        return runs
    if leading := leading_dims(against):
        first = _label(against, leading[0], 0)
        raise SchemaError(
            f"write_report(against=): this reading has the dimension {leading[0]!r} in front. Select one: "
            f"ds.sel({leading[0]}={first!r})."
        )
    _check_alike(ds, against)
    other = ShownRun("against", edits_text(against), against)
    names = _names(runs[0], other) if labels is None else labels
    if isinstance(names, str) or not is_iterable(names) or [type(name) for name in names] != [str, str]:
        raise SchemaError(f"write_report(labels={labels!r}): give two names, such as ('edited', 'plain').")
    first = [ShownRun(names[0], run.edits, run.ds) for run in runs] if len(runs) == 1 else runs
    return [*first, ShownRun(names[1], other.edits, against)]


def base_of(runs: list[ShownRun], compared: bool) -> int:
    """Give the index of the run that the others are compared with: the second of two readings, else the baseline."""
    if compared:
        return len(runs) - 1
    return next((i for i, run in enumerate(runs) if run.label in BASELINES), 0)


def edits_text(ds: xr.Dataset) -> str:
    """Write the edits of a reading as the calls that make them."""
    try:
        listed = json.loads(str(ds.attrs.get("edits", "[]")))
    except ValueError:
        return ""
    if not isinstance(listed, list):
        return ""
    return "; ".join(call_text(edit) for edit in listed) or NO_EDITS


def _variants(ds: xr.Dataset) -> list[ShownRun]:
    leading = leading_dims(ds)
    if not leading:
        return [ShownRun("this reading", edits_text(ds), ds)]
    count = int(np.prod([ds.sizes[dim] for dim in leading]))
    if count > MAX_RUNS:
        raise SchemaError(
            f"write_report: this sweep has {count} variants along {leading}; a page shows up to {MAX_RUNS}. Select "
            f"some: ds.isel({leading[0]}=slice(0, {max(1, MAX_RUNS * ds.sizes[leading[0]] // count)}))."
        )
    plain = [str(name) for name in ds.data_vars if str(name).endswith("_baseline")]
    runs = []
    for places in itertools.product(*(range(ds.sizes[dim]) for dim in leading)):
        named = [(dim, _label(ds, dim, i)) for dim, i in zip(leading, places, strict=True)]
        label = str(named[0][1]) if leading == ["edit"] else ", ".join(f"{dim} = {value}" for dim, value in named)
        one = ds.isel(dict(zip(leading, places, strict=True)), drop=True).drop_vars(plain)
        runs.append(ShownRun(label, "", one, tuple(named)))
    if plain:
        kept = ds[plain].rename({name: name.removesuffix("_baseline") for name in plain})
        runs.insert(0, ShownRun("baseline", NO_EDITS, kept))
    return runs


def _label(ds: xr.Dataset, dim: str, place: int) -> object:
    return ds[dim].values.tolist()[place] if dim in ds.coords else place


def _names(first: ShownRun, second: ShownRun) -> tuple[str, str]:
    models = [str(run.ds.attrs.get("model_id", "")) for run in (first, second)]
    for names in (models, [first.edits, second.edits]):
        if names[0] != names[1]:
            return names[0], names[1]
    return "this reading", "the other reading"


def _check_alike(ds: xr.Dataset, against: xr.Dataset) -> None:
    for dim in ("layer", "head", "prompt", "key"):
        here, there = ds.sizes.get(dim), against.sizes.get(dim)
        if here != there:
            raise SchemaError(
                f"write_report(against=): {dim} has {here or 'no'} labels in one reading and {there or 'no'} in the "
                "other. Compare readings of the same prompts, layers and heads."
            )
    for name in ("token", "token_role"):
        if name in ds.coords and name in against.coords and not np.array_equal(ds[name].values, against[name].values):
            raise SchemaError(
                "write_report(against=): the two readings hold other tokens. Compare readings of the same prompts."
            )
