"""Statistics of an attention map that already exists: the same definitions as the streaming pass, read off the map.

For backends that hand over the map of a layer (TransformerLens): one layer's map is alive at a time and is dropped once
it is reduced. Everything is float32, whatever the map's own type.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float

from sinkscope.attention.view import Context, LayerStats, Wants


def reduce_map(
    weights: Float[torch.Tensor, "batch head query key"],
    value: Float[torch.Tensor, "batch kv_head key dim"] | None,
    wants: Wants,
    context: Context,
    visible: Bool[torch.Tensor, "batch query key"] | None = None,
) -> LayerStats:
    """Reduce one attention map to the statistics wanted of it.

    Only real queries count in ``key_sum`` and ``key_viewers``. ``visible`` says which keys each query may see; None
    means all. ``log_sum_exp`` and ``key_norm`` cannot be read off a map: the caller fills them in. ``value`` is needed
    for ``value_norm`` and ``contribution`` alone.
    """
    stats = LayerStats(path="dense")
    weights = weights.detach().float()
    dead = None if visible is None else ~visible.any(-1)
    if dead is not None and bool(dead.any()):
        # A library's softmax spreads a row that sees nothing (left padding) evenly over hidden keys.
        weights = weights.masked_fill(dead[:, None, :, None], 0.0)
    rows = weights.shape[2]
    real = context.real[:, -rows:].float()
    if "key_mass" in wants or "contribution" in wants:
        stats.key_sum = torch.einsum("bhqk,bq->bhk", weights, real)
        stats.key_viewers = _viewers(weights, real, visible)
    if "role_share" in wants:
        stats.role_share = torch.einsum("bhqk,bkr->bhqr", weights, context.one_hot()[:, : weights.shape[3]])
    if "entropy" in wants:
        stats.entropy = torch.special.entr(weights).sum(-1)
    if "row_sum" in wants:
        stats.row_sum = weights.sum(-1)
    stats.maxima = [weights.masked_fill(~keys[:, None, None], -math.inf).amax(-1) for keys in wants.maxima]
    if wants.maps:
        stats.maps = weights[:, list(wants.maps)]
    if value is not None:
        add_values(stats, value, wants)
    return stats


def add_values(stats: LayerStats, value: Float[torch.Tensor, "batch kv_head key dim"], wants: Wants) -> None:
    """Fill in what is read off the value vectors."""
    if "value_norm" in wants:
        stats.value_norm = torch.linalg.vector_norm(value.detach().float(), dim=-1)
    if "contribution" in wants:
        stats.value = value.detach()


def _viewers(
    weights: Float[torch.Tensor, "batch head query key"],
    real: Float[torch.Tensor, "batch query"],
    visible: Bool[torch.Tensor, "batch query key"] | None,
) -> Float[torch.Tensor, "batch key"]:
    if visible is None:
        return real.sum(1, keepdim=True).expand(-1, weights.shape[3])
    return torch.einsum("bqk,bq->bk", visible.float(), real)
