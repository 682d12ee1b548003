"""Functions of an edit on weights and outputs, kept to the heads and rows that it selects, and counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float

from sinkscope.attention.primitives import Tally
from sinkscope.attention.tile import Tile


@dataclass
class ChangedWeights:
    """Weights of the selected heads and rows put through a function; ``conditional`` counts every row it changed."""

    function: Callable[[Float[torch.Tensor, "flat query key"], Tile], Float[torch.Tensor, "flat query key"]]
    heads: Bool[torch.Tensor, " head"]
    queries: Bool[torch.Tensor, "batch query"] | None
    tally: Tally
    conditional: bool = False

    def __call__(
        self, weights: Float[torch.Tensor, "flat query key"], tile: Tile
    ) -> Float[torch.Tensor, "flat query key"]:
        """Return the weights as they become."""
        where = self.heads[tile.head][:, None]
        if self.queries is not None:
            where = where & self.queries[tile.batch, tile.rows]
        if not bool(where.any()):
            return weights
        new = torch.where(where[..., None], self.function(weights, tile), weights)
        if self.conditional or not self.tally.touched:
            changed = int((new != weights).any(-1).sum())
            self.tally.touched += changed
            self.tally.fired += changed if self.conditional else 0
        return new


@dataclass
class ChangedOutput:
    """Outputs of the selected heads and rows put through a function."""

    function: Callable[[Float[torch.Tensor, "batch query head dim"]], Float[torch.Tensor, "batch query head dim"]]
    heads: Bool[torch.Tensor, " head"]
    queries: Bool[torch.Tensor, "batch query"] | None
    tally: Tally

    def __call__(self, out: Float[torch.Tensor, "batch query head dim"]) -> Float[torch.Tensor, "batch query head dim"]:
        """Return the outputs as they become."""
        where = self.heads[None, None, :, None]
        if self.queries is not None:
            where = where & self.queries[:, :, None, None]
        self.tally.touched = self.tally.touched or int(where.any(-1).any(-1).sum())
        return torch.where(where, self.function(out).to(out.dtype), out)
