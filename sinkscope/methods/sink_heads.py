"""What a sink head does: nothing, or one vector for every token. What its output spans, beside what it writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr

from sinkscope import metrics
from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.engine.run import find_tower, run
from sinkscope.models.backends.base import Instruments
from sinkscope.probes import KeyMass, WriteNorm
from sinkscope.registry import method

if TYPE_CHECKING:
    from sinkscope.models.handle import Model
    from sinkscope.prompts import Prompts


def output_rank(model: Model, prompts: Prompts) -> xr.DataArray:
    """Return the stable rank of each head's outputs (before W_O) over a prompt's tokens: (prompt layer head).

    The first token is left out: it sees itself alone.
    """
    tower = find_tower(model, None)
    heads = max(site.heads for site in tower.attention)
    found = np.full((len(prompts), tower.depth, heads), np.nan)
    with torch.no_grad(), model.evaluating():
        for index in range(len(prompts)):
            batch = prompts.batch([index], model.device)
            model.backend.forward(batch.inputs, tower, Instruments(edits=_watch(found[index])))
    coords = {"prompt": np.arange(len(prompts)), "layer": range(tower.depth), "head": np.arange(heads)}
    return xr.DataArray(found, dims=("prompt", "layer", "head"), coords=coords, name="output_rank")


def _watch(store: np.ndarray) -> Callable[[int, Call], CallEdits]:
    def edits(layer: int, call: Call) -> CallEdits:
        def keep(out: torch.Tensor) -> torch.Tensor:
            outputs = out[0, 1:].detach().float().cpu().numpy().transpose(1, 0, 2)
            if outputs.shape[1]:
                store[layer, : len(outputs)] = metrics.stable_rank(outputs)
            return out

        return CallEdits(gates=[keep])

    return edits


@method()
def sink_heads(model: Model, prompts: Prompts, epsilon: float = 0.3) -> xr.Dataset:
    """Return which heads have a sink at the first token and what it does: ``sink`` (bool) and ``type``, by prompt.

    ``type`` is that of :func:`sinkscope.metrics.sink_type`, the empty string in heads without a sink (key mass at most
    ``epsilon``). ``value_ratio`` stands beside it. Dims (prompt layer head).
    """
    ds = run(model, prompts, [KeyMass(), WriteNorm()])
    ds["output_rank"] = output_rank(model, prompts)
    sink = ds["key_mass"].isel(key=0) > epsilon
    norm = ds["write_norm"].astype("float64")
    ratio = norm.isel(key=0) / norm.isel(key=slice(1, None)).median("key")
    kinds = metrics.sink_type(ds)
    parts = {"sink": sink, "type": kinds.where(sink, ""), "value_ratio": ratio, "output_rank": ds["output_rank"]}
    found = xr.Dataset({n: a.drop_vars(["token", "token_role"], errors="ignore") for n, a in parts.items()})
    found.attrs = {"method": "sink_heads", "reference": "algorithms2026", "epsilon": epsilon}
    return found
