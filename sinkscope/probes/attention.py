"""Probes of attention weights: key mass, role shares, entropy, maxima, row sums, single maps.

All are exact and reduced inside the pass; only :class:`AttentionMap` keeps weights, for the layers and heads it names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import xarray as xr

from sinkscope.attention.view import Ask, LayerStats
from sinkscope.errors import ProbeError
from sinkscope.models.backends.base import Tower, bare
from sinkscope.probes.base import Probe, ProbeContext, whole_numbers
from sinkscope.prompts.selection import positions, select
from sinkscope.schema import Variable

__all__ = ["AttentionMap", "Entropy", "KeyMass", "LogSumExp", "MaxAttention", "RoleShare", "RowSum", "TopKey"]


@dataclass(frozen=True)
class KeyMass(Probe):
    """Mean attention each key gets, over the queries that can see it (alpha_k of Gu et al. 2025).

    Makes ``key_mass`` (prompt, layer, head, key). In a decoder the key's own row counts; an encoder averages all its
    rows. ``keys`` limits it to a few keys (others are NaN), which the fused path serves almost for free; ``queries`` to
    the attention that the named queries give: NaN at keys that none of them sees.
    """

    keys: Any = None
    queries: Any = None
    variables: ClassVar[Mapping[str, Variable]] = {
        "key_mass": Variable(
            ("prompt", "layer", "head", "key"),
            "attention weight",
            "mean attention a key gets from the queries that see it",
        ),
    }
    papers = ("gu2025",)
    statistics: ClassVar[frozenset[str]] = frozenset({"key_sum", "key_viewers"})

    def asks(self, context: ProbeContext, layer: int) -> Mapping[str, Ask]:
        """Sums over the named queries, of the named keys."""
        queries = {} if self.queries is None else {"queries": context.chosen(self.queries, self, "queries")}
        keys = {} if self.keys is None else {"keys": context.chosen(self.keys, self, "keys")}
        return {"key_sum": Ask("key_sum", queries | keys), "key_viewers": Ask("key_viewers", queries)}

    def at_layer(self, stats: LayerStats, context: ProbeContext, layer: int) -> dict[str, torch.Tensor]:
        """Divide the column sums by the number of queries that see the key."""
        # A late key is seen by few rows: dividing by all T would make every first token look like a sink.
        mass = stats["key_sum"] / stats["key_viewers"][:, None]
        if self.keys is None:
            return {"key_mass": mass}
        return {"key_mass": mass.masked_fill(~context.chosen(self.keys, self, "keys")[:, None], torch.nan)}


@dataclass(frozen=True)
class RoleShare(Probe):
    """Attention on the keys of each role, mean over the named queries.

    Makes ``role_share`` (prompt, layer, head, role). Each token has one role, so the shares add up to the row sum. NaN
    where a prompt has no such query. ``groups`` are labels of your own instead of roles: a DataArray of strings over
    (prompt, key), such as ``sk.label_tokens`` makes, or a mapping from names to selections; it makes ``group_share``
    (prompt, layer, head, group). A token without a label (the empty string) is in no group, groups of a mapping may
    overlap.
    """

    queries: Any = "text"
    groups: Any = None
    variables: ClassVar[Mapping[str, Variable]] = {
        "role_share": Variable(
            ("prompt", "layer", "head", "role"),
            "attention weight",
            "attention on the keys of a role, mean over queries",
        ),
        "group_share": Variable(
            ("prompt", "layer", "head", "group"),
            "attention weight",
            "attention on the keys of a group that the user named, mean over queries",
        ),
    }
    statistics: ClassVar[frozenset[str]] = frozenset({"key_sum"})

    def __post_init__(self) -> None:
        groups = self.groups
        if isinstance(groups, xr.DataArray) and groups.dtype.kind not in "UO":
            raise ProbeError(
                f"RoleShare(groups=...): a DataArray here holds names, one per token; this one holds {groups.dtype}. "
                "Make it with sinkscope.label_tokens, or give {name: selection}."
            )
        if isinstance(groups, Mapping) and not all(isinstance(name, str) for name in cast("Mapping[Any, Any]", groups)):
            raise ProbeError(f"RoleShare(groups={groups!r:.40}): groups are named by texts. Give {{name: selection}}.")
        if groups is not None and not self._names():
            raise ProbeError(
                f"RoleShare(groups={groups!r:.40}): no group is named. Give an array of names over (prompt, key), or "
                "{name: selection}."
            )

        # One of the two is made, so that shares of roles and of groups can be read in one run.
        made = "role_share" if groups is None else "group_share"
        object.__setattr__(self, "variables", {made: type(self).variables[made]})

    def _names(self) -> list[str]:
        if isinstance(self.groups, xr.DataArray):
            return sorted({str(name) for name in self.groups.values.ravel()} - {""})
        given: Any = self.groups
        return [str(name) for name in given] if hasattr(given, "keys") else []

    def labels(self, longest: int) -> Mapping[str, Sequence[Any]]:
        """Name the groups."""
        return {} if self.groups is None else {"group": self._names()}

    def _columns(self, context: ProbeContext) -> torch.Tensor:
        """Return which group each real token is in, (batch, key, group)."""

        def chosen(name: str) -> torch.Tensor:
            given = self.groups == name if isinstance(self.groups, xr.DataArray) else self.groups[name]
            return select(given, context.batch, ProbeError, f"RoleShare(groups[{name!r}])")

        return context.once((id(self), "groups"), lambda: torch.stack([chosen(n) for n in self._names()], -1).float())

    def asks(self, context: ProbeContext, layer: int) -> Mapping[str, Ask]:
        """Sums over the named queries: of all keys at once, whatever their roles."""
        return {"key_sum": Ask("key_sum", {"queries": context.chosen(self.queries, self, "queries")})}

    def at_layer(self, stats: LayerStats, context: ProbeContext, layer: int) -> dict[str, torch.Tensor]:
        """Sum over the keys of each role, and average over the queries."""
        queries = context.chosen(self.queries, self, "queries")
        columns = context.role_columns() if self.groups is None else self._columns(context)
        # The same column sums serve every role: a pass per role would re-walk the map for each.
        total = torch.einsum("bhk,bkr->bhr", stats["key_sum"], columns)
        return {"role_share" if self.groups is None else "group_share": total / queries.sum(-1)[:, None, None]}


@dataclass(frozen=True)
class Entropy(Probe):
    """Entropy of each attention row in nats, over the keys alone (an implicit sink's mass is not an outcome).

    Makes ``entropy`` (prompt, layer, head, query); row 0 of a decoder is 0.
    """

    variables: ClassVar[Mapping[str, Variable]] = {
        "entropy": Variable(("prompt", "layer", "head", "query"), "nat", "entropy of the attention row"),
    }
    papers = ("guo2024",)
    statistics: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def at_layer(self, stats: LayerStats, context: ProbeContext, layer: int) -> dict[str, torch.Tensor]:
        """Pass the rows through; rounding may not leave an entropy below zero."""
        # H = log-sum-exp minus the mean logit: a row on one key gives a difference of equals, -1e-8 at times.
        return {"entropy": stats["entropy"].clamp(min=0.0)}


@dataclass(frozen=True)
class RowSum(Probe):
    """Sum of each attention row. Below 1 the rest went to an implicit sink (learned sink logit, softmax-off-by-one).

    Makes ``row_sum`` (prompt, layer, head, query).
    """

    variables: ClassVar[Mapping[str, Variable]] = {
        "row_sum": Variable(("prompt", "layer", "head", "query"), "attention weight", "sum of the attention row"),
    }
    statistics: ClassVar[frozenset[str]] = frozenset({"row_sum"})

    def at_layer(self, stats: LayerStats, context: ProbeContext, layer: int) -> dict[str, torch.Tensor]:
        """Pass the rows through."""
        return {"row_sum": stats["row_sum"]}


@dataclass(frozen=True)
class LogSumExp(Probe):
    """Log of the softmax denominator over the keys, in nats. Makes ``log_sum_exp`` (prompt, layer, head, query)."""

    variables: ClassVar[Mapping[str, Variable]] = {
        "log_sum_exp": Variable(("prompt", "layer", "head", "query"), "nat", "log of the softmax denominator"),
    }
    statistics: ClassVar[frozenset[str]] = frozenset({"log_sum_exp"})

    def at_layer(self, stats: LayerStats, context: ProbeContext, layer: int) -> dict[str, torch.Tensor]:
        """Pass the rows through."""
        return {"log_sum_exp": stats["log_sum_exp"]}


@dataclass(frozen=True)
class MaxAttention(Probe):
    """Largest single weight a query puts on the named keys (Kan et al. 2025: maximum visual attention).

    Makes ``max_attention`` (prompt, layer, head, query): NaN at queries not named and in prompts that have no such key,
    0 where the query sees none of the keys.
    """

    keys: Any = "image"
    queries: Any = "text"
    variables: ClassVar[Mapping[str, Variable]] = {
        "max_attention": Variable(
            ("prompt", "layer", "head", "query"), "attention weight", "largest single weight on the named keys"
        ),
    }
    papers = ("kan2025",)
    statistics: ClassVar[frozenset[str]] = frozenset({"max_weight"})

    def asks(self, context: ProbeContext, layer: int) -> Mapping[str, Ask]:
        """Maxima over the named keys."""
        return {"max_weight": Ask("max_weight", {"keys": context.chosen(self.keys, self, "keys")})}

    def at_layer(self, stats: LayerStats, context: ProbeContext, layer: int) -> dict[str, torch.Tensor]:
        """Keep the named queries."""
        queries = context.chosen(self.queries, self, "queries")
        # A prompt without an image has no visual attention, which is not an attention of 0.
        queries = queries & context.chosen(self.keys, self, "keys").any(-1, keepdim=True)
        # The pass starts its maxima at minus infinity; a causal row before the image keeps that.
        largest = stats["max_weight"].clamp(min=0.0)
        return {"max_attention": largest.masked_fill(~queries[:, None], torch.nan)}


@dataclass(frozen=True)
class TopKey(Probe):
    """Which key each named query attends to most, and with which weight; no map is formed.

    Makes ``top_key`` (prompt, layer, head, query), the position counted from the first real token, and ``top_weight``.
    Of equal weights the first key. NaN at queries not named, and in rows that give no key anything. The rows of
    generated tokens are those of ``sk.run`` on what ``sk.generate`` returned.
    """

    queries: Any = "all"
    variables: ClassVar[Mapping[str, Variable]] = {
        "top_key": Variable(
            ("prompt", "layer", "head", "query"), "index", "position of the key with the largest weight", discrete=True
        ),
        "top_weight": Variable(("prompt", "layer", "head", "query"), "attention weight", "weight of that key"),
    }
    papers = ("wu2024",)
    statistics: ClassVar[frozenset[str]] = frozenset({"top_column", "max_weight"})

    def asks(self, context: ProbeContext, layer: int) -> Mapping[str, Ask]:
        """The largest weight of each row and its column."""
        real = context.chosen("all", self, "keys")
        return {"top_column": Ask("top_column"), "max_weight": Ask("max_weight", {"keys": real})}

    def at_layer(self, stats: LayerStats, context: ProbeContext, layer: int) -> dict[str, torch.Tensor]:
        """Number the columns from the first real token and keep the named queries."""
        column = stats["top_column"].long()
        place = positions(context.batch.real)[:, None, None].expand(*column.shape[:3], -1)
        found = place.gather(-1, column.clamp(min=0)[..., None])[..., 0].float()
        none = (column < 0) | ~context.chosen(self.queries, self, "queries")[:, None]
        return {
            "top_key": found.masked_fill(none, torch.nan),
            "top_weight": stats["max_weight"].masked_fill(none, torch.nan),
        }


@dataclass(frozen=True)
class AttentionMap(Probe):
    """The attention map itself, for the named layers and heads only.

    Makes ``attention`` (prompt, layer, head, query, key). Used alone, the layer and head dims hold just those named;
    beside other probes the rest is NaN. Maps of over 1 GiB in all are refused, with the size.
    """

    layers: Sequence[int]
    heads: Sequence[int]
    variables: ClassVar[Mapping[str, Variable]] = {
        "attention": Variable(
            ("prompt", "layer", "head", "query", "key"), "attention weight", "the attention map itself"
        ),
    }

    statistics: ClassVar[frozenset[str]] = frozenset({"map"})

    def __post_init__(self) -> None:
        for name in ("layers", "heads"):
            object.__setattr__(self, name, whole_numbers(getattr(self, name), f"AttentionMap({name}"))

    def check(self, tower: Tower) -> None:
        """Layers and heads must exist."""
        for name, count in (("layers", tower.depth), ("heads", max(s.heads for s in tower.attention))):
            wrong = [i for i in getattr(self, name) if not 0 <= i < count]
            if wrong or not getattr(self, name):
                raise ProbeError(
                    f"AttentionMap({name}={list(getattr(self, name))}): this model has {name} 0..{count - 1}. "
                    f"Name {name} in that range."
                )
        without = [layer for layer in self.layers if not tower.sites_of(layer)]
        if without:
            raise ProbeError(
                f"AttentionMap(layers={list(self.layers)}): {bare(tower, without[0])}. Blocks with attention are "
                f"{sorted({s.layer for s in tower.attention})}."
            )

    def labels(self, longest: int) -> Mapping[str, Sequence[Any]]:
        """Name the layers and heads that are kept."""
        return {"layer": self.layers, "head": self.heads}

    def asks(self, context: ProbeContext, layer: int) -> Mapping[str, Ask]:
        """Maps of the named layers and heads."""
        # In the other layers nothing is asked, so that they keep the path that forms no map.
        return {"map": Ask("map", {"heads": self.heads})} if layer in self.layers else {}

    def at_layer(self, stats: LayerStats, context: ProbeContext, layer: int) -> dict[str, torch.Tensor]:
        """Pass the maps through."""
        return {"attention": stats["map"]}
