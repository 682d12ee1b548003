"""ZeroTuning from the command line: heads and gamma from calibration questions, one answer to the test questions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from sinkscope.cli.options import FileOptions, ModelOptions, Whole, load


@Parameter(name="*", group=Group("Questions", sort_key=0))
@dataclass(frozen=True)
class QuestionOptions:
    """What is asked.

    Attributes:
        data: Questions of your own (.jsonl or .parquet): the columns prompt, options and answer (the right option or
            its place, from 0), or a benchmark's own with its name as the task. Give it twice for calibration and test
            apart; one file is split. --file is the same.
        chat: Put each question through the model's chat template.
        calibration: At most how many questions to choose heads and gamma on.
        test: At most how many other questions to report on.
        seed: Of the draw.
    """

    data: Annotated[list[Path], Parameter(name=("--data", "--file"), negative=())] | None = None
    chat: Annotated[bool, Parameter(negative=())] = False
    calibration: Whole = 100
    test: Whole = 500
    seed: Whole = 42


@Parameter(name="*", group=Group("Tuning", sort_key=1))
@dataclass(frozen=True)
class TuningOptions:
    """How heads and gamma are chosen.

    Attributes:
        mode: By what: the accuracy among the options, the paper's greedy token (exact), the loss over the vocabulary or
            among the options (option_loss), or the entropy of the answer, which reads no label.
        profile_by: One pass per head (passes), or an estimate from one backward pass per question (gradient).
        heads: Which class is scaled; all needs no profile.
        share: At most this part of all heads, strongest first.
        keys: Which token is scaled.
        batch_size: Prompts per forward pass.
    """

    mode: Literal["accuracy", "exact", "loss", "option_loss", "entropy"] = "accuracy"
    profile_by: Literal["passes", "gradient"] = "passes"
    heads: Literal["dominant", "up", "down", "all"] = "dominant"
    share: float | None = None
    keys: str = "first"
    batch_size: Whole = 8


def tune(
    model: str,
    task: str = "",
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
            operators, cloze, copy, sentiment, topic, inference, choice), or any name with --data.
    """
    asked, how, file = questions or QuestionOptions(), tuning or TuningOptions(), file or FileOptions()
    target = file.check()

    from sinkscope import tasks
    from sinkscope.errors import PromptError
    from sinkscope.methods.zerotuning import ZeroTuningSettings, zerotune

    paths = asked.data or []
    if len(paths) > 2:
        raise PromptError(f"tune: {len(paths)} files. Give one that is split, or two: calibration and test.")
    if not task and not paths:
        raise PromptError(f"tune {model}: what to ask? Name a --task, or give questions of your own with --data FILE.")
    task = task or paths[0].stem
    source = None if not paths else paths[0] if len(paths) == 1 else (paths[0], paths[1])
    parts = tasks.load(task, source, calibration=asked.calibration, test=asked.test, seed=asked.seed)
    settings = ZeroTuningSettings(
        mode=how.mode, profile_by=how.profile_by, heads=how.heads, share=how.share, keys=how.keys,
        batch_size=how.batch_size,
    )  # fmt: skip
    loaded = load(model, loading or ModelOptions())
    result = zerotune(loaded, tasks.in_chat(parts, loaded) if asked.chat else parts, settings)
    file.save(result.to_dataset())
    print(result.summary())
    print(f"Saved {target}: test scores, curve over gamma, profile of the heads.\nNext: sinkscope show {target}")
