"""Probes of value, key and written vectors: norms, and what attention writes into the residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from sinkscope.attention.view import Ask, LayerStats
from sinkscope.errors import ProbeError
from sinkscope.models.backends.base import Tower
from sinkscope.probes.base import Probe, ProbeContext
from sinkscope.schema import Variable

__all__ = ["Contribution", "KeyNorm", "ValueNorm", "WriteNorm"]


@dataclass(frozen=True)
class ValueNorm(Probe):
    """l2 norm of each value vector, per key-value head. Makes ``value_norm`` (prompt, layer, kv_head, key)."""

    variables: ClassVar[Mapping[str, Variable]] = {
        "value_norm": Variable(("prompt", "layer", "kv_head", "key"), "activation", "l2 norm of the value vector"),
    }
    papers = ("guo2024",)
    statistics: ClassVar[frozenset[str]] = frozenset({"value_norm"})

    def at_layer(self, stats: LayerStats, context: ProbeContext, layer: int) -> dict[str, torch.Tensor]:
        """Pass the norms through."""
        return {"value_norm": stats["value_norm"]}


@dataclass(frozen=True)
class KeyNorm(Probe):
    """l2 norm of each key vector as attention sees it (after rotary positions and key norms).

    Makes ``key_norm`` (prompt, layer, kv_head, key).
    """

    variables: ClassVar[Mapping[str, Variable]] = {
        "key_norm": Variable(("prompt", "layer", "kv_head", "key"), "activation", "l2 norm of the key vector"),
    }
    papers = ("gu2025",)
    statistics: ClassVar[frozenset[str]] = frozenset({"key_norm"})

    def at_layer(self, stats: LayerStats, context: ProbeContext, layer: int) -> dict[str, torch.Tensor]:
        """Pass the norms through."""
        return {"key_norm": stats["key_norm"]}


@dataclass(frozen=True)
class Contribution(Probe):
    """What each role writes: sum over its keys of |weight x value x W_O|, mean over queries (Kang et al. 2025).

    Makes ``contribution`` (prompt, layer, head, role), or with ``per="token"`` what each token writes,
    ``token_contribution`` (prompt, layer, head, key). ``queries`` are those the mean is taken over, all real ones when
    left out: NaN where a prompt has none. W_O is what the attention module does to the outputs of its heads: adapters,
    gates of each query and norms before the projection, at the statistics they have, are part of it; scaling and norms
    behind the module are not. A head whose output an edit replaces by something else is NaN.
    """

    per: str = "role"
    queries: Any = None
    variables: ClassVar[Mapping[str, Variable]] = {
        "contribution": Variable(
            ("prompt", "layer", "head", "role"),
            "activation",
            "sum over a role's keys of |weight x value x W_O|, mean over queries",
        ),
        "token_contribution": Variable(
            ("prompt", "layer", "head", "key"), "activation", "|weight x value x W_O| of a key, mean over queries"
        ),
    }
    papers = ("kang2025",)
    statistics: ClassVar[frozenset[str]] = frozenset({"key_sum", "write_norm"})

    def __post_init__(self) -> None:
        if self.per not in ("role", "token"):
            raise ProbeError(f"Contribution(per={self.per!r}): choose 'role' or 'token'.")
        # One of the two is made, so that both can be read in one run.
        made = "contribution" if self.per == "role" else "token_contribution"
        object.__setattr__(self, "variables", {made: type(self).variables[made]})

    def asks(self, context: ProbeContext, layer: int) -> Mapping[str, Ask]:
        """Sums over the named queries, and the norms of what is written."""
        rows = {} if self.queries is None else {"queries": context.chosen(self.queries, self, "queries")}
        return {"key_sum": Ask("key_sum", rows), "write_norm": Ask("write_norm")}

    def check(self, tower: Tower) -> None:
        """Every layer needs an output projection."""
        _require_projections(tower, "Contribution()")

    def at_layer(self, stats: LayerStats, context: ProbeContext, layer: int) -> dict[str, torch.Tensor]:
        """Weight the norms of what is written by the attention that each key gets, and sum over roles if asked."""
        rows = context.batch.queries.real if self.queries is None else context.chosen(self.queries, self, "queries")
        # |w v W_O| = w |v W_O| as weights are not negative: the norm per key is taken once, not once per query.
        written = stats["key_sum"] * stats["write_norm"] / rows.sum(-1)[:, None, None]
        if self.per == "token":
            return {"token_contribution": written}
        return {"contribution": torch.einsum("bhk,bkr->bhr", written, context.role_columns())}


@dataclass(frozen=True)
class WriteNorm(Probe):
    """What each head writes for each key that it gives weight 1: |value x W_O|, W_O as in :class:`Contribution`.

    Makes ``write_norm`` (prompt, layer, head, key).
    """

    variables: ClassVar[Mapping[str, Variable]] = {
        "write_norm": Variable(("prompt", "layer", "head", "key"), "activation", "norm of value times W_O"),
    }
    papers = ("algorithms2026",)
    statistics: ClassVar[frozenset[str]] = frozenset({"write_norm"})

    def check(self, tower: Tower) -> None:
        """Every layer needs an output projection."""
        _require_projections(tower, "WriteNorm()")

    def at_layer(self, stats: LayerStats, context: ProbeContext, layer: int) -> dict[str, torch.Tensor]:
        """Pass the norms through."""
        return {"write_norm": stats["write_norm"]}


def _require_projections(tower: Tower, asked: str) -> None:
    without = [site.layer for site in tower.attention if site.output_path is None]
    if without:
        raise ProbeError(f"{asked}: no output projection W_O was found in layers {without}. Use ValueNorm() instead.")
