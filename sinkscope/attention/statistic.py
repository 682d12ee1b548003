"""What a statistic of attention is: what it keeps of each tile of weights before the next one overwrites it.

To add one, subclass :class:`RowStatistic` (a number or several per query), :class:`Statistic` (anything else), or
:class:`CallStatistic` (of keys and values alone), give it a ``name`` and its ``dims``, and write what it takes from one
tile. It registers itself; a probe asks for it by name. Joining over several calls of a module, cutting by rows of the
batch, edits, caches and finished maps of other backends are served by the same few lines.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float

from sinkscope import registry
from sinkscope.attention.call import Call
from sinkscope.attention.tile import Tile
from sinkscope.attention.view import Ask, Context


@dataclass
class CallFacts:
    """What a statistic may know of a call besides its weights.

    ``shape`` is (batch, head, query, key). ``viewers`` counts, for a mask of queries, those that can see each key.
    """

    shape: tuple[int, int, int, int]
    key: Float[torch.Tensor, "batch kv_head key dim"] | None
    value: Float[torch.Tensor, "batch kv_head key vdim"] | None
    viewers: Callable[[Bool[torch.Tensor, "batch query"]], Float[torch.Tensor, "batch key"]]
    context: Context

    @staticmethod
    def of(call: Call, context: Context) -> CallFacts:
        """Return the facts of a call as a model makes it."""
        batch, heads, rows, _ = call.query.shape
        return CallFacts(
            (batch, heads, rows, call.key.shape[2]), call.key.detach(), call.value.detach(), call.mask.viewers, context
        )

    @cached_property
    def real_queries(self) -> Bool[torch.Tensor, "batch query"]:
        """Return which queries are real tokens.

        With a cache the queries are the last positions of what the context covers. A call with more rows than that is
        of other tokens than the prompt's (patches of an image inside a larger model): all of them are real.
        """
        if self.context.queries is not None:
            return self.context.queries
        real, rows = self.context.real, self.shape[2]
        own = real.shape[1] >= rows
        return self.once("queries", real, lambda: real[:, -rows:] if own else real.new_ones(len(real), rows))

    def queries(self, ask: Ask) -> Bool[torch.Tensor, "batch query"]:
        """Return the real queries that a statistic is asked of: those of its argument ``queries``, or all."""
        asked = ask.of.get("queries")
        if asked is None:
            return self.real_queries
        return self.once("queries", asked, lambda: asked[:, -self.shape[2] :] & self.real_queries)

    def once(self, what: str, mask: torch.Tensor, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return what follows from a mask and the call's size alone: the same tensor in every layer, computed once."""
        key = (what, id(mask), self.shape[2:])
        if key not in self.context.cache:
            self.context.cache[key] = mask, make()  # the mask is kept, so that its id is not given to another
        return self.context.cache[key][1]


@dataclass
class WeightTile:
    """Weights of one tile, and where they belong.

    Attributes:
        tile: batch and head of each flat head, rows and columns of the call.
        flat: place of these heads on the flat (batch head) axis.
        weights: the attention weights, without a gradient.
        logits: logits of an unedited softmax, None where the rows are none. The last statistic that reads them may
            overwrite them.
        lse: log-sum-exp of the keys' logits, None where it was not computed.
    """

    tile: Tile
    flat: slice
    weights: Float[torch.Tensor, "flat query key"]
    logits: Float[torch.Tensor, "flat query key"] | None = None
    lse: Float[torch.Tensor, "flat query"] | None = None


