"""The GPU path: the library's fused forward pass, then a walk over the tiles for what is asked of the weights.

The forward kernel returns the log-sum-exp of each row, so a weight can be formed again from its logit alone. One Triton
kernel walks over the keys of each block of queries and gives statistics of rows, another over the queries of each block
of keys and gives sums for each key; each runs only where something it gives is asked for. No map is kept, and every
number is written by one program, so results repeat bit for bit. A call that the library's kernel does not know (window,
padding, soft cap) has its forward pass from a third kernel over the same tiles, and so has a call whose scores or
weights are edited (:mod:`sinkscope.attention.logit_terms`). Values are edited ahead of the kernels, gates behind them,
and null and extra keys are terms of the denominator.

No GPU was at hand: nothing here was run or timed on one. What the kernels compute is shown in Triton's interpreter,
against dense attention in float64; ``SINKSCOPE_GPU_KERNELS=0`` turns this path off.
"""

from __future__ import annotations

import importlib.util

import torch
from einops import rearrange
from jaxtyping import Float

from sinkscope.attention import fused, logit_terms
from sinkscope.attention.augdim import edited_values
from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.launch import Launcher, RowNumbers, Tiling
from sinkscope.attention.logit_terms import LogitTerms
from sinkscope.attention.normalise import denominator, has_mass_off_keys
from sinkscope.attention.reductions import (
    KeySum,
    LogSumExps,
    MaxLogit,
    MaxWeight,
    RoleShares,
    RowEntropies,
    RowSums,
    TopColumn,
)
from sinkscope.attention.spans import Spans
from sinkscope.attention.statistic import CallFacts, CallStatistic, Gatherer, RowStatistic
from sinkscope.attention.view import Ask, Context, LayerStats, Wants

ROWS = (RowSums, RowEntropies, MaxLogit, MaxWeight, TopColumn, RoleShares)
"""Statistics that the walk over the keys gives; :class:`KeySum` comes from the walk over the queries."""

MOST_DIM, MOST_ROLES = 256, 64
"""Longest vectors, and most columns of role shares, that a program holds beside its tile."""


def available(device: torch.device) -> bool:
    """Say whether the kernels run on this device: an NVIDIA GPU since Ampere, with Triton."""
    return fused.on_gpu(device) and importlib.util.find_spec("triton") is not None


def serves(call: Call, wants: Wants, context: Context, edits: CallEdits | None) -> bool:
    """Return whether the kernels make this call under these edits and give all that is wanted of it."""
    if not available(call.query.device):
        return False
    learned = edits is not None and edits.needs_grad
    grad = torch.is_grad_enabled() and (call.query.requires_grad or call.value.requires_grad or learned)
    return not grad and knows(call, wants, context, edits)


def knows(call: Call, wants: Wants, context: Context, edits: CallEdits | None = None) -> bool:
    """Return whether the kernels have this kind of call, edits and statistics, whatever the device."""
    added = call.bias is None and call.extra_key is None and call.value_bias is None
    softmax = added and call.normaliser == "softmax" and (edits is None or logit_terms.serves(edits))
    small = max(call.query.shape[-1], call.value.shape[-1]) <= MOST_DIM and len(context.role_list) <= MOST_ROLES
    return softmax and small and all(map(_given, wants.asks.values())) and Spans.of(call.mask) is not None


def _given(ask: Ask) -> bool:
    return issubclass(ask.statistic, CallStatistic) or ask.statistic in (*ROWS, KeySum, LogSumExps)


