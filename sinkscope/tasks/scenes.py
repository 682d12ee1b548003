"""Pictures of coloured shapes on plain and textured backgrounds, and questions about them, all made from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

SIDE = 64
"""Pixels along one side of a picture."""
COLOURS = {
    "red": (214, 39, 40), "green": (44, 160, 44), "blue": (31, 80, 220),
    "yellow": (245, 215, 30), "purple": (150, 60, 190), "orange": (255, 127, 14),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross")
PLACES = (
    "top-left", "top-middle", "top-right", "middle-left", "centre", "middle-right",
    "bottom-left", "bottom-middle", "bottom-right",
)  # fmt: skip
NUMBERS = ("one", "two", "three", "four", "five")
BACKGROUNDS = ("plain", "striped", "checked", "noisy", "shaded")
FAMILIES = {"colour": tuple(COLOURS), "shape": SHAPES, "place": PLACES, "number": NUMBERS, "presence": ("yes", "no")}
"""Family of questions -> its possible answers, each a single token."""


@dataclass(frozen=True)
class Thing:
    """One shape of a picture: ``colour`` and ``shape`` by name, ``cell`` 0..8 in reading order, centre and radius."""

    colour: str
    shape: str
    cell: int
    x: float
    y: float
    radius: float


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture and what is in it.

    Attributes:
        pixels: (height, width, channel) 8-bit colours.
        owner: (height, width) index of the thing a pixel shows, -1 for background.
        things: the shapes in reading order; no two agree in both colour and shape.
        background: one of :data:`BACKGROUNDS`.
    """

    pixels: NDArray[np.uint8]
    owner: NDArray[np.int8]
    things: tuple[Thing, ...]
    background: str

    def image(self, scale: int = 1) -> Image.Image:
        """Return the picture as a PIL image, each pixel ``scale`` pixels wide and high."""
        from PIL import Image

        return Image.fromarray(self.pixels.repeat(scale, 0).repeat(scale, 1))

    def patch_owner(self, patch: int = 8) -> NDArray[np.int8]:
        """(row, column) of the thing that covers most pixels of each patch, -1 where none covers a quarter of it."""
        rows = SIDE // patch
        blocks = self.owner.reshape(rows, patch, rows, patch).swapaxes(1, 2).reshape(rows, rows, -1)
        counts = np.stack([(blocks == index).sum(-1) for index in range(len(self.things))], -1)
        best = counts.argmax(-1)
        return np.where(counts.max(-1) >= patch * patch / 4, best, -1).astype(np.int8)


@dataclass(frozen=True)
class Question:
    """A question about a scene, its one-word answer, its family, and the index of the thing it is about (or None)."""

    text: str
    answer: str
    family: str
    about: int | None


_Y, _X = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)


