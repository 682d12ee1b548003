"""The fused path: where a few keys are enough, the flash kernel and its log-sum-exp give exact answers almost for free.

The weight of key j in row i is exp(q_i . k_j x scale - lse_i). The kernel returns the log-sum-exp with the output, so
the share of a handful of keys costs a thin product. The log-sum-exp of this kernel carries no gradient: with a gradient
wanted this path is refused and the blockwise one runs.
"""

from __future__ import annotations

import torch
from einops import rearrange

from sinkscope.attention.augdim import augmented_attend, serves
from sinkscope.attention.bias import CallEdits
from sinkscope.attention.merged import apart, merged_attend
from sinkscope.attention.streaming import Call
from sinkscope.attention.view import Context, LayerStats, Wants

FEW = 16
"""Most keys for which a thin product beats the blockwise pass."""


def fused_attend(
    call: Call, wants: Wants, context: Context, edits: CallEdits | None
) -> tuple[torch.Tensor, LayerStats] | None:
    """Return the output and statistics by the fused kernel, or None where it cannot serve this call."""
    if edits:
        return _edited(call, wants, edits)
    if not _serves(call, wants, edits):
        return None
    causal = call.mask.kind == "causal" and call.query.shape[2] > 1
    stats = LayerStats(path="fused")
    if call.query.device.type == "cpu" and wants.weights_needed | ("log_sum_exp" in wants.names):
        return _with_shares(call, wants, context, causal, stats)
    out = torch.nn.functional.scaled_dot_product_attention(
        call.query, call.key, call.value, is_causal=causal, scale=call.scale,
        enable_gqa=call.query.shape[1] != call.key.shape[1],
    )  # fmt: skip
    return rearrange(out, "batch head query dim -> batch query head dim"), stats


def _edited(call: Call, wants: Wants, edits: CallEdits) -> tuple[torch.Tensor, LayerStats] | None:
    """Edits on the kernel: first keys apart where that is enough, else one more dimension, else not at all."""
    if (first := apart(call, wants, edits)) is not None:
        return merged_attend(call, edits, first)
    return augmented_attend(call, edits) if serves(call, wants, edits) else None


def _serves(call: Call, wants: Wants, edits: CallEdits | None) -> bool:
    simple = (
        not edits and call.mask.plain and call.bias is None and call.softcap is None and call.sink_logits is None
        and call.extra_key is None and call.normaliser == "softmax"
        and call.query.shape[-1] == call.value.shape[-1]
    )  # fmt: skip
    if not simple:
        return False
    if not wants.weights_needed and "log_sum_exp" not in wants:
        return True
    grad = torch.is_grad_enabled() and call.query.requires_grad
    cheap = wants.names <= {"key_mass", "value_norm", "key_norm", "log_sum_exp"}
    few = "key_mass" not in wants or (wants.few is not None and int(wants.few.sum(-1).max()) <= FEW)
    return call.query.device.type == "cpu" and not grad and cheap and few and not wants.maxima and not wants.maps


def _with_shares(
    call: Call, wants: Wants, context: Context, causal: bool, stats: LayerStats
) -> tuple[torch.Tensor, LayerStats]:
    group = call.query.shape[1] // call.key.shape[1]
    key, value = (t.repeat_interleave(group, 1) if group > 1 else t for t in (call.key, call.value))
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = kernel(call.query, key, value, 0.0, causal, scale=call.scale)
    lse = lse.float()
    rows = call.query.shape[2]
    real = context.real[:, -rows:]
    if "log_sum_exp" in wants:
        stats.log_sum_exp = lse
    if "key_mass" in wants and wants.few is not None:
        cols = wants.few.any(0).nonzero()[:, 0]
        logits = torch.einsum("bhqd,bhkd->bhqk", call.query.float() * call.scale, key[:, :, cols].float())
        weights = (logits - lse[..., None]).exp()
        if causal:
            row = torch.arange(rows, device=cols.device)
            weights = weights.masked_fill(cols[None, :] > row[:, None], 0.0)
        total = torch.einsum("bhqk,bq->bhk", weights, real.float())
        stats.key_sum = torch.full((*lse.shape[:2], key.shape[2]), torch.nan, device=lse.device)
        stats.key_sum[:, :, cols] = total
        stats.key_viewers = call.mask.viewers(real)
    return rearrange(out, "batch head query dim -> batch query head dim"), stats
