"""One tile of a call: some heads x some rows x the keys those rows can see, and the memory it is computed in.

Heads are flat inside a tile: batch and head together on one axis, so that a tile may hold the heads of several prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int

from sinkscope.attention.masks import MaskSpec


@dataclass
class Tile:
    """Where a tile lies in its call, and what its rows hold besides the keys.

    ``off_keys`` is the share of each row that is on no key (learned sink, null or extra key), None where there is none.
    ``off_keys_scale`` gathers what weight edits multiply that share by, so that the extra keys' output follows.
    """

    batch: Int[torch.Tensor, " flat"]
    head: Int[torch.Tensor, " flat"]
    rows: slice
    cols: slice
    mask: MaskSpec
    off_keys: Float[torch.Tensor, "flat query"] | None = None
    off_keys_scale: Float[torch.Tensor, "flat query"] | None = None

    @property
    def visible(self) -> Bool[torch.Tensor, "flat query key"] | None:
        """Which keys each query of the tile sees; None where all of them."""
        seen = self.mask.visible(self.rows, self.cols)
        return None if seen is None else seen[self.batch]

    def scale_off_keys(self, factor: Float[torch.Tensor, "flat query"]) -> None:
        """Multiply the share that is on no key, so that it is renormalised with the keys."""
        if self.off_keys is not None:
            self.off_keys = self.off_keys * factor
            self.off_keys_scale = factor if self.off_keys_scale is None else self.off_keys_scale * factor


Normaliser = str | Callable[[Float[torch.Tensor, "flat query key"], Tile], Float[torch.Tensor, "flat query key"]]
"""Names a normaliser, or takes the logits of a tile (``HIDDEN_LOGIT`` where hidden) and returns its weights."""


class Scratch:
    """Two buffers that every tile of a call is computed in; fresh memory per tile would cost more than arithmetic."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.logits = torch.empty(size, device=device)
        self.weights = torch.empty(size, device=device)

    @staticmethod
    def view(buffer: torch.Tensor, *shape: int) -> torch.Tensor:
        """Return the first numbers of a buffer, shaped."""
        return buffer[: math.prod(shape)].view(shape)


@dataclass
class TileInputs:
    """What a tile is computed from: all queries, keys and values of its heads, and the rows it covers.

    The query is already scaled. ``where`` holds batch and head of each flat head. ``scratch`` is None where autograd
    must keep what a tile makes.
    """

    query: Float[torch.Tensor, "flat query dim"]
    key: Float[torch.Tensor, "flat key dim"]
    value: Float[torch.Tensor, "flat key vdim"]
    where: tuple[Int[torch.Tensor, " flat"], Int[torch.Tensor, " flat"]]
    rows: slice
    scratch: Scratch | None
