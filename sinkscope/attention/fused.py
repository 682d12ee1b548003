"""The fused path: where a few keys are enough, the flash kernel and its log-sum-exp give exact answers almost for free.

The weight of key j in row i is exp(q_i . k_j x scale - lse_i). The kernel returns the log-sum-exp with the output, so
the share of a handful of keys costs a thin product. The log-sum-exp of this kernel carries no gradient: with a gradient
wanted this path is refused and the blockwise one runs.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float

from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.view import Context, LayerStats, Wants

FEW = 16
"""Most keys for which a thin product beats the blockwise pass."""


def serves(call: Call, wants: Wants, edits: CallEdits | None) -> bool:
    """Return whether the library's kernel gives all that is wanted of this call."""
    if edits or not call.plain:
        return False
    if not wants.from_kernel:
        return True
    grad = torch.is_grad_enabled() and call.query.requires_grad
    cheap = wants.names <= {"key_mass", "value_norm", "key_norm", "log_sum_exp"}
    few = "key_mass" not in wants or (wants.few is not None and int(wants.few.sum(-1).max()) <= FEW)
    # The kernel that returns the log-sum-exp is named by device; this one is PyTorch's for CPU.
    return call.query.device.type == "cpu" and not grad and cheap and few and not wants.maxima and not wants.maps


def attend(
    call: Call, wants: Wants, context: Context
) -> tuple[Float[torch.Tensor, "batch query head dim"], LayerStats]:
    """Run a call that :func:`serves` accepted."""
    if wants.from_kernel:
        return _with_shares(call, wants, context)
    out = torch.nn.functional.scaled_dot_product_attention(
        call.query, call.key, call.value, is_causal=call.causal, scale=call.scale, enable_gqa=call.group > 1
    )
    return rearrange(out, "batch head query dim -> batch query head dim"), LayerStats(path="fused")


def flash(
    query: Float[torch.Tensor, "batch head query dim"], key: Float[torch.Tensor, "batch head key dim"],
    value: Float[torch.Tensor, "batch head key dim"], causal: bool, scale: float,
) -> tuple[Float[torch.Tensor, "batch head query dim"], Float[torch.Tensor, "batch head query"]]:  # fmt: skip
    """Return output and log-sum-exp of PyTorch's CPU kernel, which has no public name and needs keys repeated."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = kernel(query, key, value, 0.0, causal, scale=scale)
    return out, lse.float()


def _with_shares(call: Call, wants: Wants, context: Context) -> tuple[torch.Tensor, LayerStats]:
    stats = LayerStats(path="fused")
    key, value = (t.repeat_interleave(call.group, 1) if call.group > 1 else t for t in (call.key, call.value))
    out, lse = flash(call.query, key, value, call.causal, call.scale)
    rows = call.query.shape[2]
    real = context.real[:, -rows:]
    if "log_sum_exp" in wants:
        stats.log_sum_exp = lse
    if "key_mass" in wants and wants.few is not None:
        cols = wants.few.any(0).nonzero()[:, 0]
        logits = torch.einsum("bhqd,bhkd->bhqk", call.query.float() * call.scale, key[:, :, cols].float())
        weights = (logits - lse[..., None]).exp()
        if call.causal:
            row = torch.arange(rows, device=cols.device)
            weights = weights.masked_fill(cols[None, :] > row[:, None], 0.0)
        total = torch.einsum("bhqk,bq->bhk", weights, real.float())
        # Keys that nobody asked about are NaN, never 0: a 0 would read as a key without attention.
        stats.key_sum = torch.full((*lse.shape[:2], key.shape[2]), torch.nan, device=lse.device)
        stats.key_sum[:, :, cols] = total
        stats.key_viewers = call.mask.viewers(real)
    return rearrange(out, "batch head query dim -> batch query head dim"), stats
