"""Means over a reference set, to be given to edits: outputs of heads, activations of the residual stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.edits.activations import SetActivations
from sinkscope.edits.tokens import Tokens, place
from sinkscope.edits.values import asked
from sinkscope.errors import UnsupportedModelError
from sinkscope.models.backends.base import Instruments, Tower
from sinkscope.prompts import Batch, Prompts

if TYPE_CHECKING:
    from sinkscope.models.handle import Model


def mean_outputs(
    model: Model, prompts: Prompts, *, batch_size: int = 1, tower: str | None = None
) -> Float[np.ndarray, "layer head dim"]:
    """Mean output of every head (before W_O) over all real tokens of ``prompts``: ``reference`` of ``AblateHeads``.

    Layers with fewer heads or dimensions than the largest are filled with zeros, those without attention hold zeros.

    Raises:
        UnsupportedModelError: no such tower, or a block attends more than once.
    """
    where, batches = _setting(model, prompts, batch_size, tower)
    heads, dims = (max(getattr(site, name) for site in where.attention) for name in ("heads", "head_dim"))
    if where.calls > 1:
        raise UnsupportedModelError(
            f"mean_outputs: {model.id} attends {where.calls} times in a block, and AblateHeads takes one reference for "
            "each layer. Leave the reference out: each prompt's own mean is then used."
        )
    total = torch.zeros(where.depth, heads, dims, dtype=torch.float64)
    count = torch.zeros(where.depth, 1, 1, dtype=torch.float64)
    for batch in batches:
        inner = where.name == "vision" and "input_ids" in batch.inputs

        def watch(layer: int, call: Call, real: torch.Tensor = batch.queries.real, inner: bool = inner) -> CallEdits:
            rows, length = call.query.shape[0], call.query.shape[2]
            shown = real.new_ones(rows, length) if inner else place(real, real.new_ones(len(real)), 0, length, rows)

            def add(out: torch.Tensor) -> torch.Tensor:
                # Float64: the mean of 10,000 tokens in float32 loses the digits that an ablation to the mean depends
                # on.
                found = out[shown].double().sum(0).cpu()
                total[layer, : found.shape[0], : found.shape[1]] += found
                count[layer] += int(shown.sum())
                return out

            return CallEdits(gates=[add])

        with torch.no_grad(), model.evaluating():
            model.backend.forward(batch.inputs, where, Instruments(edits=watch))
    return (total / count.clamp(min=1)).float().numpy()


def mean_activations(
    model: Model, prompts: Prompts, site: str, dims: int | Sequence[int], *, keys: Any = "first", batch_size: int = 1
) -> tuple[float, ...]:
    """Mean of each of ``dims`` at a residual site over the selected tokens of all prompts: ``value`` of SetActivations.

    With ``keys="first"`` this is the mean activation of the sink token over a reference set (Sun et al. 2024).
    """
    where, batches = _setting(model, prompts, batch_size, None)
    edit = SetActivations(site, dims=dims, keys=keys)
    edit.check(where)
    order = [dims] if isinstance(dims, int) else [int(d) for d in dims]
    total, count = torch.zeros(len(order), dtype=torch.float64), 0
    for batch in batches:
        chosen = Tokens(batch).choose(edit.keys, lambda: asked(edit, "keys")).any(1)

        def watch(hidden: torch.Tensor, chosen: torch.Tensor = chosen) -> None:
            total.add_(hidden[..., order][chosen].double().sum(0).cpu())

        with torch.no_grad(), model.evaluating():
            model.backend.forward(batch.inputs, where, Instruments(residual={site: [watch]}))
        count += int(chosen.sum())
    return tuple(float(value) for value in (total / max(count, 1)).numpy())


def _setting(model: Model, prompts: Prompts, batch_size: int, tower: str | None) -> tuple[Tower, Iterator[Batch]]:
    towers = model.backend.towers
    name = tower or model.backend.default_tower
    if name not in towers:
        why = model.backend.why_not or f"its towers are {list(towers)}."
        raise UnsupportedModelError(f"tower={name!r}: {why}")
    if model.kind == "encoder-decoder":
        prompts = prompts.seen_by(name, model)
    elif towers[name].cross:
        prompts = prompts.seen_by(model.backend.cross_keys, model)
    return towers[name], (prompts.batch(span, model.device) for span in prompts.spans(batch_size))
