"""The statistics that come with sinkscope; :mod:`~sinkscope.attention.statistic` says how to add one."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int

from sinkscope.attention.statistic import CallFacts, CallStatistic, RowStatistic, Statistic, WeightTile
from sinkscope.attention.tile import Tile
from sinkscope.attention.view import Ask, Context


class KeySum(Statistic):
    """Attention each key gets, summed over real queries.

    ``queries`` (batch, query) limits the queries; outside ``keys`` (batch, key) the sums are NaN.
    """

    name = "key_sum"
    dims = ("head", "key")

    def __init__(self, asks: Sequence[Ask], facts: CallFacts) -> None:
        super().__init__(asks, facts)
        batch, heads, _, keys = facts.shape
        masks = [facts.queries(ask) for ask in asks]
        rows = max(len(mask) for mask in masks)
        # All sets of queries in one product: a set more costs next to nothing, a pass over the tile does.
        self.members = torch.stack([mask.expand(rows, -1) for mask in masks], 1).float()
        self.sums = torch.zeros(batch * heads, len(asks), keys, device=self.device)

    def fold(self, part: WeightTile) -> None:
        """Add up the columns of one tile."""
        members = self.members[:, :, part.tile.rows]
        members = members[0] if len(members) == 1 else members[part.tile.batch]
        self.sums[part.flat, :, part.tile.cols] += torch.matmul(members, part.weights)

    def finish(self) -> list[torch.Tensor]:
        """Return the sums of each set of queries."""
        sums = rearrange(self.sums, "(batch head) set key -> set batch head key", batch=self.facts.shape[0])
        # Keys that nobody asked about are NaN, never 0: a 0 would read as a key without attention.
        return [
            each.masked_fill(~ask.of["keys"][:, None], torch.nan) if "keys" in ask.of else each
            for ask, each in zip(self.asks, sums, strict=True)
        ]


class KeyViewers(CallStatistic):
    """Number of real queries (those of ``queries``) that can see each key."""

    name = "key_viewers"
    dims = ("key",)

    def of_call(self, ask: Ask) -> Float[torch.Tensor, "batch key"]:
        """Count by the mask's rule."""
        return self.facts.viewers(self.facts.queries(ask))


class RoleShares(RowStatistic):
    """Attention of each query on the keys of each role; the columns are those of ``Context.role_list``."""

    name = "role_share"
    dims = ("head", "query", "role")

    def __init__(self, asks: Sequence[Ask], facts: CallFacts) -> None:
        super().__init__(asks, facts)
        self.roles = RoleColumns.of(facts.context, facts.shape[3])

    def more(self, ask: Ask) -> tuple[int, ...]:
        """One number a role."""
        return (len(self.facts.context.role_list),)

    def rows(self, part: WeightTile, ask: Ask) -> Float[torch.Tensor, "flat query role"]:
        """Sum the columns of the rarer roles; the most frequent one gets the rest."""
        if part.logits is None:
            return self.roles.shares(part.weights, part.weights.sum(-1), part.tile)
        dead = part.tile.mask.dead_rows()
        total = None if dead is None else (~dead[part.tile.batch, part.tile.rows]).float()
        return self.roles.shares(part.weights, total, part.tile)


class RowEntropies(RowStatistic):
    """Entropy of each row in nats, over the keys alone."""

    name = "entropy"
    reads = frozenset({"weights", "log_sum_exp"})
    overwrites_logits = True

    def rows(self, part: WeightTile, ask: Ask) -> Float[torch.Tensor, "flat query"]:
        """Return log-sum-exp - sum(p t) for a softmax of logits t, else -sum(p log p)."""
        if part.logits is None or part.lse is None:
            return torch.special.entr(part.weights).sum(-1)
        keep = torch.is_grad_enabled()  # autograd still needs the logits
        # Last use of this tile's logits: their buffer takes the products.
        products = part.weights * part.logits if keep else torch.mul(part.weights, part.logits, out=part.logits)
        # Rounding may not leave an entropy below zero; a row that sees no key has none.
        return (part.lse - products.sum(-1)).clamp(min=0.0)


class RowSums(RowStatistic):
    """Sum of each row; below 1 the rest is on no key."""

    name = "row_sum"

    def rows(self, part: WeightTile, ask: Ask) -> Float[torch.Tensor, "flat query"]:
        """Add up the keys."""
        return part.weights.sum(-1)


class LogSumExps(RowStatistic):
    """Log of the softmax denominator over the keys."""

    name = "log_sum_exp"
    reads = frozenset({"log_sum_exp"})

    def rows(self, part: WeightTile, ask: Ask) -> Float[torch.Tensor, "flat query"]:
        """Pass it through; rows without a softmax have none."""
        return part.weights.new_zeros(part.weights.shape[:2]) if part.lse is None else part.lse


class MaxLogit(RowStatistic):
    """Largest logit of each row before the softmax, as the softmax sees it: scaled, capped, biased, masked.

    NaN where the rows are no softmax of their logits.
    """

    name = "max_logit"

    def rows(self, part: WeightTile, ask: Ask) -> Float[torch.Tensor, "flat query"]:
        """Look at the keys that the row sees."""
        if part.logits is None:
            return part.weights.new_full(part.weights.shape[:2], torch.nan)
        return part.logits.amax(-1)


