"""Where the gradient of the loss gathers: its size at each token of the residual stream, block by block.

A key that many queries attend to gets gradient from all of them, so an attention sink is one for gradients too (Chen
and Yao 2026). RMSNorm divides it by the size of what it reads, and a massive state takes it away again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.edits import Edit
from sinkscope.engine.effect import EffectGuard
from sinkscope.engine.plan import Plan
from sinkscope.engine.run import as_tuple, find_tower
from sinkscope.errors import PromptError, UnsupportedModelError
from sinkscope.models.backends.base import Instruments
from sinkscope.prompts.identity import check_prompts
from sinkscope.registry import method

if TYPE_CHECKING:
    from sinkscope.models.handle import Model
    from sinkscope.prompts import Prompts


@method()
def gradient_shares(model: Model, prompts: Prompts, edits: Sequence[Edit] = ()) -> xr.Dataset:
    """Return how the gradient of the next-token loss is spread over the tokens (gradient sinks, chen2026).

    ``value_gradient_share`` (prompt, layer, key): squared norm of the gradient with respect to the value vectors of a
    token, all heads together, as a share of all tokens': what attention sends back. ``gradient_norm`` (prompt, site,
    key): Euclidean norm of the gradient with respect to the residual stream, nat per unit of the stream, and
    ``gradient_share``, its square as a share: what is left of it behind RMSNorm. Shares are 1 over the number of tokens
    where the gradient is spread evenly. The loss is the mean over the prompt. Sites are the embedding and the blocks'
    outputs without the last one's, whose gradient is that of the predictions alone. NaN beyond a prompt's end, and in
    layers without attention. ``edits`` are as in :func:`sinkscope.run`; of a state that they change the gradient is
    that of what it became.

    Source: by the paper's abstract; which tensors it reads and over what it divides was not found, both are ours.

    Raises:
        PromptError: a prompt of fewer than two tokens, which predicts nothing.
        UnsupportedModelError: no next token is predicted, or the model is not driven by transformers.
        EditError, EditHasNoEffect: as in :func:`sinkscope.run`.
    """
    check_prompts(prompts, model, "gradient_shares")
    tower = find_tower(model, None)
    if not model.is_causal or model.backend.name != "transformers" or tower.calls > 1:
        raise UnsupportedModelError(
            f"gradient_shares: {model.id} is no causal language model driven by transformers that attends once in a "
            "block, so there is no gradient of a next-token loss to read."
        )
    if min(prompts.lengths) < 2:
        raise PromptError("gradient_shares: a prompt has one token and predicts nothing. Give two tokens or more.")
    guard = EffectGuard(model, tower, prompts, as_tuple(edits, "edits"))
    sites = [name for name in tower.site_names if not name.endswith(".mid")][:-1]
    shape = len(prompts), len(sites), max(prompts.lengths)
    norms, values = np.full(shape, np.nan), np.full((shape[0], tower.depth, shape[2]), np.nan)
    for index, length in enumerate(prompts.lengths):
        stream, sent = _gradients(guard, index, sites)
        norms[index, :, :length] = np.stack([stream[name].norm(dim=-1).numpy() for name in sites])
        for layer, gradient in sent.items():
            values[index, layer, :length] = gradient.square().sum((0, 2)).numpy()
    guard.verdict()
    dims = ("prompt", "site", "key")
    return xr.Dataset(
        {
            "value_gradient_share": (("prompt", "layer", "key"), _shares(values), {"units": "1"}),
            "gradient_norm": (dims, norms, {"units": "nat per unit of the stream"}),
            "gradient_share": (dims, _shares(norms**2), {"units": "1"}),
        },
        {"prompt": np.arange(len(prompts)), "site": sites, "layer": range(tower.depth)},
        {"method": "gradient_shares", "reference": "chen2026", "model_id": model.id},
    )


def _shares(squares: np.ndarray) -> np.ndarray:
    """Parts of the sum over the last axis; NaN where there is none."""
    total = np.nansum(squares, -1, keepdims=True)
    return np.divide(squares, total, out=np.full_like(squares, np.nan), where=total > 0)


def _gradients(
    guard: EffectGuard, index: int, sites: Sequence[str]
) -> tuple[dict[str, torch.Tensor], dict[int, torch.Tensor]]:
    """Gradients of one prompt's loss, on the CPU: by site (key d_model), by layer of values (head key dim)."""
    model, tower = guard.model, guard.tower
    batch = guard.prompts.batch([index], model.device)
    plan = Plan(guard.edits, tower, guard.prompts, batch)
    states: dict[str, torch.Tensor] = {}
    values: dict[int, torch.Tensor] = {}

    def keep(name: str) -> Any:
        return lambda hidden: states.update({name: hidden})

    def look(layer: int, call: Call) -> CallEdits | None:
        values[layer] = call.value
        return plan.call_edits(layer, call)

    hooks: dict[str, list[Any]] = {name: list(own) for name, own in plan.residual.items()}
    # No parameter needs a gradient: the stream in front of block 0 is made the leaf.
    hooks[sites[0]] = [lambda hidden: hidden.detach().requires_grad_(True), *hooks.get(sites[0], [])]
    for name in sites:
        hooks.setdefault(name, []).append(keep(name))
    with torch.enable_grad(), model.evaluating():
        output = model.backend.forward(batch.inputs, tower, Instruments(edits=look, residual=hooks), "all")
        if output.logits is None:
            raise UnsupportedModelError(f"{model.id} has no output layer. Load the model with its head.")
        loss = torch.nn.functional.cross_entropy(output.logits[0, :-1].float(), batch.inputs["input_ids"][0, 1:])
        wanted = [*(states[name] for name in sites), *values.values()]
        found = [each[0].float().cpu() for each in torch.autograd.grad(loss, wanted)]
    with torch.no_grad():
        guard.compare(batch, output, plan)
    return dict(zip(sites, found, strict=False)), dict(zip(values, found[len(sites) :], strict=True))
