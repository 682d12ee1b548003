"""Edits of the first keys at the price of the plain kernel: those keys apart, the others by the kernel, then merged.

The softmax of a row over [the first n keys | everything else] needs only n logits and the log-sum-exp of the rest,
which the fused kernel returns with its output. So edits whose keys lie among the first few (the sink, nearly always),
null keys and explicit key-value pairs act on a row of n + 1 entries instead of a map. The log-sum-exp of this kernel
carries no gradient: with a gradient wanted this path is refused.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from jaxtyping import Float

from sinkscope.attention.bias import NEG, CallEdits, DropWeights, KeyTarget, LogBias, Tile
from sinkscope.attention.streaming import Call
from sinkscope.attention.view import LayerStats, Wants

MOST = 32
"""Most keys that are kept apart."""

CHUNK = 1 << 22
"""Most numbers of the small rows that are held at once."""


def apart(call: Call, wants: Wants, edits: CallEdits) -> int | None:
    """Number of first keys to keep apart, or None where these edits cannot be done this way."""
    if wants.weights_needed or "log_sum_exp" in wants or edits.blockwise or call.query.device.type != "cpu":
        return None
    plain = (
        call.mask.plain and call.bias is None and call.softcap is None and call.sink_logits is None
        and call.extra_key is None and call.normaliser == "softmax" and set(edits.normalisers) <= {"softmax1"}
        and call.query.shape[-1] == call.value.shape[-1]
    )  # fmt: skip
    targets = [*edits.biases, *(_target(change) for change in edits.weights)]
    if not plain or _graded(call, edits) or any(target is None for target in targets):
        return None
    last = 0
    for target in targets:
        assert target is not None
        columns = target.keys.flatten(0, -2).any(0).nonzero()
        last = max(last, int(columns[-1]) + 1 if len(columns) else 0)
    small = bool(targets) or edits.null_logits is not None or bool(edits.extra_keys) or bool(edits.normalisers)
    return last if small and last <= MOST else None


def merged_attend(
    call: Call, edits: CallEdits, first: int
) -> tuple[Float[torch.Tensor, "batch query head dim"], LayerStats]:
    """Run a call with its ``first`` keys apart; see :func:`apart`."""
    batch, heads = call.query.shape[:2]
    group = heads // call.key.shape[1]
    key, value = (t.repeat_interleave(group, 1) if group > 1 else t for t in (call.key, call.value))
    for change in edits.values:
        change.tally.touched = change.tally.touched or int(change.keys.sum())
        value = torch.where(change.keys[..., None], value * change.scale, value)
    others, lse = _others(call, key, value, first)
    step = max(1, CHUNK // (call.query.shape[2] * (first + 2)))
    parts = []
    for start in range(0, batch * heads, step):
        flat = torch.arange(start, min(start + step, batch * heads))
        where = flat // heads, flat % heads
        parts.append(_rows(call, edits, first, where, (key, value, others, lse)))
    out = rearrange(torch.cat(parts), "(batch head) query dim -> batch query head dim", batch=batch)
    for gate in edits.gates:
        out = gate(out)
    return out.to(call.query.dtype), LayerStats(path="merged")


def _others(
    call: Call, key: torch.Tensor, value: torch.Tensor, first: int
) -> tuple[Float[torch.Tensor, "batch head query dim"], Float[torch.Tensor, "batch head query"]]:
    """Output and log-sum-exp of every row over the keys from ``first`` on; 0 and minus infinity where it sees none."""
    query, causal = call.query, call.mask.kind == "causal" and call.query.shape[2] > 1
    out = torch.zeros_like(query)
    lse = torch.full(query.shape[:3], NEG)
    skipped = first if causal else 0
    if key.shape[2] > first:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        rows, keys = slice(skipped, None), slice(first, None)
        found, total = kernel(query[:, :, rows], key[:, :, keys], value[:, :, keys], 0.0, causal, scale=call.scale)
        if not skipped:
            return found, total.float()
        out[:, :, rows], lse[:, :, rows] = found, total.float()
    return out, lse


def _rows(
    call: Call, edits: CallEdits, first: int, where: tuple[torch.Tensor, torch.Tensor],
    operands: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
) -> Float[torch.Tensor, "flat query dim"]:  # fmt: skip
    """Output of some heads: one softmax over the first keys, all others as one entry, null and extra keys."""
    key, value, others, lse = (tensor[where] for tensor in operands)
    head, length = where[1], call.query.shape[2]
    query = call.query[where].float() * call.scale
    tile = Tile(where[0], head, slice(0, length), slice(0, first), call.mask)
    own = torch.bmm(query, key[:, :first].float().transpose(1, 2))
    if call.mask.kind == "causal" and length > 1:
        own = own.masked_fill(torch.arange(first)[None, :] > torch.arange(length)[:, None], NEG)
    logits = torch.cat([own, lse[..., None]], dim=-1)
    for bias in edits.biases:
        logits = bias.apply(logits, tile)
    extra = [each.key.float()[head] for each in edits.extra_keys]
    columns = [torch.einsum("fqd,fd->fq", query, each)[..., None] for each in extra]
    columns = [
        column.masked_fill(~each.heads[head][:, None, None], -math.inf)
        for column, each in zip(columns, edits.extra_keys, strict=True)
    ]
    if (null := _null(edits, head)) is not None:
        columns.append(null[:, None, None].expand(-1, length, 1))
    weights = torch.softmax(torch.cat([logits, *columns], dim=-1), dim=-1)
    weights, more = weights[..., : first + 1], weights[..., first + 1 :]
    if columns and edits.weights:
        tile.rest = more.sum(-1)
    for change in edits.weights:
        weights = change(weights, tile)
    out = torch.bmm(weights[..., :first], value[:, :first].float())
    out.addcmul_(weights[..., first:], others.float())
    for place, each in enumerate(edits.extra_keys):
        share = more[..., place] if tile.rest_scale is None else more[..., place] * tile.rest_scale
        out = out + share[..., None] * each.value.float()[head][:, None]
    return out


def _null(edits: CallEdits, head: torch.Tensor) -> torch.Tensor | None:
    null = edits.null_logits
    if "softmax1" in edits.normalisers:
        one = torch.where(edits.normalisers["softmax1"], 0.0, -math.inf)
        null = one if null is None else torch.logaddexp(null, one)
    return None if null is None else null[head]


def _target(change: object) -> KeyTarget | None:
    """The keys a weight edit works on, where it needs no others."""
    owner = getattr(change, "__self__", None)
    found = owner if isinstance(owner, LogBias) else change
    return found if isinstance(found, LogBias | DropWeights) else None


def _graded(call: Call, edits: CallEdits) -> bool:
    biases = [bias.value.requires_grad for bias in edits.biases]
    biases += [
        w.__self__.value.requires_grad for w in edits.weights if isinstance(getattr(w, "__self__", None), LogBias)
    ]
    nulls = edits.null_logits is not None and edits.null_logits.requires_grad
    tensors = (call.query, call.key, call.value)
    return torch.is_grad_enabled() and (any(biases) or nulls or any(t.requires_grad for t in tensors))
