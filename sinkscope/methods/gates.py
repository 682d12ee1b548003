"""What the gates of a gated model are: the number that each entry of a head's output is multiplied by before W_O.

Read without knowing the module: in one pass every head gives ones, so what W_O reads is the gate; what the heads had
made times that gate, or times another one, goes on in its place. A model without gates shows ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.engine.run import find_tower
from sinkscope.errors import PromptError, UnsupportedModelError
from sinkscope.models.backends.base import Instruments, Output, Tower
from sinkscope.prompts.identity import check_prompts
from sinkscope.registry import method

if TYPE_CHECKING:
    from sinkscope.models.handle import Model
    from sinkscope.prompts import Prompts

BINS = 50

GATE_EDITS = {
    "same": "each gate as it is: the control that nothing else is changed",
    "one": "1, no gate at all",
    "mean": "its mean over the tokens of the other prompts: of the right size, whatever the token",
    "shuffled": "that of another prompt's token at the same position: of the right spread, for another token",
    "noise": "its own, and what the other prompt's gate differs from the mean by: as much change as by the mean",
}
"""What a gate becomes by name of the edit, and what that leaves of it."""

Gates = dict[int, Float[torch.Tensor, "query head dim"]]
Change = Callable[[int, Float[torch.Tensor, "batch query head dim"]], Float[torch.Tensor, "batch query head dim"]]


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
    tower = _gated(model, prompts, "gate_values")
    heads, longest = max(site.heads for site in tower.attention), max(prompts.lengths)
    mean, spread = (np.full((len(prompts), tower.depth, heads, longest), np.nan, np.float32) for _ in range(2))
    count = np.zeros((tower.depth, heads, BINS))
    for index in range(len(prompts)):
        for layer, gate in _gates(model, prompts, index).items():
            values = gate.numpy().transpose(1, 0, 2)
            mean[index, layer, : len(values), : len(gate)] = values.mean(-1)
            spread[index, layer, : len(values), : len(gate)] = values.std(-1)
            for head, own in enumerate(np.clip(values, 0.0, 1.0)):
                count[layer, head] += np.histogram(own, BINS, (0.0, 1.0))[0]
    dims = ("prompt", "layer", "head", "query")
    coords: dict[str, Any] = {name: np.arange(size) for name, size in zip(dims[:3], mean.shape, strict=False)}
    coords["bin"] = (np.arange(BINS) + 0.5) / BINS
    data = {"gate": (dims, mean), "gate_spread": (dims, spread), "gate_count": (("layer", "head", "bin"), count)}
    return xr.Dataset(data, coords, {"method": "gate_values", "reference": "qiu2025", "model_id": model.id})


@method()
def gate_edits(model: Model, prompts: Prompts) -> xr.Dataset:
    """Return what a gated language model loses when its gates become 1, their means, or those of other tokens.

    ``loss`` (edit, prompt): mean cross-entropy of the next tokens in nats, ``edit`` one of ``GATE_EDITS``; the gates of
    all layers and heads are changed at once, each entry of an element-wise gate by itself. Means and the other prompt's
    gates are read without edits; ``noise`` stays within the values that gates of the layer have there. Where the mean
    costs more than the noise, it is the gate's dependence on the token that is lost, not its exactness.

    Source: Qiu et al. 2025 (qiu2025) on what gates do; the edits are this project's own.

    Args:
        model: a causal language model with gates.
        prompts: two at least, all of one length.

    Raises:
        PromptError: fewer than two prompts, of several lengths, or of one token, which predicts nothing.
        UnsupportedModelError: as :func:`gate_values`, the model predicts no next token, or it has no gates.
    """
    tower = _gated(model, prompts, "gate_edits")
    if not model.is_causal:
        raise UnsupportedModelError(f"gate_edits: {model.id} predicts no next token, so it has no loss to read.")
    if len(prompts) < 2 or len(set(prompts.lengths)) > 1 or prompts.lengths[0] < 2:
        raise PromptError(
            f"gate_edits: {len(prompts)} prompts of {sorted(set(prompts.lengths))} tokens. Give two or more of one "
            "length, two tokens or more: each gets gates of another, and the loss is that of the next tokens."
        )
    own = [_gates(model, prompts, index) for index in range(len(prompts))]
    if all(torch.allclose(gate, torch.ones(())) for each in own for gate in each.values()):
        raise UnsupportedModelError(
            f"gate_edits: every gate of {model.id} is 1, so it has none and no edit of them changes anything. Take a "
            "gated model, such as zoo:lm-python-gate."
        )
    loss = np.zeros((len(GATE_EDITS), len(prompts)))
    for index in range(len(prompts)):
        donor, others = own[(index + 1) % len(own)], [each for at, each in enumerate(own) if at != index]
        ids = prompts.batch([index], model.device).inputs["input_ids"]
        for row, change in enumerate(_changes(donor, others).values()):
            logits = _pass(model, prompts, index, tower, change).logits
            assert logits is not None
            scored = torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:])
            loss[row, index] = float(scored)
    attrs = {"method": "gate_edits", "reference": "qiu2025", "model_id": model.id}
    data = {"loss": (("edit", "prompt"), loss, {"long_name": "loss", "units": "nat"})}
    return xr.Dataset(data, {"edit": list(GATE_EDITS), "prompt": np.arange(len(prompts))}, attrs)


def _changes(donor: Gates, others: list[Gates]) -> dict[str, Change]:
    """What each edit makes of a layer's gates, by the names of ``GATE_EDITS``."""
    mean = {layer: torch.cat([each[layer] for each in others]).mean(0) for layer in donor}
    ends = {layer: (min(g[layer].min() for g in others), max(g[layer].max() for g in others)) for layer in donor}

    def as_long(gate: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return values.to(gate).expand_as(gate)

    def noise(layer: int, gate: torch.Tensor) -> torch.Tensor:
        low, high = ends[layer]
        return (gate + as_long(gate, donor[layer] - mean[layer])).clamp(float(low), float(high))

    return {
        "same": lambda _layer, gate: gate,
        "one": lambda _layer, gate: torch.ones_like(gate),
        "mean": lambda layer, gate: as_long(gate, mean[layer]),
        "shuffled": lambda layer, gate: as_long(gate, donor[layer]),
        "noise": noise,
    }


def _gated(model: Model, prompts: Prompts, name: str) -> Tower:
    """The tower whose gates are read; prompts of another model are refused."""
    check_prompts(prompts, model, name)
    tower = find_tower(model, None)
    if any(site.output_path is None for site in tower.attention):
        raise UnsupportedModelError(f"{name}: no output projection W_O was found in {model.id}.")
    return tower


def _gates(model: Model, prompts: Prompts, index: int) -> Gates:
    """Gates of one prompt by layer, on the CPU."""
    tower, found = find_tower(model, None), Gates()

    def keep(layer: int, gate: torch.Tensor) -> torch.Tensor:
        found[layer] = gate[0].detach().float().cpu()
        return gate

    hidden = _pass(model, prompts, index, tower, keep).hidden
    with torch.no_grad(), model.evaluating():
        inputs = prompts.batch([index], model.device).inputs
        plain = model.backend.forward(inputs, tower, Instruments()).hidden
    if not torch.allclose(hidden, plain, rtol=1e-2, atol=1e-3 * float(plain.abs().max())):
        raise UnsupportedModelError(
            f"gate_values: {model.id} does more to the outputs of its heads before W_O than multiply them by a gate, "
            "so what is read is no gate. Use Contribution(), which holds norms at their statistics."
        )
    return found


def _pass(model: Model, prompts: Prompts, index: int, tower: Tower, change: Change) -> Output:
    """One pass over one prompt in which every gate is what ``change`` makes of it; with logits where there are some."""
    made: dict[int, torch.Tensor] = {}

    def ones(layer: int, call: Call) -> CallEdits:
        def keep(out: torch.Tensor) -> torch.Tensor:
            made[layer] = out
            return torch.ones_like(out)

        return CallEdits(gates=[keep])

    def writer(layer: int) -> Any:
        def write(_: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            gate = change(layer, args[0].reshape(made[layer].shape))
            return ((gate * made[layer].to(gate.dtype)).reshape(args[0].shape), *args[1:])

        return write

    handles = [
        model.model.get_submodule(str(site.output_path)).register_forward_pre_hook(writer(site.layer))
        for site in tower.attention
    ]
    inputs = prompts.batch([index], model.device).inputs
    try:
        with torch.no_grad(), model.evaluating():
            return model.backend.forward(inputs, tower, Instruments(edits=ones), "all" if model.is_causal else None)
    finally:
        for handle in handles:
            handle.remove()
