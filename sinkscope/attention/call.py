"""One attention call as a model makes it, and the operands of one tile of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int

from sinkscope.attention.masks import MaskSpec


@dataclass
class Call:
    """One attention call as a model makes it: keys and values un-repeated, rotary positions already applied."""

    query: Float[torch.Tensor, "batch head query dim"]
    key: Float[torch.Tensor, "batch kv_head key dim"]
    value: Float[torch.Tensor, "batch kv_head key vdim"]
    mask: MaskSpec
    scale: float
    bias: torch.Tensor | None = None
    softcap: float | None = None
    sink_logits: Float[torch.Tensor, " head"] | None = None
    extra_key: Float[torch.Tensor, "head dim"] | None = None
    normaliser: str = "softmax"


class Scratch:
    """Two buffers that every tile of a call is computed in; fresh memory per tile would cost more than arithmetic."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.logits = torch.empty(size, device=device)
        self.weights = torch.empty(size, device=device)

    @staticmethod
    def view(buffer: torch.Tensor, *shape: int) -> torch.Tensor:
        """The first numbers of a buffer, shaped."""
        return buffer[: math.prod(shape)].view(shape)


@dataclass
class Work:
    """The operands of one tile: some flat heads, all keys, and the rows it covers."""

    query: Float[torch.Tensor, "flat query dim"]
    key: Float[torch.Tensor, "flat key dim"]
    value: Float[torch.Tensor, "flat key columns"]
    where: tuple[Int[torch.Tensor, " flat"], Int[torch.Tensor, " flat"]]
    rows: slice
    scratch: Scratch | None
