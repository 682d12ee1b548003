"""The fourteen benchmarks of Han et al. 2025 (Tables 1 and 2), from the hub or from a file in the same format.

Each row becomes one question: an instruction that names the labels, the input fields, a cue. The papers give the shape
of their prompts, not their words; the words here are this project's own. Labels follow a blank, so that tokenizers that
keep the blank with the word score the word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from sinkscope import registry
from sinkscope.errors import PromptError, did_you_mean
from sinkscope.tasks.base import Item, Task
from sinkscope.tasks.english import ENGLISH
from sinkscope.tasks.files import Source, Split, from_files, from_hub, plain_item
from sinkscope.tasks.offline import FIXED_LABELS, OFFLINE

if TYPE_CHECKING:
    from sinkscope.models.handle import Model

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark lies on the hub, and how a row of it becomes a question.

    Attributes:
        path: dataset on the hub.
        item: makes a question of a row; None for a row without a label.
        config: configuration of the dataset.
        parts: splits for calibration and for the test. The second is the one with labels that papers report on.
        revision: branch; those with a loading script are read from the hub's own conversion.
    """

    path: str
    item: Callable[[Row], Item | None]
    config: str | None = None
    parts: tuple[str, str] = ("train", "validation")
    revision: str | None = None


CONVERTED = "refs/convert/parquet"
"""Branch on which the hub keeps the rows of a dataset that has a loading script."""


def load(name: str, source: Source | None = None, *, calibration: int = 100, test: int = 500, seed: int = 42) -> Task:
    """Read a task.

    Args:
        name: one of ``BENCHMARKS``, ``OFFLINE`` or ``ENGLISH``, or a task of another package; or any name together with
            ``source``, a file whose rows have the columns ``prompt``, ``options``, ``answer`` and perhaps ``focus``, as
            :class:`Item` has.
        source: None for the hub (needs a network or a filled cache); a JSON-lines or parquet file in the benchmark's
            own format, which is split here; or a pair of files, calibration and test.
        calibration: at most how many questions to calibrate on.
        test: at most how many questions to test on (the paper takes 500).
        seed: of the draw (the released code takes 42).

    Raises:
        PromptError: no such benchmark; ``datasets`` is missing or has no access; a file that cannot be read or lacks a
            column; parts that share a prompt.
    """
    if source is not None:
        make = BENCHMARKS[name].item if name in BENCHMARKS else plain_item
        return from_files(name, source, make, calibration, test, seed)
    makers = registry.Table("task")
    if name not in makers:
        raise PromptError(
            f"load({name!r}): there is no such task. Benchmarks are {sorted(BENCHMARKS)}, tasks made here "
            f"{sorted([*OFFLINE, *ENGLISH])}; a file of your own is named with source=.{did_you_mean(name, makers)}"
        )
    return makers[name](calibration=calibration, test=test, seed=seed)


def benchmark(name: str, *, calibration: int = 100, test: int = 500, seed: int = 42) -> Task:
    """Read one of ``BENCHMARKS`` from the hub; arguments and errors are those of :func:`load`."""
    known = BENCHMARKS[name]
    parts = [
        from_hub(Split(known.path, known.config, part, known.revision), known.item, count, seed)
        for part, count in zip(known.parts, (calibration, test), strict=True)
    ]
    return Task(name, tuple(parts[0]), _unseen(parts[1], parts[0]), f"hub: {known.path}")


def _unseen(items: Sequence[Item], seen: Sequence[Item]) -> tuple[Item, ...]:
    """Leave out of a published test split what its own training split holds too (some do)."""
    prompts = {" ".join(item.prompt.split()) for item in seen}
    return tuple(item for item in items if " ".join(item.prompt.split()) not in prompts)


def _labelled(
    instruction: str, fields: Mapping[str, str], labels: Sequence[str], column: str = "label", cue: str = "Answer:"
) -> Callable[[Row], Item | None]:
    """Questions with the same labels in every row; ``fields`` maps what is written before a field to its column."""

    def make(row: Row) -> Item | None:
        answer = int(row[column])
        if answer < 0:
            return None
        texts = {said: str(row[name]).strip() for said, name in fields.items()}
        body = "\n".join(f"{said}: {text}" for said, text in texts.items())
        focus = next(iter(texts.values()))
        return Item(f"{instruction}\n{body}\n{cue}", tuple(f" {label}" for label in labels), answer, focus)

    return make


def _lettered(question: str, choices: Sequence[str], answer: int, context: str = "") -> Item:
    """A question whose options are written out with letters, and answered by a letter."""
    letters = [chr(ord("A") + i) for i in range(len(choices))]
    listed = "\n".join(f"{letter}. {str(text).strip()}" for letter, text in zip(letters, choices, strict=True))
    named = f"{', '.join(letters[:-1])} or {letters[-1]}"
    before = f"Context: {context.strip()}\n" if context else ""
    question = question.strip()
    prompt = f"Choose the right answer: {named}.\n{before}Question: {question}\n{listed}\nAnswer:"
    return Item(prompt, tuple(f" {letter}" for letter in letters), answer, question)


def _mmlu(row: Row) -> Item:
    return _lettered(row["question"], list(row["choices"]), int(row["answer"]))


def _keyed(row: Row) -> Item | None:
    """CommonsenseQA and ARC: choices with labels of their own, letters or numbers."""
    labels = [str(label) for label in row["choices"]["label"]]
    if str(row["answerKey"]) not in labels:
        return None
    return _lettered(row["question"], list(row["choices"]["text"]), labels.index(str(row["answerKey"])))


