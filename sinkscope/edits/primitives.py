"""Functions of an edit on weights and outputs, kept to the heads and rows that it selects, and counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float

from sinkscope.attention.primitives import Tally
from sinkscope.attention.tile import Tile
from sinkscope.errors import EditError


def require_shape(new: object, old: torch.Tensor, made_by: str) -> None:
    """Refuse what an edit made in place of a tensor where it is none, or one that would be spread over the other.

    Raises:
        EditError: says who made it, and of what shape it should be.
    """
    if not isinstance(new, torch.Tensor) or new.shape != old.shape:
        got = f"a tensor of shape {tuple(new.shape)}" if isinstance(new, torch.Tensor) else f"a {type(new).__name__}"
        raise EditError(f"{made_by} gave {got}; what it was given is of shape {tuple(old.shape)}. Return the same.")


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
        made = self.function(weights, tile)
        require_shape(made, weights, f"the edit's function of weights {_named(self.function)}")
        new = torch.where(where[..., None], made, weights)
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
        made = self.function(out)
        require_shape(made, out, f"the edit's function of outputs {_named(self.function)}")
        return torch.where(where, made.to(out.dtype), out)


def _named(function: Callable[..., object]) -> str:
    return str(getattr(function, "__qualname__", type(function).__name__))
