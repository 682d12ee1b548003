"""The primitives every intervention on attention is made of, resolved against one call.

Log-bias, value or weight edit, extra or null key: ``sinkscope.edits`` says which edit of the literature is which. The
masks of a primitive have the call's own shapes, so a path applies it without knowing where it came from. A primitive
counts what it touched; an edit that touched nothing is an error further up, never silence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int

from sinkscope.attention.masks import HIDDEN_LOGIT
from sinkscope.attention.tile import Tile

FEW = 16
"""Columns up to which picking them out of a tile costs less than a pass over it."""

WeightEdit = Callable[[Float[torch.Tensor, "flat query key"], Tile], Float[torch.Tensor, "flat query key"]]
"""Takes the weights of a tile and returns new ones."""

Gate = Callable[[Float[torch.Tensor, "batch query head dim"]], Float[torch.Tensor, "batch query head dim"]]
"""Takes the output of all heads of a call and returns a new one."""


@dataclass
class Tally:
    """What an edit did in one run: rows changed, rows that saw only hidden keys and were left alone, rows fired on.

    ``touched`` is only counted up to the first rows found: it answers whether, not how often. ``overruled`` counts
    heads of calls in which the edit has no part because of the normaliser that holds there.
    """

    touched: int = 0
    spared: int = 0
    fired: int = 0
    overruled: int = 0

    def add(self, other: Tally) -> None:
        """Add what another run counted."""
        self.touched += other.touched
        self.spared += other.spared
        self.fired += other.fired
        self.overruled += other.overruled

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """The numbers alone, as they are kept beside a result."""
        return self.touched, self.spared, self.fired, self.overruled


@dataclass(kw_only=True)
class KeyTarget:
    """Selected keys in selected rows: ``keys`` (batch, head, key), ``queries`` (batch, query) or None for all rows.

    ``keep_self`` leaves the diagonal out; ``diagonal`` is the key column of query row 0 (what a cache holds before it).
    """

    keys: Bool[torch.Tensor, "batch head key"]
    queries: Bool[torch.Tensor, "batch query"] | None = None
    keep_self: bool = False
    diagonal: int = 0
    tally: Tally = field(default_factory=Tally)

    @property
    def needs_grad(self) -> bool:
        """True where a gradient is wanted of what is done to the keys: kernels with a log-sum-exp carry none."""
        return False

    def chosen(self, tile: Tile) -> tuple[Int[torch.Tensor, " col"], Bool[torch.Tensor, "flat query col"]]:
        """Return the columns of the tile that some head selects, and which of their entries are selected."""
        selected = self.keys[tile.batch, tile.head][:, tile.cols]
        cols = selected.any(0).nonzero()[:, 0]
        found = selected[:, None, cols].expand(-1, tile.rows.stop - tile.rows.start, -1)
        if self.queries is not None:
            found = found & self.queries[tile.batch, tile.rows][:, :, None]
        if self.keep_self:
            row = torch.arange(tile.rows.start, tile.rows.stop, device=cols.device) + self.diagonal
            found = found & (cols[None, :] + tile.cols.start != row[:, None])
        return cols, found

    def count(self, live: Bool[torch.Tensor, "flat query col"]) -> None:
        """Note that rows were changed."""
        # Counting reads the device, so it stops at the first tile that was touched.
        if not self.tally.touched:
            self.tally.touched += int(live.any(-1).sum())


@dataclass(kw_only=True)
class LogBias(KeyTarget):
    """Add ``value`` (one number per head, may carry a gradient) to the logits of the keys; ``hide`` hides them instead.

    Adding log g to a logit multiplies the weight by g and renormalises the row, exactly. A row that sees only hidden
    keys is left as it was: softmax of nothing but hidden logits would spread it over them evenly. In a call with a
    learned sink or a null key that share is part of the row: the softmax runs over both.

    ``neutralised`` keeps a hiding bias from hiding: its call takes the same path, bit for bit, and nothing changes.
    """

    value: Float[torch.Tensor, " head"]
    hide: bool = False
    neutralised: bool = False

    @property
    def hides(self) -> bool:
        """True where the keys are really hidden."""
        return self.hide and not self.neutralised

    @property
    def needs_grad(self) -> bool:
        """True where the bias itself is to be learned."""
        return self.value.requires_grad

    def neutral(self) -> LogBias:
        """Return the same with a bias of 0."""
        return replace(self, value=torch.zeros_like(self.value), neutralised=True, tally=Tally())

    def apply(self, logits: Float[torch.Tensor, "flat query key"], tile: Tile) -> Float[torch.Tensor, "flat query key"]:
        """Return the logits with the bias added to the selected keys of the selected rows."""
        cols, chosen = self.chosen(tile)
        if len(cols) == 0:
            return logits
        if len(cols) > FEW and not self.keep_self and not logits.requires_grad and not self.value.requires_grad:
            return self._apply_to_rows(logits, tile)
        old = logits[:, :, cols]
        # A key the mask hides is not touched: raising its logit would bring it back.
        live = chosen & (old > HIDDEN_LOGIT / 2)
        if self.hides:
            return self._hide(logits, cols, old, live)
        self.count(live)
        step = torch.where(live, self.value[tile.head][:, None, None], torch.zeros((), device=logits.device))
        # Without autograd the tile's own buffer is changed in place; a copy of it would be a second pass over memory.
        if logits.requires_grad or step.requires_grad:
            return logits.index_add(2, cols, step.to(logits.dtype))
        return logits.index_add_(2, cols, step.to(logits.dtype))

    def _hide(
        self, logits: Float[torch.Tensor, "flat query key"], cols: Int[torch.Tensor, " col"],
        old: Float[torch.Tensor, "flat query col"], live: Bool[torch.Tensor, "flat query col"],
    ) -> Float[torch.Tensor, "flat query key"]:  # fmt: skip
        new = torch.where(live, torch.full_like(old, HIDDEN_LOGIT), old)
        hidden = logits.index_copy(2, cols, new) if logits.requires_grad else logits.index_copy_(2, cols, new)
        left_empty = (hidden.amax(-1) <= HIDDEN_LOGIT / 2) & live.any(-1)
        if bool(left_empty.any()):
            self.tally.spared += int(left_empty.sum())
            hidden = hidden.index_copy(2, cols, torch.where(left_empty[..., None], old, new))
            live = live & ~left_empty[..., None]
        self.count(live)
        return hidden

    def _apply_to_rows(
        self, logits: Float[torch.Tensor, "flat query key"], tile: Tile
    ) -> Float[torch.Tensor, "flat query key"]:
        """Add one number per key to whole rows: for many keys cheaper than picking their columns."""
        step = self.value[tile.head][:, None]
        if self.hides:
            step = torch.full((1, 1), HIDDEN_LOGIT, device=logits.device)
        per_key = torch.where(self.keys[tile.batch, tile.head][:, tile.cols], step, torch.zeros_like(step))
        acts = per_key.new_ones(len(per_key), logits.shape[1])
        if self.queries is not None:
            acts = self.queries[tile.batch, tile.rows].to(per_key.dtype)
        before = logits.clone() if self.hides else None
        width = per_key.shape[1]
        logits[:, :, :width].addcmul_(acts[..., None], per_key[:, None])
        touched = (acts > 0) & (per_key != 0).any(-1, keepdim=True)
        if before is not None:
            # A row that was empty before (padding) is not one that this bias emptied.
            left_empty = (logits.amax(-1) <= HIDDEN_LOGIT / 2) & (before.amax(-1) > HIDDEN_LOGIT / 2)
            if bool(left_empty.any()):
                self.tally.spared += int(left_empty.sum())
                logits = torch.where(left_empty[..., None], before, logits)
                touched = touched & ~left_empty
        if not self.tally.touched:
            self.tally.touched += int(touched.sum())
        return logits


@dataclass(kw_only=True)
class AmplifiedLogits(KeyTarget):
    """Add ``alpha`` times its own magnitude to each logit of the keys, before whatever normaliser the head has."""

    alpha: float

    def neutral(self) -> AmplifiedLogits:
        """Return the same with an alpha of 0."""
        return replace(self, alpha=0.0, tally=Tally())

    def apply(self, logits: Float[torch.Tensor, "flat query key"], tile: Tile) -> Float[torch.Tensor, "flat query key"]:
        """Return the logits, amplified at the selected keys of the selected rows."""
        cols, chosen = self.chosen(tile)
        if len(cols) == 0:
            return logits
        old = logits[:, :, cols]
        # A hidden key stays hidden: its huge negative logit would be lifted to a fraction of itself.
        live = chosen & (old > HIDDEN_LOGIT / 2)
        self.count(live)
        return logits.index_copy(2, cols, torch.where(live, old + self.alpha * old.abs(), old))


class KeyedWeightEdit(ABC):
    """A weight edit that acts on selected keys alone: paths that keep only a few keys apart can serve it."""

    @property
    @abstractmethod
    def target(self) -> KeyTarget:
        """The keys it acts on."""

    @abstractmethod
    def neutral(self) -> KeyedWeightEdit:
        """Return the same with nothing changed."""

    @abstractmethod
    def __call__(
        self, weights: Float[torch.Tensor, "flat query key"], tile: Tile
    ) -> Float[torch.Tensor, "flat query key"]:
        """Return the weights of a tile, changed."""


@dataclass
class Reweigh(KeyedWeightEdit):
    """A log-bias after a weight edit: multiply the weights as they are by now, then bring each row back to its sum.

    With no edit before it this equals adding the bias to the logits, since softmax renormalises too.
    """

    bias: LogBias

    @property
    def target(self) -> KeyTarget:
        """The keys of the bias."""
        return self.bias

    def neutral(self) -> Reweigh:
        """Return the same with a bias of 0."""
        return Reweigh(self.bias.neutral())

    def __call__(
        self, weights: Float[torch.Tensor, "flat query key"], tile: Tile
    ) -> Float[torch.Tensor, "flat query key"]:
        """Return the weights, multiplied and renormalised together with the share that is on no key."""
        cols, chosen = self.bias.chosen(tile)
        if len(cols) == 0:
            return weights
        old = weights[:, :, cols]
        live = chosen & (old != 0)
        hides = self.bias.hides
        factor = torch.zeros_like(old) if hides else self.bias.value[tile.head][:, None, None].exp().expand_as(old)
        before = weights.sum(-1)
        changed = weights.index_copy(2, cols, torch.where(live, old * factor, old))
        after = changed.sum(-1)
        if tile.off_keys is not None:
            before, after = before + tile.off_keys, after + tile.off_keys
        left_empty = live.any(-1) & (changed.amax(-1) <= 0)
        self.bias.tally.spared += int(left_empty.sum()) if hides else 0
        self.bias.count(live & ~left_empty[..., None])
        # The smallest normal float32 keeps 0 / 0 out of the branch that torch.where throws away (its gradient stays).
        back = torch.where(left_empty | (after <= 0), torch.ones_like(after), before / after.clamp(min=1e-38))
        tile.scale_off_keys(back)
        return torch.where(left_empty[..., None], weights, changed * back[..., None])


@dataclass(kw_only=True)
class DropWeights(KeyTarget, KeyedWeightEdit):
    """Multiply the weights of the selected keys by ``factor`` (0 drops them) and leave the rest of the row alone."""

    factor: float = 0.0

    @property
    def target(self) -> KeyTarget:
        """The keys themselves."""
        return self

    def neutral(self) -> DropWeights:
        """Return the same with a factor of 1."""
        return replace(self, factor=1.0, tally=Tally())

    def __call__(
        self, weights: Float[torch.Tensor, "flat query key"], tile: Tile
    ) -> Float[torch.Tensor, "flat query key"]:
        """Return the weights without the selected keys."""
        cols, chosen = self.chosen(tile)
        if len(cols) == 0:
            return weights
        old = weights[:, :, cols]
        self.count(chosen & (old != 0))
        return weights.index_copy(2, cols, torch.where(chosen, old * self.factor, old))


@dataclass
class ValueScale:
    """Multiply the value vectors of the selected keys by ``scale`` (0 zeroes them). ``keys`` is (batch, head, key).

    Where ``new`` is given, (batch, head, key, vdim), the vectors are replaced by it instead.
    """

    keys: Bool[torch.Tensor, "batch head key"]
    scale: float = 0.0
    tally: Tally = field(default_factory=Tally)
    new: Float[torch.Tensor, "batch head key vdim"] | None = None

    def neutral(self) -> ValueScale:
        """Return the same with nothing changed."""
        return replace(self, scale=1.0, new=None, tally=Tally())

    def apply(
        self,
        values: Float[torch.Tensor, "*heads key vdim"],
        cut: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
    ) -> Float[torch.Tensor, "*heads key vdim"]:
        """Return the values, changed; ``cut`` brings (batch, head, ...) to the heads that ``values`` are of."""
        chosen = cut(self.keys)
        self.tally.touched = self.tally.touched or int(chosen.sum())
        changed = values * self.scale if self.new is None else cut(self.new).to(values.dtype)
        return torch.where(chosen[..., None], changed, values)


@dataclass
class ExtraKey:
    """One more key and value that every query of the chosen heads sees; the key joins the softmax."""

    key: Float[torch.Tensor, "head dim"]
    value: Float[torch.Tensor, "head vdim"]
    heads: Bool[torch.Tensor, " head"]
