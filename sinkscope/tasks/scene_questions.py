"""Held-out pictures with questions as prompts of any vision-language model, and which visual tokens show what."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from sinkscope.errors import PromptError
from sinkscope.files import replacing
from sinkscope.prompts import Prompts
from sinkscope.roles import ROLE_INDEX
from sinkscope.tasks import photo_scenes
from sinkscope.tasks import scenes as made
from sinkscope.tasks.examples import Examples

if TYPE_CHECKING:
    from sinkscope.models.handle import Model

BOX = ("box_left", "box_top", "box_right", "box_bottom")
FIRST = 4096
"""Held-out scenes are numbered; examples start here, so that they meet none that the recipe measures itself on."""

SHOWN = {"zoo:vlm-smol": "photographs", "zoo:vlm-smol-sinks": "photographs"}
"""Models that were trained on another kind of picture than ``"shapes"``, the small ones of :mod:`scenes`."""


@dataclass(frozen=True, eq=False)
class SceneQuestions:
    """Questions about held-out pictures.

    Attributes:
        examples: Prompts, and the token that answers each.
        questions: What is asked.
        scenes: The pictures, in the same order.
        scale: Pixels of the prompt's image per pixel of the scene, along each side.
    """

    examples: Examples
    questions: tuple[made.Question, ...]
    scenes: tuple[made.Scene, ...]
    scale: int

    @property
    def prompts(self) -> Prompts:
        """The prompts of the examples."""
        return self.examples.prompts

    @property
    def families(self) -> list[str]:
        """Family of each question."""
        return [question.family for question in self.questions]

    def covered(self, reading: xr.Dataset, what: str = "any") -> xr.DataArray:
        """Share of each visual token's pixels that show a shape; float (prompt key), NaN for other tokens.

        Args:
            reading: A reading of these prompts, whose coordinates say where each token lies.
            what: ``"any"`` shape, or the one the question is ``"about"`` (0 everywhere when it is about none).

        Raises:
            PromptError: the reading is of other prompts, or its tokens have no place on the picture.
        """
        if reading.sizes["prompt"] != len(self.scenes) or any(name not in reading.coords for name in BOX):
            raise PromptError(
                f"SceneQuestions.covered: expected a reading of these {len(self.scenes)} prompts with the coordinates "
                f"{', '.join(BOX)}. Run the probes on the prompts of these questions."
            )
        boxes = np.stack([reading[name].transpose("prompt", "key").values for name in BOX], -1) / self.scale
        found = np.full(boxes.shape[:2], np.nan)
        for row, (scene, question) in enumerate(zip(self.scenes, self.questions, strict=True)):
            shown = (
                scene.owner >= 0 if what == "any" else scene.owner == (-9 if question.about is None else question.about)
            )
            for key in np.flatnonzero(np.isfinite(boxes[row]).all(-1)):
                left, top, right, bottom = boxes[row, key]
                inside = shown[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))]
                found[row, key] = inside.mean() if inside.size else np.nan
        coords = {"prompt": reading["prompt"], "token_role": reading["token_role"]}
        return xr.DataArray(found, dims=("prompt", "key"), coords=coords, name=f"covered_{what}")

    def background(self, reading: xr.Dataset) -> xr.DataArray:
        """Visual tokens less than half of whose pixels show a shape: bool (prompt key)."""
        return (self.covered(reading) < 0.5).rename("background")


def scene_questions(
    model: Model,
    n: int = 64,
    families: Sequence[str] = tuple(made.FAMILIES),
    *,
    seed: int = 0,
    scale: int | None = None,
    pictures: str | None = None,
) -> SceneQuestions:
    """Make ``n`` questions about ``n`` held-out pictures, the families in turn.

    An answer is scored by its first token, so a family of which two answers begin with the same one (``place``, where
    the tokenizer cuts "top-left" up) is left out.

    Args:
        model: A vision-language model with a processor; its tokenizer gives the answer's first token.
        n: Number of prompts.
        families: Which questions, out of :data:`sinkscope.tasks.scenes.FAMILIES`.
        seed: Decides pictures and questions.
        scale: Enlarges the pictures; left out, to about the size that the model's tower takes.
        pictures: ``"shapes"`` (:mod:`sinkscope.tasks.scenes`) or ``"photographs"``
            (:mod:`sinkscope.tasks.photo_scenes`); left out, the kind that the model was trained on, where that is
            known, else shapes.

    Raises:
        PromptError: another kind of picture, no family is left, or a photograph's package is not installed.
    """
    kind, scale = scale_for(model, pictures, scale)
    scenes = held_out_scenes(kind, n, seed, FIRST, "scene_questions")
    rng = np.random.default_rng([seed, 11])
    families = _told_apart(model, families)
    asked = tuple(made.ask(scene, families[i % len(families)], rng) for i, scene in enumerate(scenes))
    items = [{"image": s.image(scale), "text": q.text} for s, q in zip(scenes, asked, strict=True)]
    prompts = Prompts.from_chat(items, model)
    answers = first_tokens(model, [q.text for q in asked], [q.answer for q in asked])
    return SceneQuestions(Examples(prompts, answers), asked, scenes, scale)


def write_pictures(folder: str | Path, n: int = 8, *, pictures: str = "photographs", seed: int = 0) -> list[Path]:
    """Write held-out pictures as PNG, and ``questions.jsonl`` with one question of each family about each.

    A line of ``questions.jsonl`` holds ``image`` (file name), ``text``, ``answer``, ``family`` and ``about``.

    Args:
        folder: Where they go; made if it is not there. Files of these names in it are replaced.
        n: Number of pictures.
        pictures: As for :func:`scene_questions`.
        seed: Decides pictures and questions.

    Returns:
        The pictures' files.

    Raises:
        PromptError: another kind of picture, or a photograph's package is not installed.
    """
    scenes = held_out_scenes(pictures, n, seed, 0, "write_pictures")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    rng, paths, lines = np.random.default_rng([seed, 5]), [], []
    for index, scene in enumerate(scenes):
        paths.append(target / f"{pictures}-{index:02d}.png")
        scene.image().save(paths[-1])
        for family in made.FAMILIES:
            question = dataclasses.asdict(made.ask(scene, family, rng))
            lines.append(json.dumps({"image": paths[-1].name, **question}) + "\n")
    with replacing(target / "questions.jsonl") as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
    return paths


def scale_for(model: Model, pictures: str | None = None, scale: int | None = None) -> tuple[str, int]:
    """Return the kind of picture that a model is shown, and how much it is enlarged; see :func:`scene_questions`."""
    kind = pictures or SHOWN.get(model.id, "shapes")
    if scale is not None or kind == "photographs":
        return kind, 1 if scale is None else scale
    side = getattr(getattr(model.config, "vision_config", None), "image_size", None) or 4 * made.SIDE
    return kind, max(1, int(side if isinstance(side, int) else side[0]) // made.SIDE)


def held_out_scenes(kind: str, n: int, seed: int, first: int, asked: str) -> tuple[made.Scene, ...]:
    """Return held-out pictures of a kind, numbered from ``first``; ``asked`` is who says that there is no such kind.

    Raises:
        PromptError: another kind of picture, or a photograph's package is not installed.
    """
    if kind == "photographs":
        return tuple(photo_scenes.held_out(n, first=first + (seed << 16)))
    if kind == "shapes":
        return tuple(made.held_out(n, seed, first=first))
    raise PromptError(f"{asked}(pictures={kind!r}): there are 'shapes' and 'photographs'.")


def _told_apart(model: Model, families: Sequence[str]) -> list[str]:
    """Those families of which no two answers begin with the same token."""
    firsts = {name: first_tokens(model, ["What?"] * len(made.FAMILIES[name]), made.FAMILIES[name]) for name in families}
    left = [name for name in families if len(set(firsts[name])) == len(firsts[name])]
    if not left:
        raise PromptError(
            f"scene_questions(families={list(families)}): this tokenizer begins two answers of each of them with the "
            "same token, so the first one does not tell them apart. Ask about colour."
        )
    return left


def first_tokens(model: Model, questions: Sequence[str], answers: Sequence[str]) -> tuple[int, ...]:
    """First token of each answer where the model's template puts it (after ChatML's newline, after a colon).

    Args:
        model: Whose tokenizer and template.
        questions: What is asked; one per answer.
        answers: What is answered.
    """
    items = [{"text": question, "answer": answer} for question, answer in zip(questions, answers, strict=True)]
    given = Prompts.from_chat(items, model)
    firsts = [int((roles == ROLE_INDEX["answer"]).argmax()) for roles in given.roles]
    return tuple(int(ids[first]) for ids, first in zip(given.ids, firsts, strict=True))


def received(reading: xr.Dataset) -> xr.DataArray:
    """Attention that each token gets from the rows after the picture, their mean; (prompt layer head key).

    Needs ``attention`` of a decoder.
    """
    roles = reading["token_role"].transpose("prompt", "key").values
    keys = np.arange(roles.shape[1])
    last = np.where(roles == "image", keys, -1).max(1)
    rows = (keys > last[:, None]) & (roles != "pad") & (roles != "") & (last[:, None] >= 0)
    after = xr.DataArray(rows, dims=("prompt", "query"), coords={"prompt": reading["prompt"]})
    mean = reading["attention"].where(after).mean("query")
    return mean.transpose("prompt", "layer", "head", "key").assign_attrs(long_name="attention weight", units="1")
