"""From what a vision tower sees back to the pixels of the original image.

An image processor only ever resizes, pads, crops and cuts into tiles, each axis by itself. So each axis of a picture
that the tower reads is an affine map to the same axis of the original image, and every step is one method of ``Axis``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Float

COLUMNS = 7
"""Numbers kept for each token of an image: row, column, tile, and the box left, top, right, bottom."""

Cells = Float[np.ndarray, "token 7"]


@dataclass(frozen=True)
class Axis:
    """One axis of a picture: ``original = offset + scale * here``, and how long the picture is along it, in pixels."""

    length: float
    original: float
    offset: float = 0.0
    scale: float = 1.0

    def resized(self, length: float) -> Axis:
        """Stretch the whole axis to ``length`` pixels."""
        return replace(self, length=length, scale=self.scale * self.length / length)

    def cut(self, start: float, length: float) -> Axis:
        """Keep ``length`` pixels from ``start`` on; a negative start, or an end beyond the axis, is padding."""
        return replace(self, length=length, offset=self.offset + self.scale * start)

    def bounds(self, edges: Float[np.ndarray, " edge"]) -> Float[np.ndarray, " edge"]:
        """Map pixel edges to the original image, cut off at its borders."""
        return np.clip(self.offset + self.scale * edges, 0.0, self.original)


class PixelMap(NamedTuple):
    """What the tower reads: the two axes of it."""

    y: Axis
    x: Axis

    @classmethod
    def of(cls, height: float, width: float) -> PixelMap:
        """Start with the original image."""
        return cls(Axis(height, height), Axis(width, width))

    def resized(self, height: float, width: float) -> PixelMap:
        """Stretch both axes."""
        return PixelMap(self.y.resized(height), self.x.resized(width))

    def centred(self, height: int, width: int) -> PixelMap:
        """Crop, or pad where the picture is smaller, around the centre; an odd pixel goes to the end."""
        return PixelMap(
            self.y.cut((self.y.length - height) // 2, height), self.x.cut((self.x.length - width) // 2, width)
        )

    def squared(self) -> PixelMap:
        """Pad the shorter axis on both sides to the length of the longer; an odd pixel goes to the end."""
        side = max(self.y.length, self.x.length)
        return PixelMap(
            self.y.cut(-((side - self.y.length) // 2), side), self.x.cut(-((side - self.x.length) // 2), side)
        )

    def cells(
        self,
        rows: int,
        columns: int,
        *,
        tile: int = 0,
        first: tuple[int, int] = (0, 0),
        region: tuple[float, float, float, float] | None = None,
    ) -> Cells:
        """Return the tokens of a grid laid over this picture, row by row.

        Args:
            rows: number of token rows.
            columns: number of token columns.
            tile: number written for each token.
            first: row and column number of the first token.
            region: left, top, right, bottom of the part of the picture that the grid covers, in its pixels; all of it
                by default.

        Returns:
            Row, column, tile and box in original pixels; the box of a token that sees only padding is NaN.
        """
        left, top, right, bottom = region or (0.0, 0.0, self.x.length, self.y.length)
        y = self.y.bounds(np.linspace(top, bottom, rows + 1))
        x = self.x.bounds(np.linspace(left, right, columns + 1))
        row, column = np.divmod(np.arange(rows * columns), columns)
        box = np.stack([x[column], y[row], x[column + 1], y[row + 1]], axis=1)
        unseen = (box[:, 2] <= box[:, 0]) | (box[:, 3] <= box[:, 1])
        box[unseen] = np.nan
        head = np.stack([row + first[0], column + first[1], np.full(row.shape, tile)], axis=1)
        return np.concatenate([head.astype(np.float64), box], axis=1)


def blank(count: int) -> Cells:
    """Return ``count`` tokens that stand for no patch (row separators, a class token kept among the features)."""
    return np.full((count, COLUMNS), np.nan)


def setting(processor: Any, name: str, key: str) -> int | None:
    """Read one number of a size-like setting (``size``, ``crop_size``) of an image processor."""
    value: Any = getattr(processor, name, None)
    if value is None:
        return None
    found: Any = cast("dict[str, Any]", value).get(key) if isinstance(value, dict) else getattr(value, key, None)
    return None if found is None else int(found)


def target_size(processor: Any, height: float, width: float) -> tuple[float, float]:
    """Say to which height and width an image processor with a plain ``size`` setting resizes an image.

    A fixed height and width, or a shortest edge (with or without a longest), as transformers 5.23 computes them.
    """
    fixed = setting(processor, "size", "height"), setting(processor, "size", "width")
    if fixed[0] and fixed[1]:
        return fixed[0], fixed[1]
    short, long = setting(processor, "size", "shortest_edge"), setting(processor, "size", "longest_edge")
    if short is None:  # a longest edge only: pictures are made smaller, never larger (rounding to patches aside)
        shrink = 1.0 if long is None else min(1.0, long / max(height, width))
        return height * shrink, width * shrink
    if math.isnan(height) or math.isnan(width):
        return short, short
    if long:
        from transformers import image_transforms

        library: Any = image_transforms  # untyped
        return library.get_size_with_aspect_ratio((int(height), int(width)), short, long)
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short


def plain_picture(processor: Any, height: float, width: float) -> PixelMap:
    """Follow an image processor that pads to a square, resizes and crops (CLIP, SigLIP, ViT, DINO, LLaVA, Gemma 3).

    Without a processor the image is what the tower sees.
    """
    picture = PixelMap.of(height, width)
    if processor is None:
        return picture
    if getattr(processor, "do_pad", False) and hasattr(processor, "pad_to_square"):
        picture = picture.squared()
    if getattr(processor, "do_resize", True):
        picture = picture.resized(*target_size(processor, picture.y.length, picture.x.length))
    crop = setting(processor, "crop_size", "height"), setting(processor, "crop_size", "width")
    if getattr(processor, "do_center_crop", False) and crop[0] and crop[1]:
        picture = picture.centred(crop[0], crop[1])
    return picture
