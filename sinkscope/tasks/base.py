"""What a task is: questions with options and one answer, in a calibration part and a test part that share nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sinkscope.errors import PromptError


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        prompt: text that the answer continues, without a blank at its end.
        options: texts that might follow, the right one among them; a blank in front belongs to the option.
        answer: place of the right option.
        focus: part of the prompt that matters most, such as the sentence to be judged; what PASTA turns attention to.

    Raises:
        PromptError: no prompt, fewer than two options, options that repeat, an answer or focus that is not there.
    """

    prompt: str
    options: tuple[str, ...]
    answer: int
    focus: str = ""

    def __post_init__(self) -> None:
        """Check the question."""
        object.__setattr__(self, "options", tuple(self.options))
        asked = f"Item({self.prompt[:40]!r}...)"
        if not self.prompt.strip():
            raise PromptError("Item: the prompt is empty. Give the text that the answer continues.")
        if len(self.options) < 2 or len(set(self.options)) < len(self.options) or not all(self.options):
            raise PromptError(f"{asked}: options are {list(self.options)}. Give two or more different texts.")
        if not 0 <= self.answer < len(self.options):
            raise PromptError(
                f"{asked}: the answer is option {self.answer}, but there are options 0..{len(self.options) - 1}. "
                "Give the place of the right one."
            )
        if self.focus not in self.prompt:
            raise PromptError(f"{asked}: the focus {self.focus[:40]!r} is no part of the prompt. Copy it from there.")


@dataclass(frozen=True)
class Task:
    """Questions to calibrate on, and others to test on.

    Attributes:
        name: short name, such as ``"sst2"``.
        calibration: questions that a procedure may choose its settings with.
        test: questions that are answered once, with settings chosen before.
        source: where the questions are from, in words.

    Raises:
        PromptError: a part is empty, or a prompt is in both.
    """

    name: str
    calibration: tuple[Item, ...]
    test: tuple[Item, ...]
    source: str = ""

    def __post_init__(self) -> None:
        """Refuse a test that has been seen."""
        object.__setattr__(self, "calibration", tuple(self.calibration))
        object.__setattr__(self, "test", tuple(self.test))
        for part in ("calibration", "test"):
            if not getattr(self, part):
                raise PromptError(f"Task({self.name!r}): the {part} part is empty. Give at least one question.")
        seen = {_key(item) for item in self.calibration}
        shared = [item for item in self.test if _key(item) in seen]
        if shared:
            raise PromptError(
                f"Task({self.name!r}): {len(shared)} of {len(self.test)} test questions are in the calibration part "
                f"too, first {shared[0].prompt[:40]!r}. A score on them would be no test: take them out of one part, "
                "or use Task.split."
            )

    @staticmethod
    def split(
        name: str, items: Iterable[Item], *, calibration: int, test: int, seed: int = 42, source: str = ""
    ) -> Task:
        """Draw two parts that share no prompt; a prompt that is there twice is taken once.

        Args:
            name: name of the task.
            items: all questions.
            calibration: how many to calibrate on.
            test: at most how many to test on.
            seed: of the draw.
            source: where the questions are from.

        Raises:
            PromptError: not enough different questions for a calibration part of this size and one test question.
        """
        known = list({_key(item): item for item in items}.values())
        if calibration < 1 or len(known) <= calibration:
            raise PromptError(
                f"Task.split({name!r}, calibration={calibration}): there are {len(known)} different questions. "
                "Give more, or ask for fewer, so that some are left for the test."
            )
        order = np.random.default_rng(seed).permutation(len(known)).tolist()
        parts = order[:calibration], order[calibration : calibration + test]
        first, second = ([known[i] for i in part] for part in parts)
        return Task(name, tuple(first), tuple(second), source)

    @property
    def chance(self) -> float:
        """Accuracy on the test part of one who picks an option blindly: mean of 1 / number of options."""
        return float(np.mean([1 / len(item.options) for item in self.test]))

    def first(self, calibration: int, test: int) -> Task:
        """Return the first questions of both parts."""
        return Task(self.name, self.calibration[:calibration], self.test[:test], self.source)


def balanced(items: Sequence[Item], count: int, seed: int = 42) -> list[Item]:
    """Draw up to ``count`` questions with as many of each answer text as of any other, if ``count`` allows."""
    rng = np.random.default_rng(seed)
    groups: dict[str, list[Item]] = {}
    for place in rng.permutation(len(items)).tolist():
        item = items[place]
        groups.setdefault(item.options[item.answer], []).append(item)
    each = min([max(count // max(len(groups), 1), 1), *(len(group) for group in groups.values())])
    kept = [item for name in sorted(groups) for item in groups[name][:each]]
    return [kept[i] for i in rng.permutation(len(kept)).tolist()[:count]]


def _key(item: Item) -> str:
    return " ".join(item.prompt.split())
