"""Where the inputs of a module go, and in which type of numbers."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def device_of(module: torch.nn.Module) -> torch.device:
    """Return where inputs of a module go: to its first parameter, or to where accelerate brings what it offloads."""
    first = next(iter(module.parameters()), None)
    if first is not None and not first.is_meta:
        return first.device
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        for each in getattr(hook, "hooks", (hook,)):
            place = getattr(each, "execution_device", None)
            if place is not None:
                return torch.device(place)
    return next((p.device for p in module.parameters() if not p.is_meta), torch.device("cpu"))


def in_type_of(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return inputs of a module with pixels and samples in the type of its weights; ids and masks as they are."""
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}