class Statistic(ABC):
    """Base of all statistics. One object gathers everything that is asked of its statistic in one call.

    ``dims`` are those of a result after the batch: ``head`` or ``kv_head``, ``query``, ``key``, and others. ``reads``
    says what must be there: ``weights``, ``log_sum_exp``, or nothing but the call's keys, values and mask.
    """

    name: ClassVar[str] = ""
    dims: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[frozenset[str]] = frozenset({"weights"})
    overwrites_logits: ClassVar[bool] = False
    """True where ``fold`` uses the tile's logits up: such a statistic comes last."""

    def __init_subclass__(cls) -> None:
        """Register the class under its ``name``; a class without one is a base."""
        if cls.name and "name" in cls.__dict__:
            registry.register("statistic", cls, cls.name)

    def __init__(self, asks: Sequence[Ask], facts: CallFacts) -> None:
        self.asks, self.facts = asks, facts

    @property
    def device(self) -> torch.device:
        """Return the device of the call."""
        return self.facts.context.real.device

    def fold(self, part: WeightTile) -> None:  # noqa: B027 - a statistic of keys and values sees no weights
        """Take what is wanted from one tile. All columns that its rows can see are in it."""

    @abstractmethod
    def finish(self) -> list[torch.Tensor]:
        """Return one result per ask, batch first, once every tile was folded."""

    @classmethod
    def join(cls, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Join the results of several calls of one module, each over tokens of its own."""
        along = [cls.dims.index(dim) + 1 for dim in ("query", "key") if dim in cls.dims]
        if len(along) == 2:
            return _block_diagonal(parts, *along)
        return torch.cat(list(parts), dim=along[0]) if along else torch.stack(list(parts)).sum(0)


class RowStatistic(Statistic):
    """A statistic of each attention row by itself; a subclass writes :meth:`rows`."""

    dims: ClassVar[tuple[str, ...]] = ("head", "query")

    def __init__(self, asks: Sequence[Ask], facts: CallFacts) -> None:
        super().__init__(asks, facts)
        batch, heads, rows, _ = facts.shape
        self.kept = [torch.zeros(batch * heads, rows, *self.more(ask), device=self.device) for ask in asks]

    def more(self, ask: Ask) -> tuple[int, ...]:
        """Return the sizes of the dims after ``query``."""
        return ()

    @abstractmethod
    def rows(self, part: WeightTile, ask: Ask) -> Float[torch.Tensor, "flat query ..."]:
        """Return the statistic of the rows of one tile."""

    def fold(self, part: WeightTile) -> None:
        """Keep the rows of one tile."""
        for ask, kept in zip(self.asks, self.kept, strict=True):
            kept[part.flat, part.tile.rows] = self.rows(part, ask)

    def put(self, found: Sequence[Float[torch.Tensor, "batch head query ..."]]) -> None:
        """Take whole results, one per ask, from a path that folds no tiles."""
        for kept, each in zip(self.kept, found, strict=True):
            kept.copy_(each.flatten(0, 1))

    def finish(self) -> list[torch.Tensor]:
        """Return the rows their batch and head."""
        return [rearrange(each, "(batch head) ... -> batch head ...", batch=self.facts.shape[0]) for each in self.kept]


class CallStatistic(Statistic):
    """A statistic of a call's keys, values and mask; a subclass writes :meth:`of_call`."""

    reads: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def of_call(self, ask: Ask) -> torch.Tensor:
        """Return the statistic of ``self.facts``."""

    def finish(self) -> list[torch.Tensor]:
        """Return one result per ask."""
        return [self.of_call(ask) for ask in self.asks]


class Gatherer:
    """Gathers all that is wanted of one call, each statistic once."""

    def __init__(self, asks: Mapping[str, Ask], facts: CallFacts) -> None:
        by_class: dict[type[Statistic], list[str]] = {}
        for label, ask in asks.items():
            by_class.setdefault(ask.statistic, []).append(label)
        self.labels = list(by_class.values())
        self.statistics = [cls([asks[label] for label in labels], facts) for cls, labels in by_class.items()]
        folding = [each for each in self.statistics if each.reads]
        self.folding = sorted(folding, key=lambda each: each.overwrites_logits)

    def fold(self, part: WeightTile) -> None:
        """Fold one tile into every statistic."""
        for each in self.folding:
            each.fold(part)

    def finish(self) -> dict[str, torch.Tensor]:
        """Return every result under its label."""
        found: dict[str, torch.Tensor] = {}
        for labels, each in zip(self.labels, self.statistics, strict=True):
            found.update(zip(labels, each.finish(), strict=True))
        return found


def _block_diagonal(parts: Sequence[torch.Tensor], query: int, key: int) -> torch.Tensor:
    shape = list(parts[0].shape)
    shape[query], shape[key] = (sum(part.shape[axis] for part in parts) for axis in (query, key))
    whole = parts[0].new_zeros(shape)
    row = col = 0
    for part in parts:
        where: list[Any] = [slice(None)] * len(shape)
        where[query], where[key] = slice(row, row + part.shape[query]), slice(col, col + part.shape[key])
        whole[tuple(where)] = part
        row, col = row + part.shape[query], col + part.shape[key]
    return whole