class MaxWeight(RowStatistic):
    """Largest weight of each row on ``keys`` (batch, key); minus infinity where the row sees none of them."""

    name = "max_weight"

    def __init__(self, asks: Sequence[Ask], facts: CallFacts) -> None:
        super().__init__(asks, facts)
        self.sets = {id(ask): KeySet.of(ask.of["keys"]) for ask in asks}

    def rows(self, part: WeightTile, ask: Ask) -> Float[torch.Tensor, "flat query"]:
        """Look at the columns that hold the keys."""
        return self.sets[id(ask)].largest(part.weights, part.tile)


class TopColumn(RowStatistic):
    """Column of the largest weight of each row; a row that sees no key has minus 1."""

    name = "top_column"

    def rows(self, part: WeightTile, ask: Ask) -> Float[torch.Tensor, "flat query"]:
        """Look for the largest weight; of equal ones the first."""
        best = part.weights.max(-1)
        return torch.where(best.values > 0, best.indices + part.tile.cols.start, -1).to(part.weights.dtype)


class Map(Statistic):
    """The weights themselves, of the query heads in ``heads``."""

    name = "map"
    dims = ("head", "query", "key")

    def __init__(self, asks: Sequence[Ask], facts: CallFacts) -> None:
        super().__init__(asks, facts)
        batch, _, rows, keys = facts.shape
        self.kept = [torch.zeros(batch, len(ask.of["heads"]), rows, keys, device=self.device) for ask in asks]

    def fold(self, part: WeightTile) -> None:
        """Keep the weights of the named heads."""
        tile, weights = part.tile, part.weights
        for ask, kept in zip(self.asks, self.kept, strict=True):
            for place, head in enumerate(ask.of["heads"]):
                chosen = tile.head == head
                if bool(chosen.any()):
                    kept[tile.batch[chosen], place, tile.rows, tile.cols] = weights[chosen]

    def finish(self) -> list[torch.Tensor]:
        """Return one map per ask."""
        return self.kept


class ValueNorms(CallStatistic):
    """l2 norm of each value vector, per key-value head."""

    name = "value_norm"
    dims = ("kv_head", "key")

    def of_call(self, ask: Ask) -> Float[torch.Tensor, "batch kv_head key"]:
        """Take norms in float32."""
        assert self.facts.value is not None
        return torch.linalg.vector_norm(self.facts.value.float(), dim=-1)


class KeyNorms(CallStatistic):
    """l2 norm of each key vector as attention sees it, per key-value head."""

    name = "key_norm"
    dims = ("kv_head", "key")

    def of_call(self, ask: Ask) -> Float[torch.Tensor, "batch kv_head key"]:
        """Take norms in float32."""
        assert self.facts.key is not None
        return torch.linalg.vector_norm(self.facts.key.float(), dim=-1)


class WrittenNorm(CallStatistic):
    """Norm of what each head writes for each key, |W_O v|, once the backend has put W_O to it.

    The pass hands over the values; see :mod:`sinkscope.models.backends.written`.
    """

    name = "write_norm"
    dims = ("kv_head", "key", "dim")

    def of_call(self, ask: Ask) -> Float[torch.Tensor, "batch kv_head key dim"]:
        """Pass them through."""
        assert self.facts.value is not None
        return self.facts.value


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
        """Find the most frequent role of the batch and the columns of all others, once for all layers."""
        if (known := context.cache.get(("roles", keys))) is not None:
            return known
        one_hot = context.one_hot()[:, -keys:].clone()
        major = int(one_hot.sum((0, 1)).argmax())
        one_hot[..., major] = 0.0
        cols = one_hot.any(-1).any(0).nonzero()[:, 0]
        found = context.cache["roles", keys] = RoleColumns(cols, one_hot[:, cols], major, cols.tolist())
        return found

    def shares(
        self, weights: Float[torch.Tensor, "flat query key"], total: torch.Tensor | None, tile: Tile
    ) -> Float[torch.Tensor, "flat query role"]:
        """Return the shares of one tile; ``total`` is the row sum where it is not 1."""
        first, stop = bisect_left(self.places, tile.cols.start), bisect_left(self.places, tile.cols.stop)
        one_hot = self.one_hot[:, first:stop]
        one_hot = one_hot[tile.batch] if len(one_hot) > 1 else one_hot.expand(len(weights), -1, -1)
        shares = torch.bmm(weights.index_select(2, self.cols[first:stop] - tile.cols.start), one_hot)
        return self.with_rest(shares, 1.0 if total is None else total)

    def with_rest(
        self, shares: Float[torch.Tensor, "*rows role"], total: Float[torch.Tensor, "*rows"] | float
    ) -> Float[torch.Tensor, "*rows role"]:
        """Give the most frequent role what the others leave of each row; in place."""
        shares[..., self.major] = (total - shares.sum(-1)).clamp(min=0.0)
        return shares

    def spread(self, keys: int) -> Float[torch.Tensor, "batch key role"]:
        """Return membership of every key in the summed roles; keys of the most frequent one are in none."""
        batch, _, roles = self.one_hot.shape
        spread = torch.zeros(batch, keys, roles, device=self.one_hot.device)
        spread[:, self.cols] = self.one_hot
        return spread


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

    def largest(self, weights: Float[torch.Tensor, "flat query key"], tile: Tile) -> Float[torch.Tensor, "flat query"]:
        """Return the largest weight on the keys; minus infinity where a row's tile holds none of them."""
        first, stop = max(self.first, tile.cols.start), min(self.stop, tile.cols.stop)
        if first >= stop:
            return weights.new_full(weights.shape[:2], -math.inf)
        part = weights[:, :, first - tile.cols.start : stop - tile.cols.start]
        if not self.whole:
            part = part.masked_fill(~self.mask[tile.batch][:, None, first:stop], -math.inf)
        return part.amax(-1)
