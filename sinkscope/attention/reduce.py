"""Folding tiles of attention weights into statistics: what is kept of each tile before the next one overwrites it."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int

from sinkscope.attention.tile import Tile
from sinkscope.attention.view import Context, LayerStats, Wants


class Accumulators:
    """Where a pass writes its statistics: allocated once per call, only for what is wanted."""

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        wants: Wants,
        context: Context,
        weight: Float[torch.Tensor, "batch query"],
    ) -> None:
        batch, heads, rows, keys = shape
        device = weight.device
        self.weight = weight

        def empty(*shape: int) -> torch.Tensor:
            return torch.zeros(batch * heads, *shape, device=device)

        self.key_sum = empty(keys) if "key_mass" in wants or "contribution" in wants else None
        self.roles = RoleColumns.of(context, keys) if "role_share" in wants else None
        self.role_share = empty(rows, len(context.role_list)) if self.roles else None
        self.entropy = empty(rows) if "entropy" in wants else None
        self.row_sum = empty(rows) if "row_sum" in wants else None
        self.log_sum_exp = empty(rows) if "log_sum_exp" in wants else None
        self.maxima = [empty(rows) for _ in wants.maxima]
        self.masks = [KeySet.of(mask) for mask in wants.maxima]
        self.map_heads = wants.maps
        self.maps = torch.zeros(batch, len(wants.maps), rows, keys, device=device) if wants.maps else None

    def finish(self, batch: int, stats: LayerStats) -> None:
        """Give the flat (batch head) buffers their shape back and hand them over."""
        for name in ("key_sum", "role_share", "entropy", "row_sum", "log_sum_exp"):
            flat = getattr(self, name)
            if flat is not None:
                setattr(stats, name, rearrange(flat, "(batch head) ... -> batch head ...", batch=batch))
        stats.maxima = [rearrange(flat, "(batch head) query -> batch head query", batch=batch) for flat in self.maxima]
        stats.maps = self.maps


def fold(
    store: Accumulators,
    tile: Tile,
    start: int,
    weights: Float[torch.Tensor, "flat query key"],
    plain: tuple[torch.Tensor, torch.Tensor | None] | None,
    lse: Float[torch.Tensor, "flat query"] | None,
) -> None:
    """Fold one tile into the accumulators, from flat head ``start`` on.

    ``plain`` holds logits and log-sum-exp where the rows are an unedited softmax; the logits are used up.
    """
    weights = weights.detach()
    span = slice(start, start + len(weights))
    rows, cols = tile.rows, tile.cols
    if store.key_sum is not None:
        counted = store.weight[:, None, rows] if len(store.weight) > 1 else store.weight[None, :, rows]
        counted = counted[tile.batch] if len(store.weight) > 1 else counted.expand(len(weights), 1, -1)
        store.key_sum[span, cols] += torch.bmm(counted, weights)[:, 0]
    if store.row_sum is not None:
        store.row_sum[span, rows] = weights.sum(-1)
    if store.role_share is not None and store.roles is not None:
        dead = tile.mask.dead_rows()
        total = None if dead is None else (~dead[tile.batch, rows]).float()
        total = total if plain is not None else weights.sum(-1)
        store.role_share[span, rows] = store.roles.shares(weights, total, tile)
    if store.log_sum_exp is not None and lse is not None:
        store.log_sum_exp[span, rows] = lse.detach()
    for target, mask in zip(store.maxima, store.masks, strict=True):
        target[span, rows] = largest(weights, mask, tile)
    if store.maps is not None:
        for i, head in enumerate(store.map_heads):
            chosen = tile.head == head
            if bool(chosen.any()):
                store.maps[tile.batch[chosen], i, rows, cols] = weights[chosen]
    if store.entropy is None:
        return
    if plain is None or plain[1] is None:
        store.entropy[span, rows] = torch.special.entr(weights).sum(-1)
        return
    # Last use of this tile's logits: their buffer takes the products.
    logits = plain[0].detach()
    products = (
        torch.mul(weights, logits, out=logits)
        if not logits.requires_grad and not torch.is_grad_enabled()
        else weights * logits
    )
    # Rounding may not leave an entropy below zero; a row that sees no key has none.
    store.entropy[span, rows] = (plain[1].detach() - products.sum(-1)).clamp(min=0.0)


@dataclass
class RoleColumns:
    """Role membership of the keys, laid out so that few columns are summed.

    All roles but the most frequent one are summed over their own columns; the most frequent gets the rest of the row,
    which for a softmax is 1 minus the others. Summing every column by a product would cost a sixth of the pass.
    """

    cols: Int[torch.Tensor, " minor"]
    one_hot: Float[torch.Tensor, "batch minor role"]
    major: int
    places: list[int]

    @staticmethod
    def of(context: Context, keys: int) -> RoleColumns:
        """Find the most frequent role of the batch and the columns of all others."""
        one_hot = context.one_hot()[:, -keys:]
        major = int(one_hot.sum((0, 1)).argmax())
        one_hot[..., major] = 0.0
        cols = one_hot.any(-1).any(0).nonzero()[:, 0]
        return RoleColumns(cols, one_hot[:, cols], major, cols.tolist())

    def shares(
        self, weights: Float[torch.Tensor, "flat query key"], total: torch.Tensor | None, tile: Tile
    ) -> Float[torch.Tensor, "flat query role"]:
        """Shares of one tile; ``total`` is the row sum where it is not 1."""
        first, stop = bisect_left(self.places, tile.cols.start), bisect_left(self.places, tile.cols.stop)
        one_hot = self.one_hot[:, first:stop]
        one_hot = one_hot[tile.batch] if len(one_hot) > 1 else one_hot.expand(len(weights), -1, -1)
        shares = torch.bmm(weights.index_select(2, self.cols[first:stop] - tile.cols.start), one_hot)
        rest = (1.0 if total is None else total) - shares.sum(-1)
        shares[..., self.major] = rest.clamp(min=0.0)
        return shares


@dataclass
class KeySet:
    """Keys whose largest weight is wanted: their mask, and the run of columns that holds them all."""

    mask: Bool[torch.Tensor, "batch key"]
    first: int
    stop: int
    whole: bool

    @staticmethod
    def of(mask: Bool[torch.Tensor, "batch key"]) -> KeySet:
        """Find the run of columns once per call."""
        union = mask.any(0).nonzero()[:, 0]
        if len(union) == 0:
            return KeySet(mask, 0, 0, True)
        first, stop = int(union[0]), int(union[-1]) + 1
        return KeySet(mask, first, stop, bool(mask[:, first:stop].all()))


def largest(
    weights: Float[torch.Tensor, "flat query key"], keys: KeySet, tile: Tile
) -> Float[torch.Tensor, "flat query"]:
    """Largest weight on the wanted keys; minus infinity where a row's tile holds none of them."""
    first, stop = max(keys.first, tile.cols.start), min(keys.stop, tile.cols.stop)
    if first >= stop:
        return weights.new_full(weights.shape[:2], -math.inf)
    part = weights[:, :, first - tile.cols.start : stop - tile.cols.start]
    if not keys.whole:
        part = part.masked_fill(~keys.mask[tile.batch][:, None, first:stop], -math.inf)
    return part.amax(-1)
