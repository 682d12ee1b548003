"""One attention call whose rows are edited differently: several variants of a sweep in one batch.

The call is cut by rows of the batch, each part takes its own edits through the ordinary pass, and the parts are joined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.masks import MaskSpec
from sinkscope.attention.view import Context, LayerStats, Wants, join_batch


@dataclass
class RowEdits:
    """Edits by rows of the batch: a slice, and what is changed in it (None: nothing)."""

    parts: list[tuple[slice, CallEdits | None]]

    def attend(
        self, call: Call, wants: Wants, context: Context, one: Callable[..., tuple[torch.Tensor, LayerStats]]
    ) -> tuple[torch.Tensor, LayerStats]:
        """Run each part by ``one`` and join outputs and statistics along the batch."""
        done = [
            one(cut_call(call, rows), wants.cut(partial(_rows, rows)), _cut_context(context, rows), edits)
            for rows, edits in _joined(self.parts)
        ]
        return torch.cat([out for out, _ in done]), join_batch([stats for _, stats in done])


def _joined(parts: Sequence[tuple[slice, CallEdits | None]]) -> list[tuple[slice, CallEdits | None]]:
    """Neighbouring parts without edits run as one."""
    out: list[tuple[slice, CallEdits | None]] = []
    for rows, edits in parts:
        if out and not edits and out[-1][1] is None:
            out[-1] = (slice(out[-1][0].start, rows.stop), None)
        else:
            out.append((rows, edits or None))
    return out


def cut_call(call: Call, rows: slice) -> Call:
    """Return the call of some rows of the batch; nothing is copied."""
    bias = call.bias
    if bias is not None and bias.shape[0] > 1:
        bias = bias[rows]
    return replace(
        call, query=call.query[rows], key=call.key[rows], value=call.value[rows], mask=_cut_mask(call.mask, rows),
        bias=bias,
    )  # fmt: skip


def _cut_mask(mask: MaskSpec, rows: slice) -> MaskSpec:
    rule = mask.rule
    if mask.kind == "rule" and rows.start:
        # A library's rule may look up the batch row (packed sequences): a part must ask it for the row of the whole.
        whole, first = mask.rule, rows.start

        def rule(batch: Any, head: Any, query: Any, key: Any) -> Any:
            return whole(batch + first, head, query, key)

    padding = None if mask.padding is None else mask.padding[rows]
    return replace(mask, batch_size=rows.stop - rows.start, padding=padding, rule=rule, _cache={})


def _rows(rows: slice, tensor: torch.Tensor) -> torch.Tensor:
    return tensor[rows]


def _cut_context(context: Context, rows: slice) -> Context:
    # One row of context serves every batch row where all prompts have the same tokens in the same places.
    if len(context.real) == 1:
        return context
    queries = None if context.queries is None else context.queries[rows]
    return replace(context, real=context.real[rows], roles=context.roles[rows], queries=queries)
