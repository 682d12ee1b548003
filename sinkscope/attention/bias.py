"""Edits as primitives on one attention call: log-bias, value or weight edit, extra or null key, head gate, normaliser.

Every intervention on attention in the literature is made of these (``sinkscope.edits`` says how). Each primitive is
resolved against one call: its masks have the call's own shapes, so the pass applies them without knowing where they
came from. A primitive counts what it touched; an edit that touched nothing is an error further up, never silence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int

from sinkscope.attention.masks import MaskSpec

NEG = -1e30
"""Logit of a hidden key. Finite, so 0 x logit stays 0 in the entropy; exp of it is exactly 0 in float32."""

FEW = 16
"""Columns up to which picking them out of a tile costs less than a pass over it."""


@dataclass
class Tile:
    """Some heads x some rows of one call: logits, then weights. Heads are flat: batch and head together.

    ``rest`` is the share of each row that is on no key (learned sink, null or extra key), None where there is none.
    ``rest_scale`` gathers what weight edits multiply it by.
    """

    batch: Int[torch.Tensor, " flat"]
    head: Int[torch.Tensor, " flat"]
    rows: slice
    cols: slice
    mask: MaskSpec
    rest: Float[torch.Tensor, "flat query"] | None = None
    rest_scale: Float[torch.Tensor, "flat query"] | None = None

    @property
    def visible(self) -> Bool[torch.Tensor, "flat query key"] | None:
        """Which keys each query of the tile sees; None where all of them."""
        seen = self.mask.visible(self.rows, self.cols)
        return None if seen is None else seen[self.batch]

    def scale_rest(self, factor: Float[torch.Tensor, "flat query"]) -> None:
        """Multiply the share that is on no key, so that it is renormalised with the keys."""
        if self.rest is not None:
            self.rest = self.rest * factor
            self.rest_scale = factor if self.rest_scale is None else self.rest_scale * factor


@dataclass
class Tally:
    """What an edit did in one run: rows changed, rows that saw only hidden keys and were left alone, rows fired on.

    ``touched`` is only counted up to the first rows found: it answers whether, not how often.
    """

    touched: int = 0
    spared: int = 0
    fired: int = 0


@dataclass(kw_only=True)
class KeyTarget:
    """Selected keys in selected rows: ``keys`` (batch, head, key), ``queries`` (batch, query) or None for all rows.

    ``keep_self`` leaves the diagonal out; ``diagonal`` is the key column of query row 0.
    """

    keys: Bool[torch.Tensor, "batch head key"]
    queries: Bool[torch.Tensor, "batch query"] | None = None
    keep_self: bool = False
    diagonal: int = 0
    tally: Tally = field(default_factory=Tally)

    def chosen(self, tile: Tile) -> tuple[Int[torch.Tensor, " col"], Bool[torch.Tensor, "flat query col"]]:
        """Columns of the tile that some head selects, and which of their entries are selected."""
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
        if not self.tally.touched:
            self.tally.touched += int(live.any(-1).sum())


@dataclass(kw_only=True)
class LogBias(KeyTarget):
    """Add ``value`` (one number per head, may carry a gradient) to the logits of the keys; ``hide`` hides them instead.

    A row that sees only hidden keys is left as it was. In a call with a learned sink or a null key that share is part
    of the row: the softmax runs over both.
    """

    value: Float[torch.Tensor, " head"]
    hide: bool = False
    inert: bool = False
    """Hides nothing though ``hide`` is set: the path taken is the same."""

    def neutral(self) -> LogBias:
        """The same with a bias of 0."""
        return replace(self, value=torch.zeros_like(self.value), inert=True, tally=Tally())

    def apply(self, logits: Float[torch.Tensor, "flat query key"], tile: Tile) -> Float[torch.Tensor, "flat query key"]:
        """Return the logits with the bias added to the selected keys of the selected rows."""
        cols, chosen = self.chosen(tile)
        if len(cols) == 0:
            return logits
        if len(cols) > FEW and not self.keep_self and not logits.requires_grad and not self.value.requires_grad:
            return self._apply_whole(logits, tile)
        old = logits[:, :, cols]
        live = chosen & (old > NEG / 2)
        if self.hide and not self.inert:
            new = torch.where(live, torch.full_like(old, NEG), old)
            hidden = logits.index_copy(2, cols, new) if logits.requires_grad else logits.index_copy_(2, cols, new)
            blind = (hidden.amax(-1) <= NEG / 2) & live.any(-1)
            if bool(blind.any()):
                self.tally.spared += int(blind.sum())
                hidden = hidden.index_copy(2, cols, torch.where(blind[..., None], old, new))
                live = live & ~blind[..., None]
            self.count(live)
            return hidden
        self.count(live)
        step = torch.where(live, self.value[tile.head][:, None, None], torch.zeros((), device=logits.device))
        if logits.requires_grad or step.requires_grad:
            return logits.index_add(2, cols, step.to(logits.dtype))
        return logits.index_add_(2, cols, step.to(logits.dtype))

    def _apply_whole(
        self, logits: Float[torch.Tensor, "flat query key"], tile: Tile
    ) -> Float[torch.Tensor, "flat query key"]:
        """Add one number per key to whole rows: for many keys cheaper than picking their columns."""
        hide = self.hide and not self.inert
        step = self.value[tile.head][:, None] if not hide else torch.full((1, 1), NEG, device=logits.device)
        per_key = torch.where(self.keys[tile.batch, tile.head][:, tile.cols], step, torch.zeros_like(step))
        acts = per_key.new_ones(len(per_key), logits.shape[1])
        if self.queries is not None:
            acts = self.queries[tile.batch, tile.rows].to(per_key.dtype)
        before = logits.clone() if hide else None
        width = per_key.shape[1]
        logits[:, :, :width].addcmul_(acts[..., None], per_key[:, None])
        touched = (acts > 0) & (per_key != 0).any(-1, keepdim=True)
        if before is not None:
            blind = (logits.amax(-1) <= NEG / 2) & (before.amax(-1) > NEG / 2)
            if bool(blind.any()):
                self.tally.spared += int(blind.sum())
                logits = torch.where(blind[..., None], before, logits)
                touched = touched & ~blind
        if not self.tally.touched:
            self.tally.touched += int(touched.sum())
        return logits

    def reweigh(
        self, weights: Float[torch.Tensor, "flat query key"], tile: Tile
    ) -> Float[torch.Tensor, "flat query key"]:
        """Do the same to weights that an earlier edit has changed: multiply, then bring each row back to its sum."""
        cols, chosen = self.chosen(tile)
        if len(cols) == 0:
            return weights
        old = weights[:, :, cols]
        live = chosen & (old != 0)
        hide = self.hide and not self.inert
        factor = torch.zeros_like(old) if hide else self.value[tile.head][:, None, None].exp().expand_as(old)
        before = weights.sum(-1)
        changed = weights.index_copy(2, cols, torch.where(live, old * factor, old))
        after = changed.sum(-1)
        if tile.rest is not None:
            before, after = before + tile.rest, after + tile.rest
        blind = live.any(-1) & (changed.amax(-1) <= 0)
        self.tally.spared += int(blind.sum()) if hide else 0
        self.count(live & ~blind[..., None])
        back = torch.where(blind | (after <= 0), torch.ones_like(after), before / after.clamp(min=1e-38))
        tile.scale_rest(back)
        return torch.where(blind[..., None], weights, changed * back[..., None])


@dataclass(kw_only=True)
class DropWeights(KeyTarget):
    """Multiply the weights of the selected keys by ``factor`` (0 drops them) and leave the rest of the row alone."""

    factor: float = 0.0

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


def _neutral_weights(change: WeightEdit) -> WeightEdit:
    if isinstance(change, DropWeights):
        return replace(change, factor=1.0, tally=Tally())
    owner = getattr(change, "__self__", None)
    return owner.neutral().reweigh if isinstance(owner, LogBias) else lambda weights, _: weights


WeightEdit = Callable[[Float[torch.Tensor, "flat query key"], Tile], Float[torch.Tensor, "flat query key"]]
"""Takes the weights of a tile and returns new ones."""

Gate = Callable[[Float[torch.Tensor, "batch query head dim"]], Float[torch.Tensor, "batch query head dim"]]
"""Takes the output of all heads of a call and returns a new one."""


@dataclass
class ValueScale:
    """Multiply the value vectors of the selected keys by ``scale`` (0 zeroes them). ``keys`` is (batch, head, key)."""

    keys: Bool[torch.Tensor, "batch head key"]
    scale: float = 0.0
    tally: Tally = field(default_factory=Tally)


@dataclass
class ExtraKey:
    """One more key and value that every query of the chosen heads sees; the key joins the softmax."""

    key: Float[torch.Tensor, "head dim"]
    value: Float[torch.Tensor, "head vdim"]
    heads: Bool[torch.Tensor, " head"]


@dataclass
class CallEdits:
    """Everything to be changed in one attention call.

    Log-biases that stand before every weight edit act on the logits; later ones on the weights. The normaliser and what
    shares its denominator hold wherever they stand. ``blockwise`` asks for the blockwise pass though nothing changes.
    """

    biases: list[LogBias] = field(default_factory=list)
    weights: list[WeightEdit] = field(default_factory=list)
    values: list[ValueScale] = field(default_factory=list)
    gates: list[Gate] = field(default_factory=list)
    null_logits: Float[torch.Tensor, " head"] | None = None
    extra_keys: list[ExtraKey] = field(default_factory=list)
    normalisers: dict[str, Bool[torch.Tensor, " head"]] = field(default_factory=dict)
    blockwise: bool = False

    def add_bias(self, bias: LogBias) -> None:
        """Put a log-bias where its place in the list says: on the logits, or on weights already edited."""
        if self.weights:
            self.weights.append(bias.reweigh)
        else:
            self.biases.append(bias)

    def add_null(self, logits: Float[torch.Tensor, " head"]) -> None:
        """Add a key without a value; several make one, the sum of their exponentials."""
        self.null_logits = logits if self.null_logits is None else torch.logaddexp(self.null_logits, logits)

    def swap(self, kind: str, heads: Bool[torch.Tensor, " head"]) -> None:
        """Give the heads another normaliser; a later swap wins."""
        for other in self.normalisers.values():
            other &= ~heads
        self.normalisers[kind] = self.normalisers.get(kind, torch.zeros_like(heads)) | heads

    def neutral(self) -> CallEdits:
        """The same path through the pass with nothing changed: what an edited call is compared with, bit for bit."""
        same = CallEdits(blockwise=self.blockwise or bool(set(self.normalisers) - {"softmax1"}))
        same.biases = [bias.neutral() for bias in self.biases]
        same.weights = [_neutral_weights(change) for change in self.weights]
        same.values = [replace(change, scale=1.0, tally=Tally()) for change in self.values]
        same.gates = [lambda out: out for _ in self.gates]
        same.extra_keys = [replace(each, heads=torch.zeros_like(each.heads)) for each in self.extra_keys]
        if self.null_logits is not None:
            same.null_logits = torch.full_like(self.null_logits, -torch.inf)
        elif "softmax1" in self.normalisers:
            same.null_logits = torch.full(self.normalisers["softmax1"].shape, -torch.inf)
        return same

    def __bool__(self) -> bool:
        return bool(
            self.biases or self.weights or self.values or self.gates or self.normalisers or self.extra_keys
            or self.null_logits is not None or self.blockwise
        )  # fmt: skip
