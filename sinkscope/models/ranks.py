"""Whether a model is one rank's part of a model that several processes hold together (tensor parallelism)."""

from __future__ import annotations

from typing import Any

import torch


def mesh_of(network: torch.nn.Module) -> Any | None:
    """Return the mesh of processes that the weights are cut over; None where this process holds them whole."""
    # Weights that are cut to save memory alone (FSDP) are put together for each layer: every rank has all heads.
    if (getattr(network, "tp_size", None) or 1) < 2:
        return None
    for parameter in network.parameters():
        mesh = getattr(parameter, "device_mesh", None)
        if mesh is not None and mesh.size() > 1:
            return mesh if mesh.ndim == 1 else mesh["tp"]
    return None
