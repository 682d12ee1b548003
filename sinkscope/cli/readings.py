"""The commands that read a file of readings: ``show``, ``plot``, ``report``, ``cite``."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from sinkscope import schema
from sinkscope.cli.figures import Style, draw_figure
from sinkscope.cli.options import Output, Whole, image_files, leading_dims, selected
from sinkscope.cli.sweep import means
from sinkscope.cli.words import spoken
from sinkscope.errors import OutputError, SchemaError, SinkscopeWarning
from sinkscope.files import write

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

_INDICES = "; of indices the most frequent one with its share"
Select = Annotated[list[str] | None, Parameter(negative=())]


def show(
    readings: Path,
    *,
    table: str | None = None,
    rows: Whole = 20,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    overwrite: bool = False,
    select: Select = None,
) -> None:
    """Say what a reading shows, in words; or print or save one variable as a table.

    Args:
        readings: File written by sinkscope run.
        table: Variable to print as a table, largest numbers first.
        rows: How many rows of the table to print.
        output: Save the whole table as CSV instead of printing it.
        overwrite: Replace the CSV file if it exists.
        select: Part of the reading, such as edit=baseline or layer=3. Give it several times for several.
    """
    if output is not None and table is None:
        raise OutputError("show --output: name the variable to save, such as --table key_mass.")
    target = None if output is None else schema.check_output(output, overwrite=overwrite)
    ds = selected(schema.open(readings), select or [])
    if table is None:
        _tell(ds)
        return
    frame = schema.to_dataframe(ds, table)
    if target is not None:
        save_table(frame, target)
        return
    print_table(frame, table, rows)


def plot(
    figure: str,
    readings: Path,
    *,
    output: Output,
    style: Style = "paper",
    overwrite: bool = False,
    select: Select = None,
) -> None:
    """Draw one figure of a reading.

    Args:
        figure: sink-map, sink-profile, role-share, value-drain, top-values, massive-activations, residual-norm,
            entropy-map, max-attention, attention-map or image-patches. Of a survey: sink-rate-map,
            attention-by-position, corpus-role-share, sink-tokens, value-norm-by-layer, corpus-residual-norm,
            corpus-top-values or corpus-entropy-map.
        readings: File written by sinkscope run.
        output: File to write; its ending says which kind: png, pdf or svg.
        style: One column of a paper, a slide, or a page.
        overwrite: Replace the file if it exists.
        select: Part of the reading, such as edit=baseline or layer=3. Give it several times for several.
    """
    target = schema.check_output(output, overwrite=overwrite)
    if target.suffix not in (".png", ".pdf", ".svg"):
        raise OutputError(f"plot --output {target}: figures are png, pdf or svg. Give the file one of these endings.")
    ds = _one_run(selected(schema.open(readings), select or []), "plot")
    draw_figure(ds, figure.replace("-", "_"), target, style=style)
    print(f"Saved {target}.")


def report(  # noqa: PLR0913 - one option each
    readings: Path,
    *,
    output: Output = Path("report.html"),
    against: Path | None = None,
    image: Annotated[list[Path] | None, Parameter(negative=())] = None,
    title: str | None = None,
    overwrite: bool = False,
    select: Select = None,
) -> None:
    """Write a reading, or a sweep, as one HTML page that opens without a network.

    Args:
        readings: File written by sinkscope run.
        output: File to write.
        against: File of a second reading of the same prompts, such as the run without edits: both side by side, with
            the differences.
        image: Image, or folder of images, that the prompts hold, in their order: attention is laid on them. Give it
            several times for several.
        title: Title of the page. Default: the model's name.
        overwrite: Replace the file if it exists.
        select: Part of the reading, such as edit=baseline or layer=3. Give it several times for several.
    """
    target = schema.check_output(output, overwrite=overwrite)
    ds = selected(schema.open(readings), select or [])
    other = None if against is None else schema.open(against)

    from sinkscope.report import write_report

    images = image_files(image) if image else None
    labels = None if against is None else (readings.stem, against.stem)
    saved = write_report(ds, target, title=title, overwrite=overwrite, images=images, against=other, labels=labels)
    print(f"Saved {saved}.")


def cite(readings: Path) -> None:
    """Print the BibTeX entries of everything that a reading used.

    Args:
        readings: File written by sinkscope run.
    """
    from sinkscope.definitions import cite as bibtex

    print(bibtex(schema.open(readings)), end="")


def print_table(frame: pd.DataFrame, column: str, rows: int) -> None:
    """Print the rows with the largest magnitudes in ``column``, and how many more there are.

    Raises:
        OutputError: a number of rows below 1.
    """
    if rows < 1:
        raise OutputError(f"show --rows {rows}: print at least one row.")
    ordered = frame.sort_values(column, key=abs, ascending=False, kind="stable")
    print(ordered.head(rows).to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    if len(frame) > rows:
        print(f"... {len(frame) - rows:,} more rows; --rows prints more, --output saves all.")


def save_table(frame: pd.DataFrame, target: Path) -> None:
    """Write a table as CSV, whole or not at all."""
    write(target, frame.to_csv(index=False))
    print(f"Saved {target}: {len(frame):,} rows.")


def one_line(ds: xr.Dataset) -> str:
    """Say in one line what was read."""
    from sinkscope.report.page import summary

    return spoken(summary(ds))


def warn_of_nothing(ds: xr.Dataset) -> None:
    """Warn of variables without a number: what a probe names is in none of the prompts."""
    empty = [str(name) for name, array in ds.data_vars.items() if array.dtype.kind == "f" and not array.notnull().any()]
    if empty:
        warnings.warn(
            f"{', '.join(empty)}: no number in it. What the probe names (keys=, queries=, layers=) is in none of these "
            "prompts.",
            SinkscopeWarning, stacklevel=2,
        )  # fmt: skip


def _tell(ds: xr.Dataset) -> None:
    from sinkscope.report import findings

    print(one_line(ds))
    leading = leading_dims(ds)
    if leading:
        where = "; key_mass is that of position 0" if "key_mass" in ds else ""
        for dims, table in means(ds).items():
            indices = "" if table.select_dtypes(["number", "bool"]).shape == table.shape else _INDICES
            print(f"\nMean of each variable by {', '.join(dims)}{where}{indices}.\n")
            print(table.to_string(float_format=lambda x: f"{x:.4g}"))
        for told in _moved(ds):
            print(f"\n{told}")
        if "key_mass" in ds:
            print(f"\n--select {leading[0]}={ds[leading[0]].values[0]} tells what one of them shows.")
        return
    for finding in findings(ds)[0]:
        print(f"\n{finding.heading}\n  {spoken(finding.text)}")


def _moved(ds: xr.Dataset) -> list[str]:
    """Say in which variants of a sweep the sink moved to another token."""
    from sinkscope.report.compared import moved_sinks
    from sinkscope.report.runs import MAX_RUNS, base_of, runs_of

    variants = math.prod(ds.sizes[dim] for dim in leading_dims(ds))
    if "key_mass" not in ds or variants > MAX_RUNS:
        return []
    runs = runs_of(ds)
    return moved_sinks(runs, base_of(runs, compared=False))


def _one_run(ds: xr.Dataset, command: str) -> xr.Dataset:
    for dim in leading_dims(ds):
        labels = ds[dim].values.tolist()
        raise SchemaError(f"{command}: this reading holds {dim} {labels}. Choose one: --select {dim}={labels[0]}.")
    return ds
