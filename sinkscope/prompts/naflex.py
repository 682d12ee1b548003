"""Encoders that take a list of patches with the shape of its grid and a mask (SigLIP 2 NaFlex, LFM2-VL).

Each picture keeps its own shape; processors fill the list up to a fixed length. Here a picture is without the filling,
and comes back only where pictures of unlike shape share a batch, under the mask.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float

from sinkscope.errors import PromptError

NAMES = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
"""Inputs: patches (picture, patch, number), which of them are some, and rows and columns of each picture."""


def takes_patches(module: torch.nn.Module) -> bool:
    """Say whether the forward pass takes patches with the shape of their grid."""
    return set(NAMES) <= set(inspect.signature(module.forward).parameters)


def trial_size(module: torch.nn.Module, config: Any) -> tuple[int, int]:
    """Height and width of a picture that ``module`` takes: a few patches, or the size that ``config`` names."""
    if takes_patches(module):
        return 3 * config.patch_size, 2 * config.patch_size
    size = getattr(config, "image_size", 224)
    return (size, size) if isinstance(size, int) else size


def inputs_of(
    module: torch.nn.Module, pixels: Float[torch.Tensor, "1 *frame channel height width"]
) -> dict[str, torch.Tensor]:
    """Return one picture as ``module`` takes it."""
    config: Any = module.config
    if hasattr(config, "mask_ratio") and "noise" in inspect.signature(module.forward).parameters:
        # ViT-MAE shuffles its patches by noise: a rising one keeps their order.
        count = (pixels.shape[-2] // config.patch_size) * (pixels.shape[-1] // config.patch_size)
        return {"pixel_values": pixels, "noise": torch.linspace(0, 1, count, device=pixels.device)[None]}
    if not takes_patches(module):
        return {"pixel_values": pixels}
    return as_patches(pixels, int((getattr(config, "vision_config", None) or config).patch_size))


def as_patches(pixels: Float[torch.Tensor, "1 channel height width"], patch: int) -> dict[str, torch.Tensor]:
    """Cut one picture into patches row by row, the numbers of each by row, column and channel."""
    channels, height, width = pixels.shape[1:]
    rows, columns = height // patch, width // patch
    cut = pixels[0, :, : rows * patch, : columns * patch].reshape(channels, rows, patch, columns, patch)
    values = cut.permute(1, 3, 2, 4, 0).reshape(1, rows * columns, -1)
    mask = torch.ones(values.shape[:2], dtype=torch.long, device=values.device)
    return dict(zip(NAMES, (values, mask, torch.tensor([[rows, columns]], device=values.device)), strict=True))


def as_pictures(inputs: Mapping[str, torch.Tensor], patch: int) -> list[Float[torch.Tensor, "channel height width"]]:
    """Put pictures together again, without what their lists are filled up with.

    Raises:
        PromptError: an input is missing, or the lists are shorter than their grids.
    """
    pictures: list[torch.Tensor] = []
    for part in cut_out(inputs):
        rows, columns = (int(n) for n in part["spatial_shapes"][0])
        whole = part["pixel_values"][0].reshape(rows, columns, patch, patch, -1)
        pictures.append(whole.permute(4, 0, 2, 1, 3).reshape(-1, rows * patch, columns * patch))
    return pictures


def cut_out(inputs: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Take a processor's output apart by picture, each without what its list is filled up with.

    Raises:
        PromptError: an input is missing, or the lists are shorter than their grids.
    """
    missing = [name for name in NAMES if name not in inputs]
    if missing:
        raise PromptError(
            f"this encoder takes patches with the shape of their grid, and {missing[0]!r} is not given. Pass the image "
            "processor's whole output."
        )
    found: list[dict[str, torch.Tensor]] = []
    for values, mask, shape in zip(*(inputs[name] for name in NAMES), strict=True):
        rows, columns = (int(n) for n in shape)
        count = rows * columns
        if not 0 < count <= len(values) or not bool(mask[:count].all()):
            raise PromptError(
                f"spatial_shapes name a grid of {rows} x {columns} patches, but pixel_values hold {int(mask.sum())}. "
                "Pass the image processor's output as it is."
            )
        found.append(dict(zip(NAMES, (values[None, :count], mask[None, :count].long(), shape[None]), strict=True)))
    return found


def filled_up(extra: dict[str, torch.Tensor], longest: int) -> dict[str, torch.Tensor]:
    """Fill the lists of one prompt up to ``longest`` patches, hidden by the mask."""
    missing = longest - extra["pixel_values"].shape[1]
    return extra | {
        "pixel_values": torch.nn.functional.pad(extra["pixel_values"], (0, 0, 0, missing)),
        "pixel_attention_mask": torch.nn.functional.pad(extra["pixel_attention_mask"], (0, missing)),
    }
