"""Labelled tasks in plain English that need no download, of the kinds that Han et al. 2025 report on.

Sentences are put together from word lists of this project, so a task is no benchmark: it is easy, its labels are right
by construction, and a model's accuracy on it can be compared with nothing but the same model's under an edit.
``sentiment`` stands for SST-2 and MR, ``topic`` for classification by subject, ``inference`` for CB and BoolQ,
``choice`` for the multiple-choice sets, with words instead of letters. Each text has a sentence that decides and one
that does not; the first is the question's focus, of ``choice`` the question itself. No focus holds an option, so that
steering to it tells no answer. Ask instruction-tuned models through :func:`sinkscope.tasks.in_chat`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from sinkscope import registry
from sinkscope.errors import PromptError, did_you_mean
from sinkscope.tasks.base import Item, Task, balanced

POOL = 1200
"""Questions that are made before a balanced draw."""
THINGS = ("film", "soup", "hotel", "book", "concert", "museum", "hike", "game", "play", "cake", "show", "meal")
GOOD = (
    "delicious", "wonderful", "excellent", "charming", "brilliant", "superb", "delightful", "perfect", "lovely",
    "amazing",
)  # fmt: skip
BAD = ("awful", "terrible", "dreadful", "boring", "disgusting", "horrible", "dull", "ugly", "poor", "disappointing")
ASIDES = (
    "We went on a Tuesday.", "My brother came along.", "It was raining outside.", "We paid by card.",
    "The bus was on time.", "We sat near the door.",
)  # fmt: skip
TOPICS = {
    "Sports": (
        "The striker scored twice in the {} final.", "The {} team won the championship after overtime.",
        "The {} runner broke the world record.", "The coach praised the {} goalkeeper.",
    ),
    "Business": (
        "The {} company's shares fell after weak profits.", "The {} bank raised its interest rate.",
        "The {} firm bought its rival for a billion dollars.", "Sales at the {} retailer rose this quarter.",
    ),
    "Science": (
        "The {} telescope found a new planet.", "{} scientists studied the cells of the frog.",
        "The {} experiment measured the speed of light.", "{} researchers sequenced the genome of a plant.",
    ),
    "Politics": (
        "The {} president signed the new law.", "{} voters elected a new parliament.",
        "The {} minister resigned after the vote.", "The {} senate debated the treaty.",
    ),
}  # fmt: skip
PLACES = ("French", "German", "Italian", "Spanish", "Polish", "Dutch", "Swedish", "Greek", "Turkish", "Japanese")
REPORTED = ("The news came on Monday.", "Nobody expected it.", "The details are not known.", "More will follow soon.")
NAMES = ("Anna", "Tom", "Maria", "Peter", "Lucy", "Sam", "Emma", "Paul")
COLOURS = ("red", "blue", "green", "black", "white", "yellow")
OWNED = ("car", "dog", "hat", "book", "cup", "coat", "boat", "chair")
KINDS = {
    "an animal": ("dog", "horse", "tiger", "rabbit", "sheep", "cow", "lion"),
    "a fruit": ("apple", "banana", "grape", "peach", "mango", "cherry", "lemon"),
    "a tool": ("hammer", "drill", "wrench", "saw", "axe", "knife", "file"),
    "a color": ("red", "blue", "green", "purple", "yellow", "white", "orange"),
    "a country": ("France", "Japan", "Brazil", "Egypt", "Canada", "Norway", "Peru"),
    "a vehicle": ("car", "train", "ship", "tractor", "bus", "plane", "van"),
}
CHOICES = 4

Maker = Callable[[np.random.Generator], Item]
"""Makes one question."""


def english(name: str, *, calibration: int = 100, test: int = 200, seed: int = 42) -> Task:
    """Make a task of short English texts.

    Args:
        name: one of ``ENGLISH``.
        calibration: at most how many questions to calibrate on.
        test: at most how many others to test on.
        seed: of the words; labels are drawn evenly.

    Raises:
        PromptError: no such task, or not that many different questions.
    """
    if name not in ENGLISH:
        raise PromptError(
            f"english({name!r}): there is no such task. Tasks are {sorted(ENGLISH)}.{did_you_mean(name, ENGLISH)}"
        )
    rng = np.random.default_rng(seed)
    pool = list({item.prompt: item for item in _several(ENGLISH[name], rng)}.values())
    # Multiple choice has answers of its own in each question: even labels are for fixed ones.
    drawn = pool if name == "choice" else balanced(pool, calibration + test + CHOICES, seed)
    if len(drawn) <= calibration:
        raise PromptError(
            f"english({name!r}, calibration={calibration}): there are {len(drawn)} different questions with as many "
            "of each answer. Ask for fewer, so that some are left for the test."
        )
    return Task(
        name, tuple(drawn[:calibration]), tuple(drawn[calibration : calibration + test]), "English sentences made here"
    )


def _several(make: Maker, rng: np.random.Generator) -> Iterator[Item]:
    return (make(rng) for _ in range(POOL))


def _sentiment(rng: np.random.Generator) -> Item:
    answer = int(rng.integers(2))
    told = f"The {_one(rng, THINGS)} was {_one(rng, (BAD, GOOD)[answer])}."
    prompt = f"{_beside(rng, told, ASIDES)} Did they love it or hate it? Answer with one word."
    return Item(prompt, (" Hate", " Love"), answer, told)


def _topic(rng: np.random.Generator) -> Item:
    labels = tuple(TOPICS)
    answer = int(rng.integers(len(labels)))
    told = _one(rng, TOPICS[labels[answer]]).format(_one(rng, PLACES))
    prompt = (
        f"Classify the text as {', '.join(labels[:-1]).lower()} or {labels[-1].lower()}.\n"
        f"Text: {_beside(rng, told, REPORTED)}\nAnswer with one word."
    )
    return Item(prompt, tuple(f" {label}" for label in labels), answer, told)


def _inference(rng: np.random.Generator) -> Item:
    answer = int(rng.integers(2))
    (who, other), (is_so, not_so), (what, else_) = (rng.permutation(w)[:2] for w in (NAMES, COLOURS, OWNED))
    told = f"{who} has a {is_so} {what}."
    asked = f"Does {who} have a {(is_so, not_so)[answer]} {what}?"
    beside = _beside(rng, told, (f"{other} has a {_one(rng, COLOURS)} {else_}.",))
    return Item(f"{beside} {asked} Answer Yes or No.", (" Yes", " No"), answer, told)


def _choice(rng: np.random.Generator) -> Item:
    while True:
        kind, *others = rng.permutation(list(KINDS))[:CHOICES].tolist()
        right = _one(rng, KINDS[kind])
        words = [right, *(_one(rng, KINDS[name]) for name in others)]
        if len({word[0].lower() for word in words}) == CHOICES and not any(w in KINDS[kind] for w in words[1:]):
            break
    words = [word.capitalize() for word in rng.permutation(words).tolist()]
    asked = f"Which is {kind}?"
    prompt = f"{', '.join(words[:-1])} or {words[-1]}. {asked} Answer with one word."
    return Item(prompt, tuple(f" {word}" for word in words), words.index(right.capitalize()), asked)


def _one(rng: np.random.Generator, among: tuple[str, ...]) -> str:
    return among[int(rng.integers(len(among)))]


def _beside(rng: np.random.Generator, told: str, others: tuple[str, ...]) -> str:
    """Put a sentence that decides nothing before or after the one that decides."""
    aside = _one(rng, others)
    return f"{told} {aside}" if rng.integers(2) else f"{aside} {told}"


ENGLISH: dict[str, Maker] = {
    "sentiment": _sentiment, "topic": _topic, "inference": _inference, "choice": _choice,
}  # fmt: skip
"""Tasks by name."""
SUMMARY = {
    "sentiment": "whether a short review loves or hates",
    "topic": "which of four subjects a report is about",
    "inference": "whether a statement follows from a text",
    "choice": "which of four words is of a kind",
}
"""What each task asks."""

for _name in ENGLISH:
    registry.register("task", partial(english, _name), _name, summary=SUMMARY[_name], module=__name__)
