"""Attention maps that come from elsewhere: the weights of a call are those of a map that is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sinkscope.attention.masks import HIDDEN_LOGIT
from sinkscope.attention.tile import Tile
from sinkscope.edits.base import AttentionEdit
from sinkscope.edits.call import EditedCall
from sinkscope.edits.tokens import place
from sinkscope.edits.values import Numbers
from sinkscope.errors import EditError
from sinkscope.models.backends.base import Tower
from sinkscope.prompts.selection import positions


@dataclass(frozen=True, repr=False)
class GiveMaps(AttentionEdit):
    """Put given attention maps in the place of those that queries and keys make (Xue et al. 2025).

    ``maps`` is an array (layer, head, query, key), the same for every prompt, positions counted from its first token;
    entries that a query cannot see are left out and the row is brought to sum 1. With the maps of one text the weights
    no longer depend on what is read (the paper's fixed sequence); with maps from embeddings alone, of these tokens or
    of others, they no longer depend on the layer's own state (its static and random embeddings). Values stay the
    model's own. A query behind the map's end, such as one that is generated, or whose row is empty, keeps its own
    weights. Learned sinks and null keys play no part in a given row.
    """

    papers = ("xue2025",)
    maps: Any

    def __post_init__(self) -> None:
        """Check the array and the selectors."""
        self._set("maps", Numbers.of(self.maps, "GiveMaps(maps=...)"))
        shape = self.maps.shape
        if len(shape) != 4 or shape[2] != shape[3]:
            raise EditError(
                f"GiveMaps(maps=...): its shape is {shape}. Give (layer, head, query, key) with as many keys as "
                "queries, such as AttentionMap reads of one prompt."
            )
        super().__post_init__()
        self._refuse_queries("a given map has every row. Leave queries out")

    def check(self, tower: Tower) -> None:
        """Refuse maps that do not fit ``tower``."""
        super().check(tower)
        if tower.cross:
            raise EditError(
                f"GiveMaps(maps=...): cross-attention has other keys than queries. Use tower={tower.queried_by!r}."
            )
        heads, shape = max(site.heads for site in tower.attention), self.maps.shape
        if shape[0] != tower.depth or shape[1] < heads:
            raise EditError(
                f"GiveMaps(maps=...): its shape is {shape}; this model has {tower.depth} layers of {heads} heads."
            )

    def change_attention(self, call: EditedCall) -> None:
        """Give each query that the map has a row for that row."""
        whole, own = np.frombuffer(self.maps.data, np.float32).reshape(self.maps.shape), call.call
        maps = torch.as_tensor(whole[call.layer, : call.head_count].copy(), device=own.query.device)
        numbers = positions(call.tokens.batch.real)
        none = torch.full_like(numbers[:, 0], -1)
        starts = (own.mask.q_offset, own.query.shape[2]), (own.mask.kv_offset, own.key.shape[2])
        rows, keys = (place(numbers, none, start, length, len(own.query)) for start, length in starts)
        rows, keys = (at.masked_fill(at >= maps.shape[-1], -1) for at in (rows, keys))

        def given(logits: torch.Tensor, tile: Tile) -> torch.Tensor:
            row, key = rows[tile.batch][:, tile.rows], keys[tile.batch][:, tile.cols]
            picked = maps[tile.head[:, None, None], row.clamp(min=0)[..., None], key.clamp(min=0)[:, None]]
            weights = picked * (logits > HIDDEN_LOGIT / 2) * (key >= 0)[:, None]
            total = weights.sum(-1, keepdim=True)
            known = (row >= 0)[..., None] & (total > 0)
            return torch.where(known, weights / total.clamp(min=1e-30), torch.softmax(logits, -1))

        call.normalise(given)
