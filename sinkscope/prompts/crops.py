"""Crops of the pictures that prompts were made of, alone or beside the whole picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from PIL import Image

from sinkscope.arguments import is_listed, shown
from sinkscope.errors import PromptError
from sinkscope.prompts.chat import fields_of_chat
from sinkscope.prompts.data import PromptFields
from sinkscope.prompts.images import fields_of_images, load_image
from sinkscope.prompts.model import PromptModel

Box = Sequence[float] | None


def fields_of_crops(prompts: PromptFields, boxes: Sequence[Box], model: PromptModel, beside: bool) -> PromptFields:
    """Build prompts with their first picture cropped; see ``Prompts.crop``."""
    if not is_listed(boxes):
        raise PromptError(f"crop(boxes={shown(boxes)}): give a list of boxes, one (or None) per prompt.")
    if not prompts.made_of or len(boxes) != len(prompts):
        known = bool(prompts.made_of)
        why = "one box (or None) per prompt is needed" if known else "these prompts do not know their pictures"
        raise PromptError(
            f"crop: {why}: {len(prompts)} prompts, {len(boxes)} boxes. Build prompts with from_chat or from_images, "
            "and give left, top, right, bottom in pixels for each."
        )
    pairs = enumerate(zip(prompts.made_of, boxes, strict=True))
    items = [_cropped(item, box, which, beside) for which, (item, box) in pairs]
    if isinstance(items[0], Mapping):
        return fields_of_chat(items, model)
    return fields_of_images(items, model)


def _cropped(item: Any, box: Box, which: int, beside: bool) -> Any:
    if box is None:
        return item
    turn = cast("Mapping[str, Any]", item) if isinstance(item, Mapping) else None
    given = cast("Any", item) if turn is None else turn.get("image")
    pictures = list(cast("Sequence[Any]", given)) if isinstance(given, list | tuple) else [given]
    if not pictures or pictures[0] is None or hasattr(pictures[0], "detach"):
        raise PromptError(f"crop: prompt {which} has no picture of pixels to crop. Give None for it.")
    whole = load_image(pictures[0], f"prompt {which}, image")
    part = whole.crop(_inside(box, whole, which))
    if turn is None:
        return part
    return {**turn, "image": [pictures[0], part, *pictures[1:]] if beside else [part, *pictures[1:]]}


def _inside(box: Sequence[float], image: Image.Image, which: int) -> tuple[int, int, int, int]:
    left, top, right, bottom = (round(float(edge)) for edge in box)
    edges = max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)
    if edges[0] >= edges[2] or edges[1] >= edges[3]:
        raise PromptError(
            f"crop: box {tuple(box)} of prompt {which} holds no pixel of its picture ({image.width} x {image.height}). "
            "Boxes are left, top, right, bottom in pixels."
        )
    return edges
