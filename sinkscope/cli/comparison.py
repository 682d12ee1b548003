"""``sinkscope compare``: paired differences between two readings, or between the variants of a sweep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from sinkscope import schema
from sinkscope.cli.options import Whole
from sinkscope.cli.readings import print_table, save_table
from sinkscope.errors import SchemaError

if TYPE_CHECKING:
    import xarray as xr

Several = Annotated[list[str] | None, Parameter(negative=())]


@Parameter(name="*")
@dataclass(frozen=True)
class TableOptions:
    """How a table is printed and saved.

    Attributes:
        rows: How many rows of the table to print.
        output: Save the whole table as CSV as well.
        overwrite: Replace the CSV file if it exists.
    """

    rows: Whole = 20
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None
    overwrite: bool = False


def compare(
    readings: Path,
    to: str,
    *,
    variable: str,
    select: Several = None,
    mean: Several = None,
    table: TableOptions | None = None,
) -> None:
    """Compare two readings of the same prompts, or the variants of a sweep: paired differences with intervals.

    Args:
        readings: File written by sinkscope run or sweep.
        to: The file that is subtracted, or for a sweep the label of a variant, such as baseline.
        variable: Variable that is compared, such as key_mass.
        select: What is tested, such as key=0 or layer=3, chosen before the tests are corrected for their number. Give
            it several times for several.
        mean: Dimension that is averaged first, such as layer or head. Give it several times for several.
    """
    from sinkscope.metrics import compare as paired

    table = table or TableOptions()
    target = None if table.output is None else schema.check_output(table.output, overwrite=table.overwrite)
    ds = schema.open(readings)
    array = _averaged(ds, variable, mean or [], readings)
    other: Any = to
    if Path(to).is_file():
        other = _averaged(schema.open(Path(to)), variable, mean or [], Path(to))
    elif "edit" not in ds.dims:
        raise SchemaError(
            f"compare {readings} {to}: there is no such file, and the reading is no sweep whose variant {to!r} could "
            "be meant. Give a second reading of the same prompts."
        )
    result = paired(array, to=other, sel=dict(_selection(text, array) for text in select or []))
    frame = result.reset_coords(drop=True).to_dataframe().reset_index()
    print(f"{variable}: {readings} less {to}\n")
    print_table(frame, "difference", table.rows)
    print(f"\nCorrected together: {result.attrs['family']}.")
    if target is not None:
        save_table(frame, target)


def _averaged(ds: xr.Dataset, variable: str, mean: list[str], path: Path) -> xr.DataArray:
    if variable not in ds:
        held = sorted(map(str, ds.data_vars))
        raise SchemaError(f"compare --variable {variable}: {path} does not hold it. It holds {held}.")
    array = ds[variable]
    missing = [dim for dim in mean if dim not in array.dims or dim == "prompt"]
    if missing:
        dims = [str(dim) for dim in array.dims if dim not in ("prompt", "edit")]
        raise SchemaError(f"compare --mean {missing[0]}: {variable} can be averaged over {dims}.")
    return array.mean(mean, keep_attrs=True) if mean else array


def _selection(text: str, array: xr.DataArray) -> tuple[str, Any]:
    """``key=0`` as a label, or as a position along a dimension without labels."""
    dim, equals, label = text.partition("=")
    if not equals or dim not in array.dims:
        dims = [str(d) for d in array.dims if d != "prompt"]
        raise SchemaError(f"--select {text}: write DIM=LABEL with one of the dims {dims}.")
    known = array[dim].values.tolist() if dim in array.coords else list(range(array.sizes[dim]))
    for value in known:
        if str(value) == label:
            return dim, value
    shown = known if len(known) <= 12 else [*known[:6], "...", known[-1]]
    raise SchemaError(f"--select {text}: {dim} has no label {label!r}; its labels are {shown}.")
