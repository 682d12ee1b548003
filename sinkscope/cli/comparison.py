"""``sinkscope compare``: paired differences between two readings, or between the variants of a sweep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from sinkscope import schema
from sinkscope.cli.figures import draw_comparison
from sinkscope.cli.options import Whole
from sinkscope.cli.readings import print_table, save_table
from sinkscope.errors import OutputError, SchemaError, did_you_mean

if TYPE_CHECKING:
    import xarray as xr

PLAIN = "_baseline"
"""What the run without edits of a grid is named by, behind the name of each variable."""
Several = Annotated[list[str] | None, Parameter(negative=())]


@Parameter(name="*")
@dataclass(frozen=True)
class TableOptions:
    """How a table is printed and saved, and drawn.

    Attributes:
        rows: How many rows of the table to print.
        output: Save the whole table as CSV as well.
        figure: Draw the differences as well: bars by edit, a curve over gamma, a map of layers and heads. png, pdf or
            svg.
        overwrite: Replace these files if they exist.
    """

    rows: Whole = 20
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None
    figure: Path | None = None
    overwrite: bool = False

    def check(self) -> tuple[Path | None, Path | None]:
        """Give the two files, each after it was found to be writable.

        Raises:
            OutputError: as ``sinkscope.schema.check_output``, or a figure of an unknown ending.
        """
        given = (self.output, self.figure)
        table, figure = (p if p is None else schema.check_output(p, overwrite=self.overwrite) for p in given)
        if figure is not None and figure.suffix not in (".png", ".pdf", ".svg"):
            raise OutputError(f"compare --figure {figure}: figures are png, pdf or svg. Give it one of these endings.")
        return table, figure


def compare(
    readings: Path,
    to: str,
    *,
    variable: str | None = None,
    select: Several = None,
    mean: Several = None,
    table: TableOptions | None = None,
) -> None:
    """Compare two readings of the same prompts, or the variants of a sweep: paired differences with intervals.

    Args:
        readings: File written by sinkscope run or sweep.
        to: The file that is subtracted, or for a sweep the label of a variant, such as baseline.
        variable: Variable that is compared, such as key_mass. May be left out where there is one only.
        select: What is tested, such as key=0 or layer=3, chosen before the tests are corrected for their number. Give
            it several times for several.
        mean: Dimension that is averaged first, such as layer or head. Give it several times for several.
    """
    from sinkscope.metrics import compare as paired

    table = table or TableOptions()
    target, picture = table.check()
    ds = schema.open(readings)
    other = schema.open(Path(to)) if Path(to).is_file() else None
    name = variable or _only_variable(readings, ds, other)
    array = _averaged(ds, name, mean or [], readings)
    against = _plain(ds, array, to, readings) if other is None else other
    if not isinstance(against, str):
        against = _averaged(against, name, mean or [], Path(to))
    result = paired(array, to=against, sel=dict(_selection(text, array) for text in select or []))
    result = result.reset_coords(drop=True)
    frame = (result if result.dims else result.expand_dims(variable=[name])).to_dataframe().reset_index()
    print(f"{name}: {readings} less {to}\n")
    print_table(frame, "difference", table.rows)
    print(f"\nCorrected together: {result.attrs['family']}.")
    if target is not None:
        save_table(frame, target)
    if picture is not None:
        draw_comparison(
            result.assign_attrs(to=Path(to).stem, model_id=ds.attrs["model_id"]), ", ".join(select or []), picture
        )
        print(f"Saved {picture}.")


def _only_variable(readings: Path, ds: xr.Dataset, other: xr.Dataset | None) -> str:
    held = [n for n in map(str, ds.data_vars) if n.removesuffix(PLAIN) not in ds or not n.endswith(PLAIN)]
    both = held if other is None else [name for name in held if name in other]
    if len(both) == 1:
        return both[0]
    what = f"{both or held}" if both else f"{held}, of which the other holds none"
    raise SchemaError(f"compare {readings}: name what is compared, --variable NAME. It holds {what}.")


def _plain(ds: xr.Dataset, array: xr.DataArray, to: str, path: Path) -> str | xr.Dataset:
    """Say what a name stands for: a label of the sweep, or the run without edits that a grid holds beside it."""
    labels = array["edit"].values.tolist() if "edit" in array.dims else []
    beside = [str(name) for name in ds.data_vars if str(name).endswith(PLAIN)]
    labels = [*labels, *(["baseline"] if beside else [])]
    if not labels:
        raise SchemaError(
            f"compare {path} {to}: there is no such file, and the reading is no sweep whose variant {to!r} could "
            "be meant. Give a second reading of the same prompts."
        )
    if to not in labels:
        raise SchemaError(
            f"compare {path} {to}: there is no such file, and no variant of that name; the sweep has {labels}."
            f"{did_you_mean(to, labels)}"
        )
    return ds[beside].rename({name: name.removesuffix(PLAIN) for name in beside}) if beside else to


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
