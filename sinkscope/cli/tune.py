"""ZeroTuning from the command line: heads and gamma from calibration questions, one answer to the test questions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from sinkscope.cli.options import FileOptions, ModelOptions, load


@Parameter(name="*", group=Group("Questions", sort_key=0))
@dataclass(frozen=True)
class QuestionOptions:
    """What is asked.

    Attributes:
        file: Questions in a file (.jsonl or .parquet): in the benchmark's own format, or with the columns prompt,
            options and answer. Give it twice for calibration and test apart; one file is split.
        calibration: At most how many questions to choose heads and gamma on.
        test: At most how many other questions to report on.
        seed: Of the draw.
    """

    file: Annotated[list[Path], Parameter(negative=())] | None = None
    calibration: int = 100
    test: int = 500
    seed: int = 42


@Parameter(name="*", group=Group("Tuning", sort_key=1))
@dataclass(frozen=True)
class TuningOptions:
    """How heads and gamma are chosen.

    Attributes:
        mode: By what: the accuracy among the options, the paper's greedy token (exact), the loss, or the entropy of the
            answer, which reads no label.
        heads: Which class is scaled; all needs no profile.
        share: At most this part of all heads, strongest first.
        keys: Which token is scaled.
        batch_size: Prompts per forward pass.
    """

    mode: Literal["accuracy", "exact", "loss", "entropy"] = "accuracy"
    heads: Literal["dominant", "up", "down", "all"] = "dominant"
    share: float | None = None
    keys: str = "first"
    batch_size: int = 8


def tune(
    model: str,
    task: str,
    *,
    questions: QuestionOptions | None = None,
    tuning: TuningOptions | None = None,
    loading: ModelOptions | None = None,
    file: FileOptions | None = None,
) -> None:
    """Scale the first token with heads and gamma found on calibration questions, and report on others (ZeroTuning).

    Args:
        model: A local folder, a hub id, or zoo:NAME of a decoder.
        task: A benchmark (sst2, boolq, mmlu ...; needs a network or a file), a task made here (brackets, keywords,
            operators, cloze, copy), or any name with --file.
    """
    asked, how, file = questions or QuestionOptions(), tuning or TuningOptions(), file or FileOptions()
    target = file.check()

    from sinkscope import tasks
    from sinkscope.errors import PromptError
    from sinkscope.methods.zerotuning import ZeroTuningSettings, zerotune

    paths = asked.file or []
    if len(paths) > 2:
        raise PromptError(f"tune: {len(paths)} files. Give one that is split, or two: calibration and test.")
    source = None if not paths else paths[0] if len(paths) == 1 else (paths[0], paths[1])
    parts = tasks.load(task, source, calibration=asked.calibration, test=asked.test, seed=asked.seed)
    settings = ZeroTuningSettings(
        mode=how.mode, heads=how.heads, share=how.share, keys=how.keys, batch_size=how.batch_size
    )
    result = zerotune(load(model, loading or ModelOptions()), parts, settings)
    file.save(result.to_dataset())
    print(result.summary())
    print(f"Saved {target}: test scores, curve over gamma, profile of the heads.\nNext: sinkscope show {target}")
