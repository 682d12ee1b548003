"""Videos as prompts of a video encoder: tokens are patches of a few frames each (VideoMAE, ViViT)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sinkscope.errors import PromptError
from sinkscope.prompts.data import PatchGrid, PromptFields
from sinkscope.prompts.geometry import PixelMap, blank
from sinkscope.prompts.identity import image_settings
from sinkscope.prompts.images import prefix_tokens, sequence_length
from sinkscope.prompts.model import PromptModel
from sinkscope.roles import ROLE_INDEX


def takes_videos(config: Any) -> bool:
    """Say whether an encoder with this configuration takes a number of frames."""
    return isinstance(getattr(config, "num_frames", None), int)


def fields_of_videos(values: torch.Tensor, model: PromptModel) -> PromptFields:
    """Build one prompt for each video; see ``Prompts.from_inputs``.

    Tokens stand frame by frame (of as many frames as a patch spans), row by row, behind a class token where there is
    one. Each has the place of its patch in ``grid_row`` and ``grid_col``; ``t1r0c0`` is the name of one.

    Args:
        values: (video, frame, channel, height, width), as the model's processor makes them.
        model: the encoder.

    Raises:
        PromptError: another shape, or the encoder makes other tokens than patches of them.
    """
    if values.ndim != 5 or not len(values):
        raise PromptError(
            f"{type(model.model).__name__} takes videos (video, frame, channel, height, width) from its processor, got "
            f"pixel_values of shape {tuple(values.shape)}. Call the processor with all frames of a video, and give its "
            "output to Prompts.from_inputs."
        )
    frames, high, wide = _tubelet(model.config)
    count, height, width = values.shape[1] // frames, *values.shape[-2:]
    cells = PixelMap.of(float(height), float(width)).cells(height // high, width // wide)
    extra = sequence_length(model.model, values[:1]) - count * len(cells)
    if extra < 0:
        raise PromptError(
            f"{type(model.model).__name__}: its first block gets {extra + count * len(cells)} tokens for {count} x "
            f"{height // high} x {width // wide} patches, so which token is which cannot be told."
        )
    names = prefix_tokens(model.model, extra)
    placed = np.concatenate([blank(extra), *[cells] * count])
    tokens = [name for name, _ in names]
    tokens += [f"t{t}r{int(row)}c{int(column)}" for t in range(count) for row, column in cells[:, :2]]
    roles = [ROLE_INDEX[role] for _, role in names] + [ROLE_INDEX["image"]] * (count * len(cells))
    image = np.where(np.isnan(placed[:, 0]), np.nan, 0.0)
    size = ((float(height), float(width)),)
    grid = PatchGrid(placed[:, 0], placed[:, 1], placed[:, 2], image, placed[:, 3:], size)
    each = len(values)
    return PromptFields(
        ids=(np.full(len(tokens), -1, dtype=np.int64),) * each,
        roles=(np.array(roles, dtype=np.int8),) * each,
        tokens=(tuple(tokens),) * each,
        extras=tuple({"pixel_values": one[None].float()} for one in values),
        grids=(grid,) * each,
        key0=f"'{tokens[0]}' (a video encoder reads no text)",
        images=image_settings(model, processed=False),
    )


def _tubelet(config: Any) -> tuple[int, int, int]:
    """Frames, height and width that a patch spans."""
    size: Any = getattr(config, "tubelet_size", 1)
    if not isinstance(size, int):
        return int(size[0]), int(size[1]), int(size[2])
    patch: Any = config.patch_size
    high, wide = (patch, patch) if isinstance(patch, int) else patch
    return size, int(high), int(wide)
