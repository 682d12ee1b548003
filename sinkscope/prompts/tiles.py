"""Encoders that read all tiles of an image in one sequence (Mllama): which token is which patch of which tile.

An image is cut into as many tiles as its shape asks for, and filled up with empty ones to a fixed number; each is a
class token and patches row by row, and inside the encoder some tokens of filling behind them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sinkscope.errors import PromptError
from sinkscope.prompts import grids
from sinkscope.prompts.chat import images_of
from sinkscope.prompts.data import PatchGrid, PromptFields
from sinkscope.prompts.geometry import Cells, PixelMap, blank
from sinkscope.prompts.layouts import patch_size
from sinkscope.prompts.model import PromptModel
from sinkscope.prompts.towers import ORIGIN
from sinkscope.roles import ROLE_INDEX

NAMES = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
"""Inputs: pictures (prompt, image, tile, channel, height, width), the shape of each image, and which tiles it has."""

MULTIPLE = 8
"""Tokens of a tile are filled up to a multiple of this inside the encoder."""

CLASS, EMPTY, FILLING = "[CLS]", "[EMPTY]", "[FILL]"

Described = tuple[list[str], Cells, np.ndarray, np.ndarray]
"""Names of the tokens, their cells, the image that each is of, and whether there is one."""


def takes_tiles(module: torch.nn.Module) -> bool:
    """Say whether the forward pass takes pictures as tiles with the shape of the image."""
    return set(NAMES) <= set(inspect.signature(module.forward).parameters)


def describe_tiles(
    values: torch.Tensor,
    ratios: Sequence[int],
    config: Any,
    sizes: Sequence[tuple[float, float]],
    filled: bool = False,
) -> Described:
    """Describe the tokens of the images of one prompt.

    Args:
        values: pictures of all images, the last axes tile, channel, height and width.
        ratios: for each image the number of its shape in ``config.supported_aspect_ratios``, from 1; 0 for no image.
        config: of the vision encoder.
        sizes: (height, width) of the originals, as far as they are known.
        filled: whether tokens of filling stand behind each tile, as inside the encoder.
    """
    height, width = (int(n) for n in values.shape[-2:])
    patch_y, patch_x = patch_size(config)
    rows, columns = height // patch_y, width // patch_x
    behind = -(1 + rows * columns) % MULTIPLE if filled else 0
    names: list[str] = []
    cells: list[Cells] = []
    image: list[float] = []
    there: list[bool] = []
    for index, ratio in enumerate(ratios):
        high, wide = config.supported_aspect_ratios[ratio - 1] if ratio else (0, 0)
        picture = _canvas(sizes[index] if index < len(sizes) else grids.UNKNOWN, high, wide, height, width)
        for tile in range(values.shape[-4]):
            real = tile < high * wide
            if real:
                down, right = divmod(tile, wide)
                own = PixelMap(picture.y.cut(down * height, height), picture.x.cut(right * width, width)).cells(
                    rows, columns, tile=tile + (high * wide > 1), first=(down * rows, right * columns)
                )
                patches = [f"r{int(row)}c{int(column)}" for row, column in own[:, :2]]
            else:
                own, patches = blank(rows * columns), [EMPTY] * (rows * columns)
            names += [CLASS if real else EMPTY, *patches, *[FILLING] * behind]
            cells += [blank(1), own, blank(behind)]
            image += [index if real else math.nan] * (1 + len(own)) + [math.nan] * behind
            there += [real] * (1 + len(own)) + [False] * behind
    return names, np.concatenate(cells), np.array(image, dtype=float), np.array(there)


def _canvas(size: tuple[float, float], high: int, wide: int, height: int, width: int) -> PixelMap:
    """The picture of ``high`` by ``wide`` tiles: the image resized to fit in, padded below and on the right."""
    if math.isnan(size[0]) or not high:
        return PixelMap.of(*grids.UNKNOWN)
    from transformers.models.mllama import image_processing_pil_mllama

    library: Any = image_processing_pil_mllama  # untyped
    new = library.get_image_size_fit_to_canvas(int(size[0]), int(size[1]), high * height, wide * width, height)
    resized = PixelMap.of(*size).resized(int(new[0]), int(new[1]))
    return PixelMap(resized.y.cut(0, high * height), resized.x.cut(0, wide * width))


def fields_of_tiles(prompts: PromptFields, model: PromptModel) -> PromptFields:
    """Turn prompts into those of a vision tower that reads all tiles of an image in one sequence: one for each image.

    Args:
        prompts: made by ``from_chat`` (boxes in original pixels) or ``from_inputs`` (boxes NaN).
        model: a ``sinkscope.models.handle.Model`` of the larger model.

    Raises:
        PromptError: the prompts hold no images.
    """
    found: list[tuple[dict[str, torch.Tensor], Described, tuple[float, float]]] = []
    origin: list[tuple[int, int, int]] = []
    config = model.config.vision_config
    for which in range(len(prompts)):
        inputs, sizes = _images(prompts, which)
        for image, ratio in enumerate([int(n) for n in inputs["aspect_ratio_ids"][0]] if inputs else []):
            if not ratio:  # filled up: another prompt has more images
                continue
            own = {name: inputs[name][:, image : image + 1] for name in NAMES}
            size = sizes[image] if image < len(sizes) else grids.UNKNOWN
            found.append((own, describe_tiles(own["pixel_values"], [ratio], config, [size], filled=True), size))
            origin.append((which, image, 0))
    if not found:
        raise PromptError(
            "these prompts hold no images for the vision tower. Give images with from_chat or from_inputs."
        )
    return PromptFields(
        ids=tuple(np.full(len(names), -1, dtype=np.int64) for _, (names, *_), _ in found),
        roles=tuple(_roles(*described) for _, described, _ in found),
        tokens=tuple(tuple(names) for _, (names, *_), _ in found),
        extras=tuple(inputs for inputs, _, _ in found),
        grids=tuple(_grid(described, size) for _, described, size in found),
        key0=f"class token '{found[0][1][0][0]}' of the first tile",
        origin=dict(zip(ORIGIN, np.array(origin).T, strict=True)),
    )


def _images(prompts: PromptFields, which: int) -> tuple[dict[str, torch.Tensor], tuple[tuple[float, float], ...]]:
    """The images of one prompt as inputs (first axis: the one prompt), and the sizes of the originals."""
    given: dict[str, torch.Tensor] = dict(prompts.extras[which])
    if prompts.whole is not None:
        given = {name: tensor[which : which + 1] for name, tensor in prompts.whole.items()}
    if not set(NAMES) <= set(given):
        return {}, ()
    images = images_of(prompts.made_of[which], which) if prompts.made_of else ()
    return {name: given[name] for name in NAMES}, tuple((float(each.height), float(each.width)) for each in images)


def _roles(names: list[str], _cells: Cells, _image: np.ndarray, there: np.ndarray) -> np.ndarray:
    roles = np.where(there, ROLE_INDEX["image"], ROLE_INDEX["special"])
    return np.where(np.array(names) == CLASS, ROLE_INDEX["bos"], roles).astype(np.int8)


def _grid(described: Described, size: tuple[float, float]) -> PatchGrid:
    _, cells, image, _ = described
    return PatchGrid(cells[:, 0], cells[:, 1], cells[:, 2], image, cells[:, 3:], (size,))
