"""Edits and grids of edits from the command line, and the table that sums up a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from sinkscope import schema, textform
from sinkscope.cli.options import Texts, leading_dims
from sinkscope.errors import EditError

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from sinkscope.edits import Edit


@Parameter(name="*", group=Group("Variants", sort_key=0))
@dataclass(frozen=True)
class VariantOptions:
    """Which edits are compared.

    Attributes:
        edit: One variant: "mask-keys keys=first", several edits with " + " between them, or with a name in front
            "masked: mask-keys keys=first". Give it several times for several variants.
        grid: A product of values of one edit: every field with several values is an axis, such as
            "scale-keys keys=first gamma=0.2:2.0:0.2 layers=0:6".
        baseline: Also read the model without an edit.
        executor: Where it is computed.
        cache: Folder of finished results. A sweep that was interrupted goes on where it was.
    """

    edit: Texts = field(default_factory=list)
    grid: str | None = None
    baseline: bool = True
    executor: Annotated[
        Literal["serial", "processes"] | None, Parameter(help="serial (default) or processes of this machine.")
    ] = None
    cache: Path | None = None

    def named(self) -> Mapping[str, Sequence[Edit]]:
        """Give the edits by name, or the grid.

        Raises:
            EditError: nothing to compare, both kinds, a name twice, or a malformed edit.
        """
        if bool(self.edit) == bool(self.grid):
            raise EditError("sweep: give --edit for each variant, or one --grid, and not both.")
        if self.grid:
            return grid_of(self.grid)
        found: dict[str, list[Edit]] = {}
        for text in self.edit:
            name, colon, rest = text.partition(": ")
            name = name.strip() if colon else text.strip()
            if name in found:
                raise EditError(f"sweep: two variants are named {name!r}. Give them names: --edit 'NAME: EDIT'.")
            found[name] = edits_of([rest if colon else text])
        return found


def edits_of(texts: Sequence[str]) -> list[Edit]:
    """Make edits from their text forms, in order.

    Raises:
        EditError: a malformed or unknown edit.
    """
    if not texts:
        return []
    from sinkscope import edits

    return [edit for text in texts for edit in edits.parse(text)]


def grid_of(text: str) -> Mapping[str, Sequence[Edit]]:
    """Make a grid from the text form of one edit: each field with several values is an axis.

    Raises:
        EditError: a malformed or unknown edit, or no field with several values.
    """
    from sinkscope.edits.base import EDITS
    from sinkscope.engine.sweep import grid

    cls, given = textform.pieces(text, EDITS, EditError, "edit")
    axes = {name: values for name, values in given.items() if isinstance(values, tuple)}
    if not axes:
        raise EditError(f"--grid {text!r}: no field has several values. Write gamma=0.2:2.0:0.2 or layers=0,3.")
    order = [f.name for f in fields(cls) if f.name in given]
    first = {name: axes[name][0] if name in axes else given[name] for name in order}
    return grid(cls(**first), **axes)


def means(ds: xr.Dataset) -> dict[tuple[str, ...], pd.DataFrame]:
    """Average every variable per variant, ``key_mass`` at position 0: a table for each set of dims variants are along.

    A sweep or a grid has one such set; a tuned model has test scores by edit and a calibration curve by gamma. Indices,
    such as the dimension of an entry, have no mean: the most frequent one stands there, with its share.
    """
    leading, declared = leading_dims(ds), schema.variables(ds)
    columns: dict[tuple[str, ...], dict[str, Any]] = {}
    for name, array in ds.data_vars.items():
        kept = tuple(dim for dim in leading if dim in array.dims)
        if not kept or array.dtype.kind not in "bifu":
            continue  # a baseline beside a grid has none of its dims; labels have no mean
        one = array.isel(key=0) if name == "key_mass" else array
        rest = [str(dim) for dim in one.dims if dim not in kept]
        counted = str(name) in declared and declared[str(name)].discrete
        columns.setdefault(kept, {})[str(name)] = (_most_frequent(one, rest) if counted else one.mean(rest)).to_series()
    import pandas as pd

    return {dims: pd.DataFrame(series) for dims, series in columns.items()}


def _most_frequent(array: xr.DataArray, dims: Sequence[str]) -> xr.DataArray:
    """Count indices over ``dims``, those of the largest entries where entries are ranked: ``507 (83%)``."""
    import numpy as np
    import xarray as xr

    if "rank" in dims:
        array, dims = array.isel(rank=0, drop=True), [dim for dim in dims if dim != "rank"]

    def said(values: np.ndarray) -> np.ndarray:
        out = np.empty(values.shape[: values.ndim - len(dims)], dtype=object)
        for at in np.ndindex(*out.shape):
            held = values[at][np.isfinite(values[at])]
            found, counts = np.unique(held, return_counts=True)
            out[at] = f"{found[counts.argmax()]:g} ({counts.max() / held.size:.0%})" if held.size else "none"
        return out

    return xr.apply_ufunc(said, array, input_core_dims=[list(dims)])
