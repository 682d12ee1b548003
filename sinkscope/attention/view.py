"""What may be asked of one attention call, and what comes back.

A probe names the statistics it needs as :class:`Wants`; the runner takes the union; the pass fills one
:class:`LayerStats` per attention module. Shapes are those of the call: padded, keys and queries as the model has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
from jaxtyping import Bool, Float, Int

NAMES = ("key_mass", "role_share", "entropy", "row_sum", "log_sum_exp", "value_norm", "key_norm", "contribution")
"""Statistics that take no argument, by name."""


@dataclass(frozen=True)
class Wants:
    """Statistics asked of every attention call of one layer.

    ``maxima`` holds the boolean (batch, key) masks whose largest weight is wanted; ``maps`` the query heads whose
    attention map is kept; ``few`` a (batch, key) mask when only those keys' mass is wanted (the fused path serves it).
    """

    names: frozenset[str] = frozenset()
    maxima: tuple[Bool[torch.Tensor, "batch key"], ...] = ()
    maps: tuple[int, ...] = ()
    few: Bool[torch.Tensor, "batch key"] | None = None

    def __contains__(self, name: str) -> bool:
        return name in self.names

    @property
    def weights_needed(self) -> bool:
        """True where the attention weights themselves must be formed."""
        return bool(self.names - {"value_norm", "key_norm", "log_sum_exp"}) or bool(self.maxima) or bool(self.maps)

    @property
    def from_kernel(self) -> bool:
        """True where a statistic of the softmax is wanted, which a kernel that returns only the output cannot give."""
        return self.weights_needed or "log_sum_exp" in self.names

    @property
    def anything(self) -> bool:
        """True where any statistic is wanted."""
        return bool(self.names) or bool(self.maxima) or bool(self.maps)


@dataclass
class Context:
    """What a call must know of the batch: which tokens are real, and their roles.

    ``real`` and ``roles`` cover every position a key can have in this run; ``role_list`` gives the role indices that
    occur, in the order of the role columns.
    """

    real: Bool[torch.Tensor, "batch key"]
    roles: Int[torch.Tensor, "batch key"]
    role_list: tuple[int, ...]

    def one_hot(self) -> Float[torch.Tensor, "batch key role"]:
        """Role membership of the keys as columns to be summed by the same product that makes the output."""
        wanted = torch.tensor(self.role_list, device=self.roles.device)
        return ((self.roles[..., None] == wanted) & self.real[..., None]).float()


@dataclass
class LayerStats:
    """Statistics of one attention module; several calls in one forward pass are joined along queries and keys."""

    key_sum: Float[torch.Tensor, "batch head key"] | None = None
    key_viewers: Float[torch.Tensor, "batch key"] | None = None
    role_share: Float[torch.Tensor, "batch head query role"] | None = None
    entropy: Float[torch.Tensor, "batch head query"] | None = None
    row_sum: Float[torch.Tensor, "batch head query"] | None = None
    log_sum_exp: Float[torch.Tensor, "batch head query"] | None = None
    value_norm: Float[torch.Tensor, "batch kv_head key"] | None = None
    key_norm: Float[torch.Tensor, "batch kv_head key"] | None = None

    maxima: list[Float[torch.Tensor, "batch head query"]] = field(default_factory=list)
    maps: Float[torch.Tensor, "batch kept_head query key"] | None = None
    value: Float[torch.Tensor, "batch kv_head key dim"] | None = None
    written: Float[torch.Tensor, "batch head key"] | None = None
    """Sum over real queries of |weight x value x W_O|; the backend fills it in from ``value``."""
    path: str = ""


_JOIN = {"role_share": 2, "value": 2, "key_viewers": 1}


def join(calls: Sequence[LayerStats]) -> LayerStats:
    """Join the calls one module made in one pass (windows, images): block-diagonal, so all tokens concatenate."""
    if len(calls) == 1:
        return calls[0]
    joined = LayerStats(path=calls[0].path)
    for entry in fields(LayerStats):
        parts = [getattr(call, entry.name) for call in calls]
        if entry.name == "path" or parts[0] is None:
            continue
        if entry.name == "maxima":
            joined.maxima = [torch.cat(group, dim=-1) for group in zip(*parts, strict=True)]
        elif entry.name == "maps":
            joined.maps = _block_diagonal(parts)
        else:
            setattr(joined, entry.name, torch.cat(parts, dim=_JOIN.get(entry.name, -1)))
    return joined


def _block_diagonal(maps: Sequence[torch.Tensor]) -> Float[torch.Tensor, "batch head query key"]:
    batch, heads = maps[0].shape[:2]
    whole = maps[0].new_zeros(batch, heads, sum(m.shape[2] for m in maps), sum(m.shape[3] for m in maps))
    row = col = 0
    for part in maps:
        whole[:, :, row : row + part.shape[2], col : col + part.shape[3]] = part
        row, col = row + part.shape[2], col + part.shape[3]
    return whole
