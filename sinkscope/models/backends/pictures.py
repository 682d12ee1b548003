"""The smallest pictures that reach every layer of a vision encoder, in the form that it takes them."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from sinkscope.prompts.naflex import inputs_of, trial_size
from sinkscope.prompts.placing import device_of


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
    pixels = torch.randn(1, getattr(config, "num_channels", 3), height, width, generator=generator)
    return inputs_of(module, pixels.to(**like))
