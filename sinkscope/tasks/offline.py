"""Tasks that need no download: made of Python source code held out from the training of ``zoo:lm-python``.

The text is the standard library of the running interpreter; whole files are held out, and calibration and test
questions come from different ones. Classification: ``brackets``, ``keywords``, ``operators``; multiple choice:
``cloze``, ``copy``; see ``SUMMARY``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from sinkscope import registry
from sinkscope.errors import PromptError, did_you_mean
from sinkscope.tasks import corpora
from sinkscope.tasks.base import Item, Task, balanced

BEFORE = 160
"""Characters of source code that stand before a question's answer."""
NAME = "[abcdefilmnoprstw][a-z_]{2,8}"
"""Names that options are made of: those whose first letter a tokenizer has together with the blank before it."""
LIST_WORDS = 8
"""Words of the list that the task ``copy`` says twice."""
PER_FILE = 40
"""Questions that one file gives at most."""
CHOICES = 4
"""Options of a multiple-choice question."""
KEYWORDS = (" return", " if", " for", " self")
OPERATORS = (" =", " in", " is", " and")
SUMMARY = {
    "brackets": "which bracket closes",
    "keywords": "with which word a line starts",
    "operators": "what follows a name",
    "cloze": "the next name, against names of the same file",
    "copy": "the next word of a list that is said twice",
}
"""What each task asks."""
FIXED_LABELS = ("brackets", "keywords", "operators")
"""Tasks whose questions all have the same options; they are drawn with as many of each answer."""

Maker = Callable[[str, np.random.Generator], Iterator[Item]]
"""Makes questions of one text."""


def offline(name: str, *, calibration: int = 200, test: int = 400, seed: int = 42) -> Task:
    """Make a task of held-out source code.

    Args:
        name: one of ``OFFLINE``.
        calibration: at most how many questions to calibrate on.
        test: at most how many questions to test on.
        seed: of the choice of files, options and questions.

    Raises:
        PromptError: no such task.
        ModelError: this Python has no source code of its standard library.
    """
    if name not in OFFLINE:
        raise PromptError(
            f"offline({name!r}): there is no such task. Tasks are {sorted(OFFLINE)}.{did_you_mean(name, OFFLINE)}"
        )
    make = OFFLINE[name]
    texts = corpora.code()
    rng = np.random.default_rng(seed)
    texts = [texts[i] for i in rng.permutation(len(texts)).tolist()]
    parts = []
    seen: set[str] = set()
    for share, count in ((texts[::3], calibration), ([t for i, t in enumerate(texts) if i % 3], test)):
        found = [item for text in share for item in make(text, rng)]
        fresh = list({item.prompt: item for item in found if item.prompt not in seen}.values())
        seen |= {item.prompt for item in fresh}
        parts.append(_drawn(fresh, count, name in FIXED_LABELS, seed))
    return Task(name, tuple(parts[0]), tuple(parts[1]), "held-out Python standard library")


def _drawn(items: Sequence[Item], count: int, even: bool, seed: int) -> list[Item]:
    if even:
        return balanced(items, count, seed)
    order = np.random.default_rng(seed).permutation(len(items))[:count].tolist()
    return [items[i] for i in order]


def _brackets(text: str, rng: np.random.Generator) -> Iterator[Item]:
    options = (")", "]", "}")
    for match in _some(r"(?<=\w)[)\]}]", text, rng):
        yield _labelled(text, match.start(), options, match.group())


def _keywords(text: str, rng: np.random.Generator) -> Iterator[Item]:
    # The last blank of the indent belongs to the word, so the prompt ends before it.
    for match in _some(r"\n {3,}(?P<word> (?:return|if|for|self))\b", text, rng):
        yield _labelled(text, match.start("word"), KEYWORDS, match.group("word"))


def _operators(text: str, rng: np.random.Generator) -> Iterator[Item]:
    for match in _some(r"(?<=\w)(?P<word> (?:=|in|is|and))(?= )", text, rng):
        yield _labelled(text, match.start("word"), OPERATORS, match.group("word"))


def _cloze(text: str, rng: np.random.Generator) -> Iterator[Item]:
    names = sorted(set(re.findall(rf"(?<= ){NAME}\b", text)))
    for match in _some(rf"(?<=\S)(?P<word> {NAME})\b", text, rng):
        others = _starting_differently(names, match.group("word").strip(), rng)
        if len(others) == CHOICES - 1:
            options = [match.group("word"), *(f" {word}" for word in others)]
            order = rng.permutation(CHOICES).tolist()
            yield _labelled(text, match.start("word"), [options[i] for i in order], match.group("word"))


def _copy(text: str, rng: np.random.Generator) -> Iterator[Item]:
    names = sorted(set(re.findall(rf"(?<= ){NAME}\b", text)))
    for _ in range(4):
        words = _starting_differently(names, "", rng, LIST_WORDS)
        if len(words) < LIST_WORDS:
            return
        at = int(rng.integers(2, LIST_WORDS))
        said = ", ".join(words)
        others = [w for i, w in enumerate(words) if i != at]
        chosen = [words[at], *rng.permutation(others)[: CHOICES - 1].tolist()]
        options = tuple(f" {chosen[i]}" for i in rng.permutation(CHOICES).tolist())
        prompt = f"{said}, {', '.join(words[:at])},"
        yield Item(prompt, options, options.index(f" {words[at]}"), said)


def _some(pattern: str, text: str, rng: np.random.Generator) -> Iterator[re.Match[str]]:
    """Some places that match, drawn at random, with enough text before them: a long file shall not outweigh others."""
    places = [match for match in re.finditer(pattern, text) if match.start() >= BEFORE]
    yield from (places[i] for i in rng.permutation(len(places))[:PER_FILE].tolist())


def _starting_differently(
    names: Sequence[str], than: str, rng: np.random.Generator, count: int = CHOICES - 1
) -> list[str]:
    """Draw names whose first letters differ from one another and from that of ``than``, so that first tokens do."""
    taken, found = {than[:1].lower()}, []
    for place in rng.permutation(len(names)).tolist():
        word = names[place]
        if word[0].lower() not in taken:
            taken.add(word[0].lower())
            found.append(word)
        if len(found) == count:
            break
    return found


def _labelled(text: str, at: int, options: Sequence[str], answer: str) -> Item:
    prompt = text[at - BEFORE : at]
    line = prompt[prompt.rfind("\n", 0, len(prompt.rstrip())) + 1 :]
    return Item(prompt, tuple(options), list(options).index(answer), line)


OFFLINE: dict[str, Maker] = {
    "brackets": _brackets, "keywords": _keywords, "operators": _operators, "cloze": _cloze, "copy": _copy,
}  # fmt: skip
"""Tasks by name."""

for _name in OFFLINE:
    registry.register("task", partial(offline, _name), _name, summary=SUMMARY[_name], module=__name__)
