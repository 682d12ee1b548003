"""Sink scores of each token that a model writes: sums of attention by key, carried from pass to pass, without maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from sinkscope.attention.call import Call
from sinkscope.attention.view import LayerStats
from sinkscope.errors import ProbeError


class KeySums:
    """Attention that each token got so far in the text that is being written, layer by layer.

    A pass without a cache begins a text; each later one adds what its queries give. A pass that does not follow on the
    last one that was seen (a cache from elsewhere, candidates of assisted decoding that were taken back) has no scores,
    and neither have those behind it, until a text begins.
    """

    def __init__(self, top: int) -> None:
        self.top = top
        self._sums: dict[int, torch.Tensor] = {}
        self._viewers: dict[int, torch.Tensor] = {}

    def add(self, layer: int, call: Call, stats: LayerStats) -> Float[torch.Tensor, "batch head rank"]:
        """Add ``key_sum`` and ``key_viewers`` of a call; return the largest means so far, NaN where there are fewer."""
        (batch, heads, rows), keys = call.query.shape[:3], call.key.shape[2]
        begins = rows == keys
        if begins:
            self._sums[layer] = stats["key_sum"].new_zeros(batch, heads, 0)
            self._viewers[layer] = stats["key_sum"].new_zeros(batch, 0)
        known = self._sums.get(layer)
        first = 0 if begins else call.mask.kv_offset  # a window's cache holds the last keys alone
        if known is None or (len(known), known.shape[2] + rows) != (batch, first + keys):
            self._sums.pop(layer, None)
            return stats["key_sum"].new_full((batch, heads, self.top), torch.nan)
        sums = torch.nn.functional.pad(known, (0, rows))
        viewers = torch.nn.functional.pad(self._viewers[layer], (0, rows))
        sums[:, :, first:] += stats["key_sum"]
        viewers[:, first:] += stats["key_viewers"]
        self._sums[layer], self._viewers[layer] = sums, viewers
        # Padding is seen by nobody; its mean is none, and sorts behind every number.
        means = torch.where(viewers[:, None] > 0, sums / viewers[:, None], -torch.inf)
        found = means.topk(min(self.top, means.shape[2]), dim=-1).values
        found = torch.where(found > -torch.inf, found, torch.nan)
        return torch.nn.functional.pad(found, (0, self.top - found.shape[2]), value=torch.nan)


def as_array(rows: Sequence[dict[str, Any]]) -> xr.DataArray:
    """Return the scores of rows of a monitor as (position, prompt, layer, head, rank).

    ``position`` is the place of the token that the pass chose, counted with the padding before its prompt.

    Raises:
        ProbeError: no row has scores, or they are of texts with different numbers of prompts.
    """
    scored = [row for row in rows if "sink_scores" in row]
    if not scored:
        raise ProbeError(
            "sink_scores: nothing was scored. Open monitor(model, every=1, scores=10) around model.model.generate(...)."
        )
    layers = list(scored[0]["sink_scores"])
    tables = [np.array([row["sink_scores"][layer] for layer in layers], dtype=float) for row in scored]
    if len({table.shape for table in tables}) > 1:
        raise ProbeError(
            f"sink_scores: the passes had {sorted({table.shape[1] for table in tables})} prompts. Use a monitor of its "
            "own for each call of generate."
        )
    coords = {"position": [row["cached"] + row["queries"] for row in scored], "layer": [int(layer) for layer in layers]}
    dims = ("position", "layer", "prompt", "head", "rank")
    found = xr.DataArray(np.stack(tables), coords, dims, name="sink_scores")
    return found.transpose("position", "prompt", "layer", "head", "rank")
