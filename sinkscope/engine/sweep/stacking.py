"""Several variants in one pass: the batch is repeated once per variant, whose edits act on its own rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.rows import RowEdits, cut_call
from sinkscope.engine.plan import Plan
from sinkscope.engine.reading import ReadingBuilder
from sinkscope.models.backends.base import AttentionSite, ResidualHook
from sinkscope.prompts import Batch


def stack(batch: Batch, count: int) -> Batch:
    """Repeat a batch ``count`` times along its rows."""
    inputs = {name: tensor.repeat(count, *[1] * (tensor.ndim - 1)) for name, tensor in batch.inputs.items()}
    target = None if batch.target is None else stack(batch.target, count)
    real, roles = batch.real.repeat(count, 1), batch.roles.repeat(count, 1)
    return Batch(inputs, real, roles, batch.indices * count, target, batch.cross)


class StackedPlan:
    """Plans of several variants as one: each acts on its own rows of the batch. Same interface as ``Plan``."""

    def __init__(self, plans: Sequence[Plan], rows: int) -> None:
        self.plans = [(slice(i * rows, (i + 1) * rows), plan) for i, plan in enumerate(plans)]
        names = dict.fromkeys(name for plan in plans for name in plan.residual)
        self.residual: dict[str, list[ResidualHook]] = {name: [self._hook(name)] for name in names}

    @property
    def on_attention(self) -> bool:
        """True where some attention call is changed."""
        return any(plan.on_attention for _, plan in self.plans)

    def call_edits(self, layer: int, call: Call) -> RowEdits | None:
        """Return what each variant changes in one call, by rows."""
        parts: list[tuple[slice, CallEdits | None]] = []
        for rows, plan in self.plans:
            edits = plan.call_edits(layer, cut_call(call, rows))
            parts.append((rows, edits or None))
        return RowEdits(parts) if any(edits is not None for _, edits in parts) else None

    def _hook(self, name: str) -> ResidualHook:
        def hook(hidden: torch.Tensor) -> torch.Tensor | None:
            pieces, changed = [], False
            for rows, plan in self.plans:
                piece = hidden[rows]
                for each in plan.residual.get(name, ()):
                    new = each(piece)
                    changed |= new is not None
                    piece = piece if new is None else new
                pieces.append(piece)
            return torch.cat(pieces) if changed else None

        return hook


class RowBuilder:
    """A builder whose prompts are the rows of one pass, whatever prompts of the whole they are."""

    def __init__(self, builder: ReadingBuilder) -> None:
        self.builder, self.lengths = builder, builder.lengths

    def put(self, found: Any, batch: Batch, at: AttentionSite | int | None = None) -> None:
        """Store by row instead of by prompt."""
        self.builder.put(found, replace(batch, indices=tuple(range(len(batch.indices)))), at)
