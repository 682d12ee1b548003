"""What the gates of a gated model are: the number that each entry of a head's output is multiplied by before W_O.

Read without knowing the module: in one pass every head gives ones, so what W_O reads is the gate; what the heads had
made times that gate goes on in its place. A model without gates shows ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.engine.run import find_tower
from sinkscope.errors import UnsupportedModelError
from sinkscope.models.backends.base import Instruments
from sinkscope.registry import method

if TYPE_CHECKING:
    from sinkscope.models.handle import Model
    from sinkscope.prompts import Prompts

BINS = 50


@method()
def gate_values(model: Model, prompts: Prompts) -> xr.Dataset:
    """Return the gates of every head at every token (Qiu et al. 2025), and how their values are spread.

    ``gate`` (prompt, layer, head, query): mean over the entries of the head's output; with it
    :func:`sinkscope.metrics.effective_attention` gives what a gated head lets through. ``gate_spread`` (the same dims):
    their standard deviation, 0 where a head has one gate (head-wise). ``gate_count`` (layer, head, bin): entries by
    value, 50 bins from 0 to 1, ``bin`` labelled by its centre; gates beyond are in the last ones. Dimensionless.

    Raises:
        UnsupportedModelError: no output projection, or something between heads and W_O that is no gate.
    """
    tower = find_tower(model, None)
    if any(site.output_path is None for site in tower.attention):
        raise UnsupportedModelError(f"gate_values: no output projection W_O was found in {model.id}.")
    heads, longest = max(site.heads for site in tower.attention), max(prompts.lengths)
    mean, spread = (np.full((len(prompts), tower.depth, heads, longest), np.nan, np.float32) for _ in range(2))
    count = np.zeros((tower.depth, heads, BINS))
    for index in range(len(prompts)):
        for layer, gate in _gates(model, prompts, index).items():
            values = gate.transpose(1, 0, 2)
            mean[index, layer, : len(values), : len(gate)] = values.mean(-1)
            spread[index, layer, : len(values), : len(gate)] = values.std(-1)
            for head, own in enumerate(np.clip(values, 0.0, 1.0)):
                count[layer, head] += np.histogram(own, BINS, (0.0, 1.0))[0]
    dims = ("prompt", "layer", "head", "query")
    coords: dict[str, Any] = {name: np.arange(size) for name, size in zip(dims[:3], mean.shape, strict=False)}
    coords["bin"] = (np.arange(BINS) + 0.5) / BINS
    data = {"gate": (dims, mean), "gate_spread": (dims, spread), "gate_count": (("layer", "head", "bin"), count)}
    return xr.Dataset(data, coords, {"method": "gate_values", "reference": "qiu2025", "model_id": model.id})


def _gates(model: Model, prompts: Prompts, index: int) -> dict[int, np.ndarray]:
    """Gates of one prompt by layer: (query head dim)."""
    tower, batch = find_tower(model, None), prompts.batch([index], model.device)
    made: dict[int, torch.Tensor] = {}
    found: dict[int, np.ndarray] = {}

    def ones(layer: int, call: Call) -> CallEdits:
        def keep(out: torch.Tensor) -> torch.Tensor:
            made[layer] = out
            return torch.ones_like(out)

        return CallEdits(gates=[keep])

    def reader(layer: int) -> Any:
        def read(_: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            gate = args[0].reshape(made[layer].shape)
            found[layer] = gate[0].detach().float().cpu().numpy()
            return ((gate * made[layer].to(gate.dtype)).reshape(args[0].shape), *args[1:])

        return read

    handles = [
        model.model.get_submodule(str(site.output_path)).register_forward_pre_hook(reader(site.layer))
        for site in tower.attention
    ]
    try:
        with torch.no_grad(), model.evaluating():
            hidden = model.backend.forward(batch.inputs, tower, Instruments(edits=ones)).hidden
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad(), model.evaluating():
        plain = model.backend.forward(batch.inputs, tower, Instruments()).hidden
    if not torch.allclose(hidden, plain, rtol=1e-2, atol=1e-3 * float(plain.abs().max())):
        raise UnsupportedModelError(
            f"gate_values: {model.id} does more to the outputs of its heads before W_O than multiply them by a gate, "
            "so what is read is no gate. Use Contribution(), which holds norms at their statistics."
        )
    return found
