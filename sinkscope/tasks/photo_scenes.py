"""Small coloured shapes on photographs, noise and plain grounds, 224 pixels square: what ``zoo:vlm-smol`` is shown.

The photographs are the sample pictures that scikit-image, scikit-learn and matplotlib carry. Those that training
pictures are cut from and those of held-out pictures are different ones. Nothing here imports these packages; only
their folders are read.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sinkscope.errors import PromptError
from sinkscope.models.sources.base import module_folder
from sinkscope.tasks import scenes as data

SIDE = 224
"""Pixels along one side of a picture."""

RADIUS = (13.0, 21.0)
"""Smallest and largest radius of a shape in pixels: all shapes of a picture cover 1 to 11 % of it."""

TRAINING = (
    "skimage/astronaut.png", "skimage/brick.png", "skimage/camera.png", "skimage/cell.png", "skimage/coffee.png",
    "skimage/coins.png", "skimage/grass.png", "skimage/hubble_deep_field.jpg", "skimage/ihc.png", "skimage/moon.png",
    "skimage/motorcycle_left.png", "skimage/retina.jpg", "sklearn/flower.jpg", "matplotlib/grace_hopper.jpg",
)  # fmt: skip
HELD_OUT = ("sklearn/china.jpg", "skimage/chelsea.png", "skimage/gravel.png", "skimage/rocket.jpg")
FOLDERS = {"skimage": "data", "sklearn": "datasets/images", "matplotlib": "mpl-data/sample_data"}
PACKAGES = {"skimage": "scikit-image", "sklearn": "scikit-learn", "matplotlib": "matplotlib"}
GROUNDS = {"photograph": 0.7, "noise": 0.15, "plain": 0.15}
"""Kind of ground -> share of pictures."""

_Y, _X = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)


@functools.cache
def photograph(name: str) -> Image.Image:
    """Read one of :data:`TRAINING` or :data:`HELD_OUT`.

    Raises:
        PromptError: its package is not installed, or no longer carries it.
    """
    package, file = name.split("/")
    folder = module_folder(package)
    if folder is None:
        raise PromptError(f"photograph {name}: {package} is not installed. Run pip install {PACKAGES[package]}.")
    path = Path(folder, FOLDERS[package], file)
    if not path.is_file():
        raise PromptError(f"photograph {name}: {path} is absent. Install the {PACKAGES[package]} of constraints.txt.")
    with Image.open(path) as image:
        return image.convert("RGB")


def _ground(kind: str, held_out: bool, rng: np.random.Generator) -> NDArray[np.float32]:
    if kind == "photograph":
        names = HELD_OUT if held_out else TRAINING
        return _cut(photograph(names[rng.integers(len(names))]), rng)
    base = rng.uniform(30, 225, 3).astype(np.float32)
    if kind == "plain":
        return np.broadcast_to(base, (SIDE, SIDE, 3)).copy()
    cells = int(rng.choice([SIDE, SIDE // 4, SIDE // 16]))  # grain of 1, 4 or 16 pixels
    grain = rng.normal(0, rng.uniform(15, 60), (cells, cells, int(rng.choice([1, 3]))))
    return base + grain.repeat(SIDE // cells, 0).repeat(SIDE // cells, 1).astype(np.float32)


def _cut(photo: Image.Image, rng: np.random.Generator) -> NDArray[np.float32]:
    """Cut a square of at least half the shorter side, resize, mirror, and change light and contrast a little."""
    side = int(min(photo.size) * rng.uniform(0.5, 1.0))
    left, top = (int(rng.integers(0, length - side + 1)) for length in photo.size)
    box = (left, top, left + side, top + side)
    pixels = np.asarray(photo.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box), np.float32)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    return (pixels - 128) * rng.uniform(0.7, 1.1) + 128 + rng.uniform(-25, 25)


def make_scene(rng: np.random.Generator, *, held_out: bool = False) -> data.Scene:
    """Draw a scene of one to five shapes, each somewhere in its own cell of a 3 by 3 grid."""
    total = int(rng.integers(1, 6))
    kinds = rng.choice(len(data.COLOURS) * len(data.SHAPES), total, replace=False)
    cells = np.sort(rng.choice(9, total, replace=False))
    names, things = list(data.COLOURS), []
    for kind, cell in zip(kinds, cells, strict=True):
        radius = float(rng.uniform(*RADIUS))
        room = SIDE / 6 - radius - 2
        row, column = divmod(int(cell), 3)
        x, y = ((i + 0.5) * SIDE / 3 - 0.5 + rng.uniform(-room, room) for i in (column, row))
        colour, shape = names[kind % len(names)], data.SHAPES[kind // len(names)]
        things.append(data.Thing(colour, shape, int(cell), x, y, radius))
    ground = str(rng.choice(list(GROUNDS), p=list(GROUNDS.values())))
    pixels, owner = _ground(ground, held_out, rng), np.full((SIDE, SIDE), -1, np.int8)
    for index, thing in enumerate(things):
        mask = data.covers(thing, _X, _Y)
        pixels[mask] = np.array(data.COLOURS[thing.colour]) + rng.uniform(-20, 20)
        owner[mask] = index
    pixels = pixels + rng.normal(0, 3, pixels.shape)
    return data.Scene(pixels.clip(0, 255).astype(np.uint8), owner, tuple(things), ground)


def training_scene(index: int) -> data.Scene:
    """Training picture of this number: the same one for every seed of the training."""
    return make_scene(np.random.default_rng([224, index]))


def held_out(count: int, first: int = 0) -> list[data.Scene]:
    """Pictures on other photographs than the training's, numbered from ``first``."""
    return [make_scene(np.random.default_rng([224, 1 << 20, first + i]), held_out=True) for i in range(count)]