def _background(kind: str, rng: np.random.Generator) -> NDArray[np.float32]:
    base = rng.uniform(60, 200) + rng.uniform(-18, 18, 3)
    other = base + rng.choice([-1, 1]) * rng.uniform(20, 45)
    if kind == "plain":
        mix = np.zeros_like(_X)
    elif kind == "striped":
        angle, period = rng.uniform(0, np.pi), rng.uniform(5, 14)
        mix = (np.sin(2 * np.pi * (_X * np.cos(angle) + _Y * np.sin(angle)) / period) > 0).astype(np.float32)
    elif kind == "checked":
        size = rng.integers(3, 11)
        mix = ((_X // size + _Y // size) % 2).astype(np.float32)
    elif kind == "noisy":
        mix = rng.random((SIDE, SIDE), dtype=np.float32)
    else:
        angle = rng.uniform(0, 2 * np.pi)
        mix = 0.5 + (((_X - SIDE / 2) * np.cos(angle) + (_Y - SIDE / 2) * np.sin(angle)) / (1.42 * SIDE))
    return base + mix[..., None] * (other - base)


def covers(thing: Thing, columns: NDArray[np.float32] = _X, rows: NDArray[np.float32] = _Y) -> NDArray[np.bool_]:
    """Tell which pixels a shape covers, given the column and the row of each; bool, of the same shape."""
    x, y, r = columns - thing.x, rows - thing.y, thing.radius
    if thing.shape == "circle":
        return x * x + y * y <= r * r
    if thing.shape == "square":
        return (abs(x) <= 0.85 * r) & (abs(y) <= 0.85 * r)
    if thing.shape == "triangle":
        return (y <= 0.8 * r) & (abs(x) <= (y + r) * 0.6)
    return ((abs(x) <= r / 3) | (abs(y) <= r / 3)) & (abs(x) <= r) & (abs(y) <= r)


def make_scene(rng: np.random.Generator, count: int | None = None) -> Scene:
    """Draw a scene with ``count`` shapes (one to five when left out), each in its own cell of a 3 by 3 grid."""
    total = int(rng.integers(1, 6)) if count is None else count
    kinds = rng.choice(len(COLOURS) * len(SHAPES), total, replace=False)
    cells = np.sort(rng.choice(9, total, replace=False))
    names, things = list(COLOURS), []
    for kind, cell in zip(kinds, cells, strict=True):
        row, column = divmod(int(cell), 3)
        x, y = ((i + 0.5) * SIDE / 3 - 0.5 + rng.uniform(-2, 2) for i in (column, row))
        colour, shape = names[kind % len(names)], SHAPES[kind // len(names)]
        things.append(Thing(colour, shape, int(cell), x, y, float(rng.uniform(7.0, 9.5))))
    return render(tuple(things), BACKGROUNDS[rng.integers(len(BACKGROUNDS))], rng)


def render(things: Sequence[Thing], background: str, rng: np.random.Generator) -> Scene:
    """Draw a scene of these shapes on a kind of background out of :data:`BACKGROUNDS`."""
    pixels, owner = _background(background, rng), np.full((SIDE, SIDE), -1, np.int8)
    for index, thing in enumerate(things):
        mask = covers(thing)
        pixels[mask] = np.array(COLOURS[thing.colour]) + rng.uniform(-20, 20)
        owner[mask] = index
    pixels = pixels + rng.normal(0, 4, pixels.shape)
    return Scene(pixels.clip(0, 255).astype(np.uint8), owner, tuple(things), background)


def _alone(scene: Scene, what: str) -> list[int]:
    """Indices of things whose colour (or shape) no other thing has."""
    values = [getattr(thing, what) for thing in scene.things]
    return [index for index, value in enumerate(values) if values.count(value) == 1]


def ask(scene: Scene, family: str, rng: np.random.Generator) -> Question:
    """Make one question of a family; colour and shape are asked by place half of the time."""
    things = scene.things
    pick = int(rng.integers(len(things)))
    if family == "number":
        return Question("How many shapes are there?", NUMBERS[len(things) - 1], family, None)
    if family == "place":
        thing = things[pick]
        return Question(f"Where is the {thing.colour} {thing.shape}?", PLACES[thing.cell], family, pick)
    if family == "presence":
        return _presence(scene, rng)
    given = "shape" if family == "colour" else "colour"
    alone = _alone(scene, given)
    if alone and rng.random() < 0.5:
        pick = int(rng.choice(alone))
        known = getattr(things[pick], given)
        text = f"What colour is the {known}?" if family == "colour" else f"What shape is {known}?"
    else:
        text = f"What {family} is at the {PLACES[things[pick].cell]}?"
    return Question(text, getattr(things[pick], family), family, pick)


def _presence(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask for a thing that is there, or for one that shares its colour or its shape with one that is there."""
    pick = int(rng.integers(len(scene.things)))
    thing = scene.things[pick]
    if rng.random() < 0.5:
        return Question(f"Is there a {thing.colour} {thing.shape}?", "yes", "presence", pick)
    there = {(t.colour, t.shape) for t in scene.things}
    near = [(c, thing.shape) for c in COLOURS] + [(thing.colour, s) for s in SHAPES]
    absent = [pair for pair in near if pair not in there]
    colour, shape = absent[rng.integers(len(absent))]
    return Question(f"Is there a {colour} {shape}?", "no", "presence", None)


def absent(scene: Scene, parts: int) -> list[tuple[str, str]]:
    """Return the pairs of colour and shape that no thing has, of which ``parts`` (0, 1 or 2) are in the picture.

    Two: the colour is that of one thing and the shape that of another, the hardest to tell from what is there.
    """
    there = {(thing.colour, thing.shape) for thing in scene.things}
    colours, shapes = ({getattr(thing, part) for thing in scene.things} for part in ("colour", "shape"))
    return [
        (colour, shape)
        for colour in COLOURS
        for shape in SHAPES
        if (colour, shape) not in there and (colour in colours) + (shape in shapes) == parts
    ]


def describe(scene: Scene) -> tuple[str, str]:
    """Return the request for a description, and the description: shapes in reading order, each with its place."""
    parts = [f"{thing.colour} {thing.shape} {PLACES[thing.cell]}" for thing in scene.things]
    return "Describe the picture.", ", ".join(parts) + "."


def mosaic(rng: np.random.Generator, cells: int = 4) -> tuple[NDArray[np.uint8], Question, tuple[int, int, int, int]]:
    """Draw a picture of ``cells`` by ``cells`` grounds, one of them with a shape, and ask what shape it is.

    Returns:
        Its pixels, the question, and the box (left, top, right, bottom in pixels) of the ground with the shape.
    """
    scene = make_scene(rng, 1)
    tiles = [render((), BACKGROUNDS[rng.integers(len(BACKGROUNDS))], rng).pixels for _ in range(cells * cells)]
    row, column = (int(place) for place in rng.integers(0, cells, 2))
    tiles[row * cells + column] = scene.pixels
    whole = np.concatenate([np.concatenate(tiles[at : at + cells], 1) for at in range(0, cells * cells, cells)], 0)
    left, top = column * SIDE, row * SIDE
    question = Question(f"What shape is {scene.things[0].colour}?", scene.things[0].shape, "shape", 0)
    return whole, question, (left, top, left + SIDE, top + SIDE)


def held_out(count: int, seed: int = 0, first: int = 0) -> list[Scene]:
    """Scenes that no training step draws, numbered from ``first``: their generators have seeds of their own."""
    return [make_scene(np.random.default_rng([seed, 1 << 20, first + index])) for index in range(count)]
