"""What cross-attention to an image reads: keys are the image's features, queries the tokens of the text.

The number of keys is what the model itself makes of the pixels; which part of the image each looks at is known of the
families below, and the role of every other feature is ``image`` without a place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from sinkscope.prompts.tiles import Described, describe_tiles
from sinkscope.roles import ROLE_INDEX

SIDE = "image"
"""The side of prompts whose keys are features of images."""

CountKeys = Callable[[Mapping[str, torch.Tensor]], int]
"""Says how many keys an image's features are, for inputs of the model: 0 where there is no image."""

MLLAMA, IDEFICS = "mllama", "idefics"

_TEXT = ("input_ids", "attention_mask", "position_ids", "token_type_ids")
"""Inputs that say nothing of an image."""


@dataclass(frozen=True)
class _Features:
    """Images of one prompt as keys: inputs (first axis: the one prompt), sizes of the originals, number of keys."""

    config: Any
    inputs: Mapping[str, torch.Tensor]
    sizes: tuple[tuple[float, float], ...]
    count: int


def fields_of_crossing(prompts: PromptFields, model: PromptModel, count: CountKeys) -> PromptFields:
    """Turn prompts of a model that attends to images by cross-attention into keys (the images) and queries (the text).

    Args:
        prompts: made by ``from_chat`` (boxes in original pixels) or ``from_inputs`` (boxes NaN).
        model: a ``sinkscope.models.handle.Model``.
        count: counts the keys.

    Raises:
        PromptError: a prompt has no image.
    """
    if prompts.side == SIDE:
        return prompts
    parts = [_features(prompts, which, model, count) for which in range(len(prompts))]
    described = [_describe(part) for part in parts]
    first = described[0][1][0]
    return PromptFields(
        ids=tuple(np.full(part.count, -1, dtype=np.int64) for part in parts),
        roles=tuple(d[0] for d in described),
        tokens=tuple(d[1] for d in described),
        extras=tuple({} for _ in parts),
        grids=tuple(d[2] for d in described),
        key0=f"feature '{first}' of the first image (cross-attention has no keys of the text)",
        whole=prompts.whole,
        origin=prompts.origin,
        images=prompts.images,
        one_by_one=prompts.one_by_one,
        other=prompts,
        side=SIDE,
    )


def _features(prompts: PromptFields, which: int, model: PromptModel, count: CountKeys) -> _Features:
    if prompts.whole is None:
        inputs = dict(prompts.extras[which])
        inputs["input_ids"] = torch.as_tensor(prompts.ids[which])[None]
    else:
        inputs = {name: tensor[which : which + 1] for name, tensor in prompts.whole.items()}
    keys = count(inputs) if set(inputs) - set(_TEXT) else 0
    if not keys:
        raise PromptError(
            f"tower='cross': prompt {which} has no image, and its features are the keys of this tower. Give images "
            "with from_chat, or the processor's whole output with from_inputs; a text alone is read by tower='text'."
        )
    sizes: tuple[tuple[float, float], ...] = ()
    if prompts.made_of:
        images = images_of(prompts.made_of[which], which)
        sizes = tuple((float(image.height), float(image.width)) for image in images)
    return _Features(model.config, inputs, sizes, keys)


def _describe(part: _Features) -> tuple[np.ndarray, tuple[str, ...], PatchGrid | None]:
    layout = {MLLAMA: _mllama, IDEFICS: _idefics}.get(getattr(part.config, "model_type", ""))
    found = None if layout is None or "pixel_values" not in part.inputs else layout(part)
    if found is None or len(found[0]) != part.count:
        roles = np.full(part.count, ROLE_INDEX["image"], dtype=np.int8)
        return roles, tuple(f"feature {n}" for n in range(part.count)), None
    names, cells, image, there = found
    roles = np.where(there, ROLE_INDEX["image"], ROLE_INDEX["special"]).astype(np.int8)
    if not np.isfinite(cells[:, 0]).any():
        return roles, tuple(names), None
    sizes = part.sizes or (grids.UNKNOWN,) * (int(np.nanmax(image)) + 1)
    return roles, tuple(names), PatchGrid(cells[:, 0], cells[:, 1], cells[:, 2], image, cells[:, 3:], sizes)


def _mllama(part: _Features) -> Described:
    """Mllama: for each image as many tiles as it may have, of a class token and patches each; absent ones are empty."""
    ratios = [int(n) for n in part.inputs["aspect_ratio_ids"][0]]
    return describe_tiles(part.inputs["pixel_values"], ratios, part.config.vision_config, part.sizes)


def _idefics(part: _Features) -> Described:
    """IDEFICS: each image as latents of its perceiver (of no place), or as a class token and patches."""
    values, shown = part.inputs["pixel_values"], part.inputs["image_attention_mask"][0]
    count = values.shape[1]
    per = part.count // count
    patch_y, patch_x = patch_size(part.config.vision_config)
    rows, columns = int(values.shape[-2]) // patch_y, int(values.shape[-1]) // patch_x
    names: list[str] = []
    cells: list[Cells] = []
    image: list[float] = []
    there: list[bool] = []
    for index in range(count):
        real = bool(shown[:, index].any())
        size = part.sizes[index] if index < len(part.sizes) else grids.UNKNOWN
        if part.config.use_resampler or per != 1 + rows * columns:
            own, mine = blank(per), [f"latent {n}" for n in range(per)]
        else:
            own = np.concatenate([blank(1), PixelMap.of(*size).cells(rows, columns)])
            mine = ["[CLS]", *(f"r{int(row)}c{int(column)}" for row, column in own[1:, :2])]
        names += mine if real else ["[EMPTY]"] * per
        cells.append(own if real else blank(per))
        image += [index if real else math.nan] * per
        there += [real] * per
    return names, np.concatenate(cells), np.array(image, dtype=float), np.array(there)
