"""Patch grids: where on the original image each visual token of a prompt looks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from sinkscope.errors import PromptError
from sinkscope.prompts.data import PatchGrid
from sinkscope.prompts.geometry import COLUMNS, Cells
from sinkscope.prompts.layouts import (
    Source,
    anyres,
    gemma3,
    layout_of,
    listed,
    llava,
    onevision,
    own_shapes,
    pixtral_view,
)

UNKNOWN = (math.nan, math.nan)
"""Height and width of an image that only the processor has seen; boxes are then NaN."""


def place(
    config: Any,
    processor: Any,
    visual: Bool[np.ndarray, " token"],
    sizes: Sequence[tuple[float, float]],
    inputs: Mapping[str, Any],
    which: int = 0,
) -> PatchGrid | None:
    """Place the visual tokens of one prompt.

    Args:
        config: the model's config.
        processor: its image processor, or ``None``.
        visual: which tokens are image placeholders.
        sizes: (height, width) of each original image, in order; ``UNKNOWN`` where it is not known.
        inputs: what the processor made of this prompt.
        which: number of the prompt, for error messages.

    Returns:
        ``None`` if the family is not known, or if its layout follows from the size of an image that is not known.

    Raises:
        PromptError: the pixels give another number of tokens than there are placeholders.
    """
    layout = layout_of(config, inputs)
    if layout is None or not sizes or not visual.any():
        return None
    lengths = runs(visual)
    blocks: list[Cells | None] = []
    for index, size in enumerate(sizes):
        tokens = int(lengths[index]) if len(lengths) == len(sizes) else 0
        if not tokens and layout is llava and visual.sum() % len(sizes) == 0:  # images side by side in one run
            tokens = int(visual.sum()) // len(sizes)
        blocks.append(layout(Source(config, processor, size, tokens, inputs, index)))
    known = [block for block in blocks if block is not None]
    if len(known) < len(blocks):
        return None
    if sum(map(len, known)) != int(visual.sum()):
        raise PromptError(
            f"prompt {which}: {int(visual.sum())} image placeholders, but its {len(sizes)} images give "
            f"{sum(map(len, known))} tokens ({config.model_type}). Use the whole output of the model's own processor."
        )
    cells = np.full((len(visual), COLUMNS), np.nan)
    cells[visual] = np.concatenate(known)
    image = np.full(len(visual), np.nan)
    image[visual] = np.repeat(np.arange(len(known)), [len(block) for block in known])
    return PatchGrid(
        cells[:, 0], cells[:, 1], cells[:, 2], image, cells[:, 3:], tuple(sizes), layout in (anyres, onevision)
    )


def images_of(config: Any, visual: Sequence[Bool[np.ndarray, " _"]], inputs: Mapping[str, Any]) -> list[int] | None:
    """Count the images of each prompt in a processor's whole output; ``None`` where they cannot be told apart.

    Raises:
        PromptError: the placeholders are not a whole number for each picture of the pixel values.
    """
    layout, totals = layout_of(config, inputs), [int(mask.sum()) for mask in visual]
    values = inputs.get("pixel_values")
    if layout in (llava, gemma3) and values is not None and values.ndim == 4:
        each, rest = divmod(sum(totals), len(values))
        if rest or not each or any(total % each for total in totals):
            raise PromptError(
                f"from_inputs: the prompts hold {totals} image placeholders, and pixel_values {len(values)} pictures "
                "of equally many tokens. Pass the processor's whole output, unchanged."
            )
        return [total // each for total in totals]
    if own_shapes(config):
        return _share_out(totals, [math.prod(pixtral_view(config, size)) for size in inputs.get("image_sizes", ())])
    counts = [len(runs(mask)) for mask in visual]
    if layout is listed and any(_side_by_side(mask) for mask in visual):
        return None
    known = next((inputs[n] for n in ("image_sizes", "image_grid_thw", "spatial_shapes") if n in inputs), None)
    return None if known is not None and len(known) != sum(counts) else counts


def _side_by_side(visual: Bool[np.ndarray, " token"]) -> bool:
    """Say whether one token alone parts two runs: that of a tile of an image; images end and begin with one each."""
    return bool((np.diff(np.flatnonzero(visual)) == 2).any())


def _share_out(totals: Sequence[int], tokens: Sequence[int]) -> list[int] | None:
    """Give images with ``tokens`` each, in order, to prompts with ``totals`` placeholders."""
    counts, place = [0] * len(totals), 0
    for prompt, total in enumerate(totals):
        while total > 0 and place < len(tokens):
            total -= tokens[place]
            counts[prompt], place = counts[prompt] + 1, place + 1
        if total:
            return None
    return counts if place == len(tokens) else None


def runs(visual: Bool[np.ndarray, " token"]) -> Int[np.ndarray, " run"]:
    """Return the length of each unbroken run of true entries."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], visual, [False]]).astype(np.int8)))
    return edges[1::2] - edges[::2]
