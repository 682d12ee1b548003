"""Statistics of an attention map that already exists: the same definitions as the streaming pass, read off the map.

For backends that hand over the map of a layer (TransformerLens): one layer's map is alive at a time and is dropped once
it is reduced, as one tile. Everything is float32, whatever the map's own type.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float

from sinkscope.attention.masks import from_call
from sinkscope.attention.statistic import CallFacts, Gatherer, WeightTile
from sinkscope.attention.tile import Tile
from sinkscope.attention.view import Context, LayerStats, Wants


def reduce_map(
    weights: Float[torch.Tensor, "batch head query key"],
    wants: Wants,
    context: Context,
    visible: Bool[torch.Tensor, "batch query key"] | None = None,
    *,
    vectors: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None),
    lse: Float[torch.Tensor, "batch head query"] | None = None,
) -> LayerStats:
    """Reduce one attention map to the statistics wanted of it.

    ``visible`` says which keys each query may see; None means all. ``vectors`` (keys and values, each (batch, kv_head,
    key, dim)) and ``lse`` (log-sum-exp of the rows) cannot be read off a map: they are needed where a statistic of them
    is wanted.
    """
    batch, heads, rows, keys = weights.shape
    weights = weights.detach().float()
    mask, _ = from_call(None if visible is None else visible[:, None], weights, weights.transpose(2, 3), causal=False)
    if visible is not None and bool((dead := ~visible.any(-1)).any()):
        # A library's softmax spreads a row that sees nothing (left padding) evenly over hidden keys.
        weights = weights.masked_fill(dead[:, None, :, None], 0.0)
    flat = torch.arange(batch * heads, device=weights.device)
    tile = Tile(flat // heads, flat % heads, slice(0, rows), slice(0, keys), mask)
    facts = CallFacts((batch, heads, rows, keys), *vectors, mask.viewers, context)
    gather = Gatherer(wants.asks, facts)
    whole = slice(0, batch * heads)
    gather.fold(WeightTile(tile, whole, weights.flatten(0, 1), lse=None if lse is None else lse.float().flatten(0, 1)))
    return LayerStats(gather.finish(), "dense")
