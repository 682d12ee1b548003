"""Which path computes a call: the cheapest one that gives all that is wanted of it.

| path | serves | cost beside the plain kernel |
|---|---|---|
| ``fused`` | plain calls without edits: no statistic of the weights, or a few keys' mass and the log-sum-exp | 1.0x |
| ``merged`` | edits of the first 32 keys, null keys, extra key-value pairs; CPU | 1.0x to 1.1x |
| ``augdim`` | log-biases on any keys, values, gates; every device, with gradients | 1.1x |
| ``triton`` | statistics, and edits of scores, weights, values and gates, on an NVIDIA GPU | not measured |
| ``blockwise`` | everything | 1.2x to 2x of the attention call |

docs/decisions.md has the measurements. The path taken stands in each reading.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float

from sinkscope.attention import augdim, blockwise, fused, gpu, merged
from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.statistic import CallFacts, Gatherer
from sinkscope.attention.view import Context, LayerStats, Wants


def attend(
    call: Call, wants: Wants, context: Context, edits: CallEdits | None = None
) -> tuple[Float[torch.Tensor, "batch query head vdim"], LayerStats]:
    """Run one call by the cheapest path and return its output and statistics; ``stats.path`` names the path."""
    if edits is not None and edits.mask is not None:
        call, edits = replace(call, mask=edits.mask), replace(edits, mask=None, blockwise=True)
    if fused.serves(call, wants, edits):
        return fused.attend(call, wants, context)
    if edits:
        if (first := merged.first_keys(call, wants, edits)) is not None:
            return _with_facts(merged.attend(call, edits, first), call, wants, context)
        if augdim.serves(call, wants, edits):
            return _with_facts(augdim.attend(call, edits), call, wants, context)
    if gpu.serves(call, wants, context, edits):
        return gpu.attend(call, wants, context, edits)
    return blockwise.attend(call, wants, context, edits)


def _with_facts(
    done: tuple[torch.Tensor, LayerStats], call: Call, wants: Wants, context: Context
) -> tuple[torch.Tensor, LayerStats]:
    """Add what is read off keys, values and mask to what a path without weights returned."""
    done[1].values.update(Gatherer(wants.asks, CallFacts.of(call, context)).finish())
    return done
