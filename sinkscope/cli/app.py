"""The command line: stages with files between them.

Every option can also stand in a TOML file, in a table of the command's name: ``sinkscope run --config run.toml``.
Errors of sinkscope are one line on stderr with exit code 1; a command that was typed wrongly gives 2.
"""

from __future__ import annotations

import os
import sys
import tomllib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from cyclopts import App, CycloptsError
from cyclopts.config import Toml

from sinkscope import __version__
from sinkscope.cli.comparison import compare
from sinkscope.cli.explain import explain_image
from sinkscope.cli.listing import list_
from sinkscope.cli.models import cache, models
from sinkscope.cli.options import (
    FileOptions,
    ModelOptions,
    Output,
    PromptOptions,
    ReadingOptions,
    RunOptions,
    leading_dims,
    load,
    make_prompts,
    numbers,
)
from sinkscope.cli.readings import cite, one_line, plot, report, show, warn_of_nothing
from sinkscope.cli.serve import serve
from sinkscope.cli.survey import merge, survey
from sinkscope.cli.sweep import VariantOptions, edits_of
from sinkscope.cli.tune import tune
from sinkscope.cli.words import spoken
from sinkscope.errors import PromptError, SinkscopeError, SinkscopeWarning, did_you_mean, printable
from sinkscope.files import as_path
from sinkscope.registry import PluginWarning

EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
_EPILOGUE = """\
Stages, with files between them:

  sinkscope run smollm2-135m --text-file paragraphs.txt --output readings.nc
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
    suppress_keyboard_interrupt=False,  # it would end the program without a word
)

for _key, _command in enumerate((show, plot, report), start=3):
    app.command(_command, sort_key=_key)
app.command(serve, sort_key=5)
app.command(survey, sort_key=2)
app.command(merge, sort_key=2)
app.command(compare, sort_key=6)
app.command(tune, sort_key=7)
app.command(explain_image, sort_key=8)
app.command(models, sort_key=9)
app.command(list_, name="list", sort_key=9)
app.command(cache, sort_key=10)
app.command(cite, sort_key=11)


@app.command(sort_key=1)
def run(
    model: str,
    *,
    change: RunOptions | None = None,
    prompts: PromptOptions | None = None,
    reading: ReadingOptions | None = None,
    loading: ModelOptions | None = None,
    file: FileOptions | None = None,
) -> None:
    """Measure a model on prompts and save the readings.

    Args:
        model: A named model (see sinkscope models), a local folder, a GGUF file, ollama:NAME, or a hub id.
    """
    change = change or RunOptions()
    prompts, reading, file = prompts or PromptOptions(), reading or ReadingOptions(), file or FileOptions()
    prompts.check()
    target = file.check()
    texts, probes, edits = prompts.texts(), reading.probes(), edits_of(change.edit)

    from sinkscope.engine.run import run as run_probes

    handle = load(model, loading or ModelOptions())
    batch = make_prompts(prompts, texts, handle)
    settings: dict[str, Any] = {"batch_size": reading.batch_size, "tower": reading.tower, "cache": change.cache}
    ds = run_probes(handle, batch, probes, edits, **settings)
    file.save(ds)
    warn_of_nothing(ds)
    print(one_line(ds))
    print(f"Saved {target}: {', '.join(map(str, ds.data_vars))}.\nNext: sinkscope show {target}")


@app.command(sort_key=2)
def sweep(
    model: str,
    *,
    variants: VariantOptions | None = None,
    prompts: PromptOptions | None = None,
    reading: ReadingOptions | None = None,
    loading: ModelOptions | None = None,
    file: FileOptions | None = None,
) -> None:
    """Measure a model under many edits, with the work they share done once.

    Args:
        model: A named model (see sinkscope models), a local folder, a GGUF file, ollama:NAME, or a hub id.
    """
    variants, prompts = variants or VariantOptions(), prompts or PromptOptions()
    reading, file = reading or ReadingOptions(), file or FileOptions()
    prompts.check()
    target = file.check()
    texts, probes, named = prompts.texts(), reading.probes(), variants.named()

    from sinkscope.engine.sweep import sweep as run_all

    handle = load(model, loading or ModelOptions())
    batch = make_prompts(prompts, texts, handle)
    settings: dict[str, Any] = {"executor": variants.executor, "cache": variants.cache, "baseline": variants.baseline}
    ds = run_all(handle, batch, named, probes, batch_size=reading.batch_size, tower=reading.tower, **settings)
    file.save(ds)
    warn_of_nothing(ds)
    print(one_line(ds))
    sizes = ", ".join(f"{dim} ({ds.sizes[dim]})" for dim in leading_dims(ds))
    print(f"Saved {target}: {', '.join(map(str, ds.data_vars))}, by {sizes}.\nNext: sinkscope show {target}")


@app.command(sort_key=6)
def checkpoints(
    folder: Path,
    *,
    prompts: PromptOptions | None = None,
    reading: ReadingOptions | None = None,
    file: FileOptions | None = None,
) -> None:
    """Measure every checkpoint of a training run on the same prompts.

    Args:
        folder: Output folder of a transformers Trainer: its checkpoint-NUMBER folders are read.
    """
    prompts, reading, file = prompts or PromptOptions(), reading or ReadingOptions(), file or FileOptions()
    prompts.check()
    target = file.check()
    if prompts.image:
        raise PromptError("checkpoints: --image is not read along training. Give --text, --text-file or --ids.")
    texts: Sequence[Any] = [numbers(text) for text in prompts.ids] or prompts.texts()

    import pandas as pd

    from sinkscope.training import read_checkpoints, summary

    probes = reading.probes() if reading.probe else None
    ds = read_checkpoints(folder, texts, probes, batch_size=reading.batch_size)
    file.save(ds)
    rows = [{"step": step, **summary(ds.sel(step=step))} for step in ds["step"].values.tolist()]
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    print(f"Saved {target}: {', '.join(map(str, ds.data_vars))}, by step ({ds.sizes['step']}).")


@app.command(sort_key=8)
def demo(*, output: Output = Path("out/demo")) -> None:
    """Measure a pretrained sentence encoder and a model with a planted sink, and say what was found.

    Needs no network. Writes readings, figures and reports; files of an earlier demo are replaced.

    Args:
        output: Folder for everything that is written; it is made if it does not exist.
    """
    from sinkscope.cli import demo as story

    if not story.main(output):
        raise SinkscopeError("demo: what was planted was not found as planted; see the lines marked WRONG.")


@app.command(sort_key=12)
def completion(shell: Literal["bash", "zsh", "fish"]) -> None:
    """Print what completes commands and options in your shell: eval "$(sinkscope completion bash)".

    Args:
        shell: The shell; put the line above into its startup file to have it always.
    """
    print(app.generate_completion(shell=shell))


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
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SinkscopeError(f"--config {path}: this is not valid TOML: {error}.") from None
    except OSError as error:
        raise SinkscopeError(f"--config {path}: the file cannot be read ({error.strerror}).") from None
    known = {name for name in app if not name.startswith("-")}
    for name in tables:
        if name not in known:  # a misspelt table would be ignored, and its options with it
            raise SinkscopeError(
                f"--config {path}: [{name}] is no command. Options stand in a table of the command's name: "
                f"{', '.join(sorted(known))}.{did_you_mean(name, known)}"
            )
    return Toml(path, must_exist=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, 1 for an error, 2 for wrong usage, 130 if interrupted."""
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        return _main(list(sys.argv[1:] if arguments is None else arguments))


def _main(tokens: list[str]) -> int:
    config = _take_config(tokens)
    try:
        if config is not None and not as_path(config, SinkscopeError).is_file():
            raise SinkscopeError(f"--config {config}: no such file.")
        app.config = () if config is None else (_toml(config),)
        app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        _complain(str(error).strip() + " See sinkscope --help.")
        return EXIT_USAGE
    except SinkscopeError as error:
        _complain(spoken(str(error)))
        return EXIT_ERROR
    except KeyboardInterrupt:
        _complain("interrupted; no half file is left.")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _warn(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """Say a warning of ours in a line, as an error is said; one of another library as Python says it."""
    if issubclass(category, (SinkscopeWarning, PluginWarning)):
        _complain(f"warning: {spoken(str(message))}")
    else:
        sys.stderr.write(warnings.formatwarning(message, category, *place[:2]))


def _complain(message: str) -> None:
    print(f"sinkscope: {printable(' '.join(message.split()))}", file=sys.stderr)