def attend(
    call: Call, wants: Wants, context: Context, edits: CallEdits | None = None, tiling: Tiling | None = None
) -> tuple[Float[torch.Tensor, "batch query head vdim"], LayerStats]:
    """Run a call that :func:`serves` accepted, under its edits."""
    spans = Spans.of(call.mask)
    assert spans is not None
    terms = LogitTerms.of(call, edits, spans) if edits else None
    tiles = Launcher(call, spans, tiling, terms, edited_values(call, edits.values) if edits else None)
    out, lse = tiles.forward()
    off_keys = has_mass_off_keys(call, edits)
    total, out = _with_sinks(call, edits, lse, out) if off_keys else (lse, out)
    for gate in edits.gates if edits else ():
        out = gate(out)
    gather = Gatherer(wants.asks, CallFacts.of(call, context))
    walked = _walk(tiles, total, gather)
    softmax_rows = not off_keys and not (edits and edits.weights)
    for statistic in gather.statistics:
        if isinstance(statistic, KeySum):
            for number in range(len(statistic.asks)):
                statistic.sums[:, number] = tiles.columns(total, statistic.members[:, number]).flatten(0, 1)
        elif isinstance(statistic, LogSumExps):
            statistic.put([lse] * len(statistic.asks))
        elif isinstance(statistic, RowStatistic):
            statistic.put(_numbers(statistic, walked, softmax_rows))
    return out.to(call.query.dtype), LayerStats(gather.finish(), "triton")


def _with_sinks(
    call: Call, edits: CallEdits | None, lse: Float[torch.Tensor, "batch head query"],
    out: Float[torch.Tensor, "batch query head vdim"],
) -> tuple[Float[torch.Tensor, "batch head query"], Float[torch.Tensor, "batch query head vdim"]]:  # fmt: skip
    """Return the denominator with learned sinks, null and extra keys, and the output under it.

    What is left to the keys scales the output over them.
    """
    heads = torch.arange(call.query.shape[1], device=lse.device).repeat(len(lse))

    def logit_of(key: Float[torch.Tensor, "head dim"]) -> Float[torch.Tensor, "flat query"]:
        return torch.einsum("bhqd,hd->bhq", call.query.float(), key.float() * call.scale).flatten(0, 1)

    flat, extra = denominator(call, lse.flatten(0, 1), heads, logit_of, edits)
    total = flat.view_as(lse)
    out = out * rearrange((lse - total).exp(), "batch head query -> batch query head 1").to(out.dtype)
    if extra is not None:
        out = out + rearrange(extra, "(batch head) query dim -> batch query head dim", batch=len(lse))
    return total, out


def _walk(tiles: Launcher, total: Float[torch.Tensor, "batch head query"], gather: Gatherer) -> list[RowNumbers]:
    """Walk over the keys once for all statistics of rows, again for each further set of keys."""
    asked = {type(statistic): statistic for statistic in gather.statistics}
    if not asked.keys() & set(ROWS):
        return []
    sets = [ask.of["keys"] for ask in asked[MaxWeight].asks] if MaxWeight in asked else [None]
    shares = asked.get(RoleShares)
    one_hot = shares.roles.spread(tiles.key.shape[2]) if isinstance(shares, RoleShares) else None
    walked = [tiles.rows(total, one_hot, sets[0], TopColumn in asked)]
    return walked + [tiles.rows(total, None, each, False) for each in sets[1:]]


def _numbers(statistic: RowStatistic, walked: list[RowNumbers], softmax_rows: bool) -> list[torch.Tensor]:
    """Return what a statistic has of the walks, one for each of its asks."""
    if isinstance(statistic, MaxWeight):
        return [each.max_weight for each in walked if each.max_weight is not None]
    found = walked[0]
    one: torch.Tensor | None
    if isinstance(statistic, RoleShares) and found.shares is not None:
        one = statistic.roles.with_rest(found.shares, found.row_sum)
    elif isinstance(statistic, MaxLogit) and not softmax_rows:
        one = torch.full_like(found.max_logit, torch.nan)
    else:
        one = {RowSums: found.row_sum, RowEntropies: found.entropy, MaxLogit: found.max_logit,
               TopColumn: found.top_column}[type(statistic)]  # fmt: skip
    assert one is not None
    return [one] * len(statistic.asks)
