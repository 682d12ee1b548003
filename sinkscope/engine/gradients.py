"""Gradients with respect to attention weights: one forward pass with autograd from the input of the first block on.

No parameter needs a gradient: the residual stream before block 0 is made a leaf, so that every weight behind it is in
the graph, and the weights of the wanted layers are kept, tile by tile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float

from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.tile import Tile
from sinkscope.engine.plan import Plan
from sinkscope.errors import UnsupportedModelError
from sinkscope.models.backends.base import Instruments
from sinkscope.prompts import Batch

if TYPE_CHECKING:
    from sinkscope.models.handle import Model

Maps = Float[torch.Tensor, "batch head query key"]


def attention_gradients(
    model: Model,
    batch: Batch,
    layers: Sequence[int],
    objective: Callable[[torch.Tensor], torch.Tensor],
    *,
    plan: Plan | None = None,
    look: Callable[[int, Call], None] = lambda _layer, _call: None,
) -> dict[int, tuple[Maps, Maps]]:
    """Return the weights of each layer, and the gradient of a scalar of the logits with respect to them.

    ``objective`` gets the logits (batch, position, vocab). Edits of ``plan`` hold, in its tower (the model's own where
    there is none); of edited weights the gradient is that with respect to what they became. ``look`` is shown every
    call of the wanted layers.

    Raises:
        UnsupportedModelError: the model is not driven by transformers, or a block attends more than once.
    """
    tower = model.backend.towers[model.backend.default_tower] if plan is None else plan.tower
    if model.backend.name != "transformers" or not model.backend.edits or tower.calls > 1:
        raise UnsupportedModelError(
            f"{model.id}: gradients of attention weights need a model that is driven by transformers and attends once "
            "in a block. Use AttentionMap for the weights alone."
        )
    kept: dict[int, list[tuple[torch.Tensor, Tile]]] = {layer: [] for layer in layers}
    shapes: dict[int, tuple[int, ...]] = {}

    def edits(layer: int, call: Call) -> CallEdits | None:
        found = plan.call_edits(layer, call) if plan is not None else None
        if layer not in kept:
            return found
        look(layer, call)
        shapes[layer] = (*call.query.shape[:3], call.key.shape[2])

        def keep(weights: torch.Tensor, tile: Tile) -> torch.Tensor:
            kept[layer].append((weights, tile))
            return weights

        found = found or CallEdits()
        found.weights.append(keep)
        return found

    hooks = {name: list(hooks) for name, hooks in (plan.residual if plan is not None else {}).items()}
    hooks["embed"] = [lambda hidden: hidden.detach().requires_grad_(True), *hooks.get("embed", [])]
    with torch.enable_grad(), model.evaluating():
        output = model.backend.forward(batch.inputs, tower, Instruments(edits=edits, residual=hooks), "all")
        if output.logits is None:
            raise UnsupportedModelError(f"{model.id} has no output layer. Load the model with its head.")
        weights = [tensor for tiles in kept.values() for tensor, _ in tiles]
        gradients = torch.autograd.grad(objective(output.logits), weights, allow_unused=True)
    return _whole(kept, iter(gradients), shapes)


def _whole(
    kept: Mapping[int, Sequence[tuple[torch.Tensor, Tile]]],
    gradients: Any,
    shapes: Mapping[int, tuple[int, ...]],
) -> dict[int, tuple[Maps, Maps]]:
    """Put the tiles of each layer at their places."""
    found: dict[int, tuple[Maps, Maps]] = {}
    for layer, tiles in kept.items():
        weights, gradient = (torch.zeros(shapes[layer], device=tiles[0][0].device) for _ in range(2))
        for tensor, tile in tiles:
            where = tile.batch, tile.head, tile.rows, tile.cols
            weights[where] = tensor.detach()
            given = next(gradients)
            if given is not None:
                gradient[where] = given
        found[layer] = weights, gradient
    return found
