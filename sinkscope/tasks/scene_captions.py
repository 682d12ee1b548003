"""Held-out pictures to be described, what is in them, and which words of a description name what."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from sinkscope import metrics
from sinkscope.errors import PromptError
from sinkscope.metrics.answers import spans_named
from sinkscope.prompts import Prompts
from sinkscope.roles import ROLE_INDEX
from sinkscope.tasks import scenes as made
from sinkscope.tasks.scene_questions import FIRST, held_out_scenes, scale_for

if TYPE_CHECKING:
    from sinkscope.models.handle import Model

NAMES = {f"{colour} {shape}": f"{colour} {shape}" for colour in made.COLOURS for shape in made.SHAPES}
"""Phrase -> object: a shape of a picture is told by its colour and its kind together, of which no two agree in both."""


@dataclass(frozen=True, eq=False)
class SceneCaptions:
    """Held-out pictures and the request to describe them.

    Attributes:
        prompts: The request with each picture.
        scenes: The pictures, in the same order.
    """

    prompts: Prompts
    scenes: tuple[made.Scene, ...]

    @property
    def present(self) -> list[set[str]]:
        """What is in each picture, such as ``"red circle"``."""
        return [{f"{thing.colour} {thing.shape}" for thing in scene.things} for scene in self.scenes]

    def score(self, texts: Sequence[str]) -> xr.Dataset:
        """Return :func:`metrics.chair` of descriptions, and the ``length`` of each in words (prompt).

        An object is a phrase of colour and shape, such as ``"red circle"``; where it is said to lie does not count.

        Raises:
            PromptError: as many descriptions as pictures are needed.
        """
        if len(texts) != len(self.scenes):
            raise PromptError(
                f"SceneCaptions.score: {len(texts)} descriptions of {len(self.scenes)} pictures. Give one each, such "
                "as written_texts(model, generate(model, captions.prompts))."
            )
        found = metrics.chair([metrics.objects_named(text, NAMES) for text in texts], self.present)
        return found.assign(length=("prompt", [float(len(text.split())) for text in texts]))

    def words(self, model: Model, written: Prompts) -> xr.Dataset:
        """Return what each generated token belongs to, dims (prompt step).

        ``mention`` is the number of the phrase in its description that the token is part of, -1 where it is none;
        ``starts`` whether it begins a word of that phrase; ``there`` whether that object is in the picture (of tokens
        of a phrase); ``text`` is what the token adds to the description.
        """
        rows = [_tokens(model, ids[roles == ROLE_INDEX["generated"]])
                for ids, roles in zip(written.ids, written.roles, strict=True)]  # fmt: skip
        shape = len(rows), max((len(row) for row in rows), default=0)
        text, mention = np.full(shape, "", dtype=object), np.full(shape, -1)
        starts, there = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        for which, (pieces, present) in enumerate(zip(rows, self.present, strict=True)):
            text[which, : len(pieces)] = pieces
            ends = np.cumsum([len(piece) for piece in pieces])
            whole = "".join(pieces)
            for number, (name, start, end) in enumerate(spans_named(whole, NAMES)):
                inside = (ends > start) & (ends - [len(piece) for piece in pieces] < end)
                mention[which, : len(pieces)][inside] = number
                there[which, : len(pieces)][inside] = name in present
                begins = [start, *(i + 1 for i in range(start, end) if whole[i].isspace())]
                starts[which, [int(np.argmax(ends > place)) for place in begins]] = True
        dims = ("prompt", "step")
        columns = {"mention": mention, "starts": starts, "there": there, "text": text.astype(str)}
        coords = {"prompt": np.arange(shape[0]), "step": np.arange(shape[1])}
        return xr.Dataset({name: (dims, values) for name, values in columns.items()}, coords)


def scene_captions(
    model: Model, n: int = 64, *, seed: int = 0, grain: float = 0.0, scale: int | None = None,
    pictures: str | None = None,
) -> SceneCaptions:  # fmt: skip
    """Ask for descriptions of ``n`` held-out pictures, as the zoo's models were trained to give them.

    Args:
        model: A vision-language model with a processor.
        n: Number of pictures.
        seed: Decides the pictures, and their grain.
        grain: Standard deviation of noise that is added to every pixel and colour (0 to 255), for a model that
            describes clean pictures without an error.
        scale: As for :func:`scene_questions`.
        pictures: As for :func:`scene_questions`.

    Raises:
        PromptError: another kind of picture, or a photograph's package is not installed.
    """
    kind, size = scale_for(model, pictures, scale)
    scenes = held_out_scenes(kind, n, seed, 2 * FIRST, "scene_captions")
    rng = np.random.default_rng([seed, 13])
    if grain:
        scenes = tuple(
            dataclasses.replace(scene, pixels=_noisy(scene.pixels, grain, rng)) for scene in scenes
        )  # fmt: skip
    items = [{"image": scene.image(size), "text": made.describe(scene)[0]} for scene in scenes]
    return SceneCaptions(Prompts.from_chat(items, model), scenes)


def _noisy(pixels: np.ndarray, grain: float, rng: np.random.Generator) -> np.ndarray:
    return (pixels + rng.normal(0, grain, pixels.shape)).clip(0, 255).astype(np.uint8)


def _tokens(model: Model, ids: np.ndarray) -> list[str]:
    """What each token adds to the text before it: a tokenizer may write a space in front of some words alone."""
    assert model.tokenizer is not None
    texts = [str(model.tokenizer.decode(ids[: end + 1], skip_special_tokens=True)) for end in range(len(ids))]
    return [text[len(before) :] for before, text in zip(["", *texts], texts, strict=False)]
