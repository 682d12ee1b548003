"""Edits of the first keys at the price of the plain kernel: those keys apart, the others by the kernel, then merged.

The softmax of a row over [the first n keys | everything else] needs only n logits and the log-sum-exp of the rest,
which the fused kernel returns with its output. So edits whose keys lie among the first few (the sink, nearly always),
null keys and explicit key-value pairs act on a row of n + 1 entries instead of a map. The log-sum-exp of this kernel
carries no gradient: with a gradient wanted this path is refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float

from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.fused import flash
from sinkscope.attention.masks import HIDDEN_LOGIT
from sinkscope.attention.tile import Tile
from sinkscope.attention.view import LayerStats, Wants

MOST = 32
"""Most keys that are kept apart."""

CHUNK = 1 << 22
"""Most numbers of the small rows that are held at once."""


def first_keys(call: Call, wants: Wants, edits: CallEdits) -> int | None:
    """Return how many first keys to keep apart, or None where these edits cannot be done this way."""
    if wants.from_kernel or edits.blockwise or call.query.device.type != "cpu":
        return None
    weights = edits.keyed_weights
    softmax = set(edits.normalisers) <= {"softmax1"} and edits.log_biases is not None
    if not call.plain or weights is None or not softmax or _graded(call, edits):
        return None
    targets = [*edits.biases, *(change.target for change in weights)]
    last = 0
    for target in targets:
        columns = target.keys.flatten(0, -2).any(0).nonzero()
        last = max(last, int(columns[-1]) + 1 if len(columns) else 0)
    # Values and gates alone need no row taken apart; the plain kernel between them is cheaper still.
    on_rows = bool(targets) or edits.null_logits is not None or bool(edits.extra_keys) or bool(edits.normalisers)
    return last if on_rows and last <= MOST else None


def attend(call: Call, edits: CallEdits, first: int) -> tuple[Float[torch.Tensor, "batch query head dim"], LayerStats]:
    """Run a call with its ``first`` keys apart; see :func:`first_keys`."""
    batch, heads = call.query.shape[:2]
    key, value = (t.repeat_interleave(call.group, 1) if call.group > 1 else t for t in (call.key, call.value))
    for change in edits.values:
        value = change.apply(value)
    others, lse = _others(call, key, value, first)
    step = max(1, CHUNK // (call.query.shape[2] * (first + 2)))
    apart = call.query, key[:, :, :first], value[:, :, :first], others, lse
    flat = [tensor.flatten(0, 1) for tensor in apart]
    parts = []
    for start in range(0, batch * heads, step):
        span = slice(start, min(start + step, batch * heads))
        place = torch.arange(span.start, span.stop, device=call.query.device)
        parts.append(_rows(call, edits, (place // heads, place % heads), [tensor[span] for tensor in flat]))
    out = torch.cat(parts) if len(parts) > 1 else parts[0]
    out = rearrange(out, "(batch head) query dim -> batch query head dim", batch=batch)
    for gate in edits.gates:
        out = gate(out)
    return out.to(call.query.dtype), LayerStats(path="merged")


def _others(
    call: Call, key: torch.Tensor, value: torch.Tensor, first: int
) -> tuple[Float[torch.Tensor, "batch head query dim"], Float[torch.Tensor, "batch head query"]]:
    """Output and log-sum-exp of every row over the keys from ``first`` on; 0 and minus infinity where it sees none."""
    query = call.query
    out = torch.zeros_like(query)
    lse = torch.full(query.shape[:3], HIDDEN_LOGIT, device=query.device)
    # Without its first n rows and first n keys a causal square is again a causal square, which the kernel knows.
    skipped = first if call.causal else 0
    if key.shape[2] > first:
        rows, keys = slice(skipped, None), slice(first, None)
        found, total = flash(query[:, :, rows], key[:, :, keys], value[:, :, keys], call.causal, call.scale)
        if not skipped:
            return found, total
        out[:, :, rows], lse[:, :, rows] = found, total
    return out, lse


def _rows(
    call: Call, edits: CallEdits, where: tuple[torch.Tensor, torch.Tensor], operands: Sequence[torch.Tensor]
) -> Float[torch.Tensor, "flat query dim"]:
    """Output of some heads: one softmax over the first keys, all others as one entry, null and extra keys."""
    query, key, value, others, lse = operands
    head, length, first = where[1], query.shape[1], key.shape[1]
    query = query.float()
    tile = Tile(where[0], head, slice(0, length), slice(0, first), call.mask)
    # Scaling the few keys costs less than scaling the queries.
    own = torch.bmm(query, (key.float() * call.scale).transpose(1, 2))
    if call.causal and first > 1:
        # Only rows before the last of these keys miss one.
        place = torch.arange(first, device=query.device)
        rows = min(first, length)
        own[:, :rows] = own[:, :rows].masked_fill(place[None, :] > place[:rows, None], HIDDEN_LOGIT)
    # The log-sum-exp of the others is a logit like any other: exp of it is their part of the denominator.
    logits = torch.cat([own, lse[..., None]], dim=-1)
    for bias in edits.biases:
        logits = bias.apply(logits, tile)
    extra = [each.key.float()[head] * call.scale for each in edits.extra_keys]
    columns = [torch.einsum("fqd,fd->fq", query, each)[..., None] for each in extra]
    columns = [
        column.masked_fill(~each.heads[head][:, None, None], -math.inf)
        for column, each in zip(columns, edits.extra_keys, strict=True)
    ]
    if (null := _null(edits, head)) is not None:
        columns.append(null[:, None, None].expand(-1, length, 1))
    weights = torch.softmax(torch.cat([logits, *columns], dim=-1), dim=-1)
    weights, off_keys = weights[..., : first + 1], weights[..., first + 1 :]
    if columns and edits.weights:
        tile.off_keys = off_keys.sum(-1)
    for change in edits.weights:
        weights = change(weights, tile)
    out = torch.bmm(weights[..., :first], value.float())
    out.addcmul_(weights[..., first:], others.float())
    for place, each in enumerate(edits.extra_keys):
        share = off_keys[..., place]
        share = share if tile.off_keys_scale is None else share * tile.off_keys_scale
        out = out + share[..., None] * each.value.float()[head][:, None]
    return out


def _null(edits: CallEdits, head: torch.Tensor) -> torch.Tensor | None:
    null = edits.null_logits
    if "softmax1" in edits.normalisers:
        # Softmax-off-by-one is a null key with logit 0.
        one = torch.where(edits.normalisers["softmax1"], 0.0, -math.inf)
        null = one if null is None else torch.logaddexp(null, one)
    return None if null is None else null[head]


def _graded(call: Call, edits: CallEdits) -> bool:
    tensors = (call.query, call.key, call.value)
    return torch.is_grad_enabled() and (edits.needs_grad or any(t.requires_grad for t in tensors))
