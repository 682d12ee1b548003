"""The smallest pictures that reach every layer of a vision encoder, in the form that it takes them."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from sinkscope.prompts.naflex import inputs_of, trial_size
from sinkscope.prompts.placing import device_of
from sinkscope.prompts.tiles import takes_tiles


def trial_picture(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Smallest inputs of a vision tower; noise, since a blank image can make every state zero."""
    config: Any = module.config
    parameter = next(p for p in module.parameters() if p.is_floating_point())
    like = {"device": device_of(module), "dtype": parameter.dtype}
    generator = torch.Generator().manual_seed(0)
    if "grid_thw" in inspect.signature(module.forward).parameters:
        told = "merge_sizes" in inspect.signature(module.forward).parameters  # VideoLLaMA 3
        side = 2 * int(2 if told else config.spatial_merge_size)
        channels = getattr(config, "in_channels", None) or getattr(config, "in_chans", 3)
        row = channels * int(getattr(config, "temporal_patch_size", 1)) * int(config.patch_size) ** 2
        patches = torch.randn(side * side, row, generator=generator).to(**like)
        name = "pixel_values" if "pixel_values" in inspect.signature(module.forward).parameters else "hidden_states"
        more = {"merge_sizes": torch.tensor([2], device=like["device"])} if told else {}
        return {name: patches, "grid_thw": torch.tensor([[1, side, side]], device=like["device"])} | more
    height, width = trial_size(module, config)
    channels = getattr(config, "num_channels", 3)
    if takes_tiles(module):  # an image of one tile: the others are empty, and masked
        there = torch.zeros(1, 1, int(config.max_num_tiles), dtype=torch.long, device=like["device"])
        there[..., 0] = 1
        pixels = torch.randn(1, 1, there.shape[2], channels, height, width, generator=generator).to(**like)
        one = torch.ones(1, 1, dtype=torch.long, device=like["device"])
        return {"pixel_values": pixels, "aspect_ratio_ids": one, "aspect_ratio_mask": there}
    pixels = torch.randn(1, channels, height, width, generator=generator)
    return inputs_of(module, pixels.to(**like))
