"""The pictures of prompts on the page, each with the places of its visual tokens, so that attention can lie on it."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from sinkscope.errors import SchemaError
from sinkscope.plot.images import BOX

if TYPE_CHECKING:
    from PIL import Image

MAX_SIDE = 640
"""Longest side, in pixels, of a picture in the page; larger ones are made smaller."""
MAX_PICTURES = 64
"""Most pictures that a page carries."""


@dataclass(frozen=True, eq=False)
class View:
    """One picture of one prompt at one resolution: which tokens lie on it, and where.

    Attributes:
        prompt: index of the prompt.
        image: index of the picture within the prompt.
        tiles: whether these are the tokens of tiles, beside others of the whole picture.
        keys: positions of the tokens.
        boxes: left, top, right, bottom of each in pixels of the original, (token 4).
        size: width and height of the original in pixels.
        picture: the original; None where it was not given.
    """

    prompt: int
    image: int
    tiles: bool
    keys: np.ndarray
    boxes: np.ndarray
    size: tuple[float, float]
    picture: Image.Image | None

    @property
    def label(self) -> str:
        """Name of the view among those of its prompt."""
        return f"image {self.image}{', its tiles' if self.tiles else ''}"


def load(source: Any) -> Image.Image:
    """Take a PIL image, an array or a path as an upright RGB picture.

    Raises:
        SchemaError: the file cannot be read as a picture.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if isinstance(source, str | os.PathLike):
        try:
            with Image.open(source) as opened:
                return ImageOps.exif_transpose(opened).convert("RGB")
        except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
            raise SchemaError(f"report: the picture {os.fspath(source)} cannot be read ({error}).") from None
    image = source if isinstance(source, Image.Image) else Image.fromarray(np.asarray(source))
    return image.convert("RGB")


def views(ds: xr.Dataset, images: Sequence[Any] | None = None) -> list[View]:
    """List the pictures of a reading with the places of their tokens; empty where the reading has no pixel places.

    Args:
        ds: a reading of prompts with images.
        images: the original pictures, those of the first prompt first; None: places alone.

    Raises:
        SchemaError: another number of pictures than the prompts hold, one that cannot be read, or one smaller than the
            places reach.
    """
    if any(name not in ds.coords for name in BOX):
        if images:
            raise SchemaError(
                "report(images=): this reading does not say where its tokens lie on pictures. Measure prompts with "
                "images, or leave the pictures out."
            )
        return []
    boxes = np.stack([ds[name].transpose("prompt", "key").values.astype(float) for name in BOX], -1)
    placed = np.asarray(np.isfinite(boxes).all(-1))
    blank = np.zeros(placed.shape)
    which, tile = (
        ds[name].transpose("prompt", "key").values if name in ds.coords else blank
        for name in ("grid_image", "grid_tile")
    )
    found = [(p, int(i)) for p in range(len(placed)) for i in np.unique(which[p][placed[p]])]
    if images is not None and len(images) != len(found):
        raise SchemaError(
            f"report(images=): {len(images)} pictures for prompts that hold {len(found)}. Give every picture once, "
            "in the order of the prompts."
        )
    out = []
    for number, (p, i) in enumerate(found[:MAX_PICTURES]):
        picture = None if images is None else load(images[number])
        here = placed[p] & (which[p] == i)
        reach = boxes[p][here].max(0)
        size = (reach[2], reach[3]) if picture is None else (float(picture.width), float(picture.height))
        if reach[2] > size[0] + 0.5 or reach[3] > size[1] + 0.5:
            raise SchemaError(
                f"report(images=): picture {number} has {size[0]:g} x {size[1]:g} pixels (width x height), but tokens "
                f"of prompt {ds['prompt'].values[p]} reach to {reach[2]:g} x {reach[3]:g}. Give the originals, in the "
                "order of the prompts."
            )
        for tiles in (False, True):
            keys = np.flatnonzero(here & ((tile[p] > 0) == tiles))
            if keys.size:
                out.append(View(p, i, tiles, keys, boxes[p][keys], size, picture))
    return out


def address(picture: Image.Image | None) -> str:
    """Return the picture as a ``data:`` address, made smaller if need be; empty where there is none."""
    if picture is None:
        return ""
    shown = picture.copy()
    shown.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    flat = shown.width * shown.height <= 256 * 256
    shown.save(buffer, format="PNG" if flat else "JPEG", **({} if flat else {"quality": 85}))
    kind = "png" if flat else "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()


def for_script(found: Sequence[View], prompts: int, tokens: int) -> list[list[dict[str, Any]]]:
    """Return what the page's script needs, by prompt: address, size, and the place of each token, in pixels."""
    out: list[list[dict[str, Any]]] = [[] for _ in range(prompts)]
    addresses: dict[int, str] = {}
    for view in found:
        if view.prompt >= prompts:
            continue
        kept = view.keys < tokens
        key = id(view.picture)
        addresses.setdefault(key, address(view.picture))
        out[view.prompt].append(
            {
                "label": view.label,
                "source": addresses[key],
                "size": list(view.size),
                "keys": view.keys[kept].tolist(),
                "boxes": np.round(view.boxes[kept], 2).tolist(),
            }
        )
    return out


def question(ds: xr.Dataset, prompt: int, most: int = 60) -> str:
    """Return the running text of a prompt, shortened."""
    roles = ds["token_role"].transpose("prompt", "key").values[prompt].astype(str)
    if "token" not in ds.coords:
        return ""
    tokens = ds["token"].transpose("prompt", "key").values[prompt].astype(str)
    last = np.flatnonzero(roles == "image")
    after = np.arange(len(roles)) > (last[-1] if last.size else -1)
    text = "".join(tokens[after & np.isin(roles, ("text", "punctuation", "user"))]).strip()
    return text if len(text) <= most else text[: most - 1] + "…"