def _aqua(row: Row) -> Item:
    texts = [re.sub(r"^\s*[A-E]\s*\)\s*", "", option) for option in row["options"]]
    return _lettered(row["question"], texts, ord(row["correct"].strip().upper()) - ord("A"))


def _mathqa(row: Row) -> Item:
    # One string: "a ) 38 , b ) 27.675 , c ) 30 , d ) data inadequate , e ) none of these".
    texts = [part.strip(" ,[]'\"") for part in re.split(r"(?:^|,)[\s\['\"]*[a-e]\s*\)", row["options"])[1:]]
    return _lettered(row["Problem"], texts, ord(row["correct"].strip().lower()) - ord("a"))


def _logiqa(row: Row) -> Item:
    return _lettered(row["query"], list(row["options"]), int(row["correct_option"]), row["context"])


def _piqa(row: Row) -> Item | None:
    return None if int(row["label"]) < 0 else _lettered(row["goal"], [row["sol1"], row["sol2"]], int(row["label"]))


GRADES = ("terrible", "bad", "okay", "good", "great")
QUESTION_TYPES = ("abbreviation", "entity", "description", "person", "location", "number")
_SENTIMENT = "Classify the sentiment of the text as negative or positive."

BENCHMARKS: dict[str, Benchmark] = {
    "sst2": Benchmark("stanfordnlp/sst2", _labelled(_SENTIMENT, {"Text": "sentence"}, ("negative", "positive"))),
    "sst5": Benchmark(
        "SetFit/sst5",
        _labelled(f"Grade the sentiment of the text as {', '.join(GRADES[:-1])} or great.", {"Text": "text"}, GRADES),
        parts=("train", "test"),
    ),
    "mr": Benchmark(
        "cornell-movie-review-data/rotten_tomatoes",
        _labelled(_SENTIMENT, {"Text": "text"}, ("negative", "positive")), parts=("train", "test"),
    ),
    "subj": Benchmark(
        "SetFit/subj",
        _labelled("Say whether the text is objective or subjective.", {"Text": "text"}, ("objective", "subjective")),
        parts=("train", "test"),
    ),
    "trec": Benchmark(
        "CogComp/trec",
        _labelled(
            f"Say what the question asks for: {', '.join(QUESTION_TYPES[:-1])} or number.", {"Question": "text"},
            QUESTION_TYPES, "coarse_label",
        ),
        parts=("train", "test"), revision=CONVERTED,
    ),
    "cb": Benchmark(
        "aps/super_glue",
        _labelled(
            "Does the premise imply the hypothesis? Answer Yes, No or Maybe.",
            {"Premise": "premise", "Hypothesis": "hypothesis"}, ("Yes", "No", "Maybe"),
        ),
        config="cb",
    ),
    "boolq": Benchmark(
        "google/boolq",
        _labelled(
            "Is the answer to the question True or False?", {"Passage": "passage", "Question": "question"},
            ("False", "True"), "answer",
        ),
    ),
    "mmlu": Benchmark("cais/mmlu", _mmlu, config="all", parts=("validation", "test")),
    "aqua": Benchmark("deepmind/aqua_rat", _aqua, config="raw", parts=("validation", "test")),
    "mathqa": Benchmark("allenai/math_qa", _mathqa, parts=("validation", "test"), revision=CONVERTED),
    "logiqa": Benchmark("lucasmccabe/logiqa", _logiqa, parts=("validation", "test"), revision=CONVERTED),
    "cqa": Benchmark("tau/commonsense_qa", _keyed),
    "piqa": Benchmark("ybisk/piqa", _piqa, revision=CONVERTED),
    "arc-c": Benchmark("allenai/ai2_arc", _keyed, config="ARC-Challenge", parts=("validation", "test")),
}  # fmt: skip
"""Benchmarks by name. Label numbers are those of the datasets: 0 is the first label."""

for _name, _known in BENCHMARKS.items():
    registry.register("task", partial(benchmark, _name), _name, summary=f"hub: {_known.path}", module=__name__)

CLASSIFICATION = ("sst2", "sst5", "mr", "boolq", "cb", "trec", "subj")
"""Columns of Table 1 of Han et al. 2025."""
MULTIPLE_CHOICE = ("mmlu", "aqua", "mathqa", "logiqa", "cqa", "piqa", "arc-c")
"""Columns of Table 2 of Han et al. 2025."""


def suited(model: Model, *names: str) -> tuple[str, ...]:
    """Names of tasks for this model: ``names`` of benchmarks; for a model of the zoo those made here, which it can do.

    Without the network (``HF_HUB_OFFLINE`` is set) every model gets those made here.

    A name stands for its kind: with one of ``CLASSIFICATION`` among ``names`` come the offline tasks with fixed labels,
    with one of ``MULTIPLE_CHOICE`` those with options of their own.
    """
    from huggingface_hub import constants

    if not (model.id.startswith("zoo:") or constants.HF_HUB_OFFLINE):
        return names
    kinds = {CLASSIFICATION: FIXED_LABELS, MULTIPLE_CHOICE: tuple(n for n in OFFLINE if n not in FIXED_LABELS)}
    return tuple(task for kind, tasks in kinds.items() if set(kind) & set(names) for task in tasks)
