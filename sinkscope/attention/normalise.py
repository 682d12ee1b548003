"""From logits to weights: softmax, denominators that hold more than the keys, and normalisers without a softmax."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float

from sinkscope.attention.bias import NEG, CallEdits
from sinkscope.attention.call import Call, Work


def normalise(
    call: Call, logits: Float[torch.Tensor, "flat query key"], work: Work, edits: CallEdits | None, with_lse: bool
) -> tuple[Float[torch.Tensor, "flat query key"], Float[torch.Tensor, "flat query"] | None]:
    """Weights and, where asked for, the log-sum-exp of the keys."""
    if work.scratch is None or logits.requires_grad:
        weights = torch.softmax(logits, dim=-1)
    else:
        weights = torch.softmax(logits, dim=-1, out=work.scratch.view(work.scratch.weights, *logits.shape))
    lse = None
    if with_lse:
        lse = logits.amax(-1) - weights.amax(-1).log()
    if call.mask.dead_rows() is not None:
        weights = weights.masked_fill((logits.amax(-1) <= NEG / 2)[..., None], 0.0)
    for kind, heads in swapped(call, edits).items():
        weights = torch.where(heads[work.where[1]][:, None, None], elementwise(kind, logits), weights)
    return weights, lse


def _kinds(call: Call, edits: CallEdits | None) -> dict[str, Bool[torch.Tensor, " head"]]:
    """Heads under each normaliser that is not the softmax: the model's own, unless an edit swaps it."""
    kinds = edits.normalisers if edits else {}
    if call.normaliser == "softmax":
        return kinds
    left = torch.ones(call.query.shape[1], dtype=torch.bool, device=call.query.device)
    for heads in kinds.values():
        left = left & ~heads
    return {**kinds, call.normaliser: left | kinds[call.normaliser] if call.normaliser in kinds else left}


def swapped(call: Call, edits: CallEdits | None) -> dict[str, Bool[torch.Tensor, " head"]]:
    """Heads whose normaliser works on each weight alone."""
    return {kind: heads for kind, heads in _kinds(call, edits).items() if kind in ("sigmoid", "relu")}


def elementwise(kind: str, logits: Float[torch.Tensor, "flat query key"]) -> Float[torch.Tensor, "flat query key"]:
    """Attention without softmax: sigmoid(t), or relu(t) / number of visible keys (Guo et al. 2024; Gu et al. 2025)."""
    hidden = logits <= NEG / 2
    if kind == "sigmoid":
        return torch.sigmoid(logits).masked_fill(hidden, 0.0)
    count = (~hidden).sum(-1, keepdim=True).clamp(min=1)
    return torch.relu(logits).masked_fill(hidden, 0.0) / count


def extra_mass(call: Call, edits: CallEdits | None) -> bool:
    """True where the denominator holds more than the keys."""
    added = edits is not None and (edits.null_logits is not None or bool(edits.extra_keys))
    return added or "softmax1" in _kinds(call, edits) or call.sink_logits is not None or call.extra_key is not None


def denominator(
    call: Call, lse: Float[torch.Tensor, "flat query"], work: Work, edits: CallEdits | None
) -> tuple[Float[torch.Tensor, "flat query"], Float[torch.Tensor, "flat query vdim"] | None]:
    """Row factor that a larger denominator puts on the keys' weights, and the extra keys' own output."""
    head, rows = work.where[1], work.rows
    total = lse
    if call.sink_logits is not None:
        total = torch.logaddexp(total, call.sink_logits.float()[head][:, None])
    kinds = _kinds(call, edits)
    if "softmax1" in kinds:
        plus_one = torch.logaddexp(total, torch.zeros_like(total))
        total = torch.where(kinds["softmax1"][head][:, None], plus_one, total)
    if edits is not None and edits.null_logits is not None:
        total = torch.logaddexp(total, edits.null_logits[head][:, None].expand_as(total))
    if call.extra_key is not None:
        own = torch.einsum("fqd,fd->fq", work.query[:, rows], call.extra_key.float()[head])
        total = torch.logaddexp(total, own)
    extras = edits.extra_keys if edits else []
    logits = []
    for each in extras:
        logit = torch.einsum("fqd,fd->fq", work.query[:, rows], each.key.float()[head])
        logits.append(logit.masked_fill(~each.heads[head][:, None], -math.inf))
        total = torch.logaddexp(total, logits[-1])
    alone = [heads[head][:, None] for heads in swapped(call, edits).values()]
    extra = None
    for each, logit in zip(extras, logits, strict=True):
        share = (logit - total).exp()
        for bare in alone:
            share = share.masked_fill(bare, 0.0)
        part = share[..., None] * each.value.float()[head][:, None]
        extra = part if extra is None else extra + part
    factor = (lse - total).exp()
    for bare in alone:
        factor = factor.masked_fill(bare, 1.0)
    return factor, extra
