"""Edits as primitives on one attention call: log-bias, value edit, extra or null key, weight edit, head gate, normaliser.

Every intervention on attention in the literature is made of these (``sinkscope.edits`` says how). Each primitive is
resolved against one call: its masks have the call's own shapes, so the pass applies them without knowing where they
came from. A primitive counts what it touched; an edit that touched nothing is an error further up, never silence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int

from sinkscope.attention.masks import MaskSpec

NEG = -1e30
"""Logit of a hidden key. Finite, so 0 x logit stays 0 in the entropy; exp of it is exactly 0 in float32."""


@dataclass
class Tile:
    """Some heads x some rows of one call: logits before, weights after the softmax. Flat heads: batch and head together."""

    batch: Int[torch.Tensor, " flat"]
    head: Int[torch.Tensor, " flat"]
    rows: slice
    cols: slice
    mask: MaskSpec

    @property
    def visible(self) -> Bool[torch.Tensor, "flat query key"] | None:
        """Which keys each query of the tile sees; None where all of them."""
        seen = self.mask.visible(self.rows, self.cols)
        return None if seen is None else seen[self.batch]


@dataclass
class Tally:
    """What an edit did in one run: rows changed, rows that saw only hidden keys and were left alone, calls fired."""

    touched: int = 0
    spared: int = 0
    fired: int = 0


@dataclass
class LogBias:
    """Add ``value`` to the logits of the selected keys; minus infinity hides them.

    ``keys`` is (batch, head, key), ``queries`` (batch, query) or None for all; ``keep_self`` leaves the diagonal as it is.
    ``value`` is one number per head and may carry a gradient. A row that sees only hidden keys is left as it was.
    """

    keys: Bool[torch.Tensor, "batch head key"]
    value: Float[torch.Tensor, " head"]
    queries: Bool[torch.Tensor, "batch query"] | None = None
    keep_self: bool = False
    hide: bool = False
    diagonal: int = 0
    tally: Tally = field(default_factory=Tally)

    def apply(self, logits: Float[torch.Tensor, "flat query key"], tile: Tile) -> Float[torch.Tensor, "flat query key"]:
        """Return the logits with the bias added to the selected keys of the selected rows."""
        selected = self.keys[tile.batch, tile.head][:, tile.cols]
        cols = selected.any(0).nonzero()[:, 0]
        if len(cols) == 0:
            return logits
        chosen = selected[:, None, cols].expand(-1, logits.shape[1], -1)
        if self.queries is not None:
            chosen = chosen & self.queries[tile.batch, tile.rows][:, :, None]
        if self.keep_self:
            row = torch.arange(tile.rows.start, tile.rows.stop, device=logits.device) + self.diagonal
            chosen = chosen & (cols[None, :] + tile.cols.start != row[:, None])
        old = logits[:, :, cols]
        live = chosen & (old > NEG / 2)
        self.tally.touched += int(live.any(-1).sum())
        if self.hide:
            new = torch.where(live, torch.full_like(old, NEG), old)
            logits = logits.index_copy(2, cols, new) if logits.requires_grad else logits.index_copy_(2, cols, new)
            blind = (logits.amax(-1) <= NEG / 2) & live.any(-1)
            if bool(blind.any()):
                self.tally.spared += int(blind.sum())
                back = torch.where(blind[..., None], old, new)
                logits = logits.index_copy(2, cols, back)
            return logits
        step = torch.where(live, self.value[tile.head][:, None, None], torch.zeros((), device=logits.device))
        return logits.index_add(2, cols, step) if logits.requires_grad or step.requires_grad else logits.index_add_(
            2, cols, step
        )  # fmt: skip


WeightEdit = Callable[[Float[torch.Tensor, "flat query key"], Tile], Float[torch.Tensor, "flat query key"]]
"""Takes the weights of a tile and returns new ones; may work in place where no gradient is asked for."""


@dataclass
class ValueScale:
    """Multiply the value vectors of the selected keys by ``scale`` (0 zeroes them). ``keys`` is (batch, head, key)."""

    keys: Bool[torch.Tensor, "batch head key"]
    scale: float = 0.0
    tally: Tally = field(default_factory=Tally)


@dataclass
class HeadGate:
    """Multiply each head's output by ``scale`` and add ``shift`` (both per head; the shift is (head, head_dim))."""

    scale: Float[torch.Tensor, " head"]
    shift: Float[torch.Tensor, "head dim"] | None = None
    tally: Tally = field(default_factory=Tally)


@dataclass
class CallEdits:
    """Everything to be changed in one attention call, in the order of the user's list within each kind."""

    biases: list[LogBias] = field(default_factory=list)
    weights: list[WeightEdit] = field(default_factory=list)
    values: list[ValueScale] = field(default_factory=list)
    gates: list[HeadGate] = field(default_factory=list)
    null_logits: Float[torch.Tensor, " head"] | None = None
    extra_key: Float[torch.Tensor, "head dim"] | None = None
    extra_value: Float[torch.Tensor, "head dim"] | None = None
    normaliser: str | None = None
    normaliser_heads: Bool[torch.Tensor, " head"] | None = None

    def __bool__(self) -> bool:
        return bool(
            self.biases or self.weights or self.values or self.gates or self.normaliser
            or self.null_logits is not None or self.extra_key is not None
        )  # fmt: skip
