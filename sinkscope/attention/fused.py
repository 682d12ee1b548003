"""The fused path: where a few keys are enough, the flash kernel and its log-sum-exp give exact answers almost for free.

The weight of key j in row i is exp(q_i . k_j x scale - lse_i). The kernel returns the log-sum-exp with the output, so
the share of a handful of keys costs a thin product. The log-sum-exp of this kernel carries no gradient: with a gradient
wanted this path is refused and the blockwise one runs.
"""

from __future__ import annotations

import functools
import os

import torch
from einops import rearrange
from jaxtyping import Float

from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.statistic import CallFacts, Gatherer
from sinkscope.attention.view import Ask, Context, LayerStats, Wants

SWITCH = "SINKSCOPE_GPU_KERNELS"
"""Environment variable: at 0 a GPU computes every statistic blockwise, by PyTorch alone."""

FEW = 16
"""Most keys for which a thin product beats the blockwise pass."""


def serves(call: Call, wants: Wants, edits: CallEdits | None) -> bool:
    """Return whether the library's kernel gives all that is wanted of this call."""
    if edits or not call.plain:
        return False
    if not wants.from_kernel:
        return True
    grad = torch.is_grad_enabled() and call.query.requires_grad
    return has_log_sum_exp(call) and not grad and all(map(_cheap, wants.asks.values()))


def has_log_sum_exp(call: Call) -> bool:
    """Return whether the device of a plain call has a kernel that returns the log-sum-exp."""
    device, dim = call.query.device, call.query.shape[-1]
    # On a GPU the kernels want vectors that begin at multiples of 16 bytes.
    aligned = dim % 8 == 0 and dim <= 256 and call.query.stride(-1) == 1
    return device.type == "cpu" or (on_gpu(device) and aligned)


@functools.cache
def on_gpu(device: torch.device) -> bool:
    """Say whether a device is an NVIDIA GPU since Ampere, whose kernels return the log-sum-exp."""
    if os.environ.get(SWITCH) == "0" or device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _cheap(ask: Ask) -> bool:
    """Whether the output and the log-sum-exp give a statistic: it needs no weights, or those on a few keys."""
    if ask.name == "key_sum" and "keys" in ask.of:
        return int(ask.of["keys"].sum(-1).max()) <= FEW
    return "weights" not in ask.statistic.reads


def attend(
    call: Call, wants: Wants, context: Context
) -> tuple[Float[torch.Tensor, "batch query head dim"], LayerStats]:
    """Run a call that :func:`serves` accepted."""
    if wants.from_kernel:
        return _with_shares(call, wants, context)
    out = torch.nn.functional.scaled_dot_product_attention(
        call.query, call.key, call.value, is_causal=call.causal, scale=call.scale, enable_gqa=call.group > 1
    )
    facts = CallFacts.of(call, context)
    stats = LayerStats(Gatherer(wants.asks, facts).finish(), "fused")
    return rearrange(out, "batch head query dim -> batch query head dim"), stats


def flash(
    query: Float[torch.Tensor, "batch head query dim"], key: Float[torch.Tensor, "batch kv_head key dim"],
    value: Float[torch.Tensor, "batch kv_head key dim"], causal: bool, scale: float,
) -> tuple[Float[torch.Tensor, "batch head query dim"], Float[torch.Tensor, "batch head query"]]:  # fmt: skip
    """Return output and log-sum-exp of PyTorch's kernel of this device and dtype; none of them has a public name."""
    half = query.dtype in (torch.float16, torch.bfloat16)
    if query.device.type == "cuda" and half:  # shares keys and values within a group by itself
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, scale=scale)[:2]
        return out, lse.float()
    group = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(group, 1) if group > 1 else tensor for tensor in (key, value))
    if query.device.type == "cuda":
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        out, lse = kernel(query, key, value, None, True, 0.0, causal, scale=scale)[:2]
        return out, lse[:, :, : query.shape[2]].float()  # it comes padded to a multiple of 32
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = kernel(query, key, value, 0.0, causal, scale=scale)
    return out, lse.float()


def _with_shares(call: Call, wants: Wants, context: Context) -> tuple[torch.Tensor, LayerStats]:
    out, lse = flash(call.query, call.key, call.value, call.causal, call.scale)
    facts = CallFacts.of(call, context)
    others = {label: ask for label, ask in wants.asks.items() if ask.name not in ("key_sum", "log_sum_exp")}
    stats = LayerStats(Gatherer(others, facts).finish(), "fused")
    for label, ask in wants.asks.items():
        if ask.name == "log_sum_exp":
            stats[label] = lse
        elif ask.name == "key_sum":
            stats[label] = _sum_of_few(call, lse, ask, facts)
    return rearrange(out, "batch head query dim -> batch query head dim"), stats


def _sum_of_few(
    call: Call, lse: Float[torch.Tensor, "batch head query"], ask: Ask, facts: CallFacts
) -> Float[torch.Tensor, "batch head key"]:
    """Attention on a few keys, summed over the queries: their weights are exp(logit - log-sum-exp)."""
    keys, queries = ask.of["keys"], facts.queries(ask)
    cols = facts.once("columns", keys, lambda: keys.any(0).nonzero()[:, 0])
    # Scaling the few keys costs less than scaling the queries.
    few = (call.key[:, :, cols].float() * call.scale).repeat_interleave(call.group, 1)
    weights = torch.matmul(call.query.float(), few.transpose(2, 3)).sub_(lse[..., None]).exp_()
    if call.causal:
        row = torch.arange(lse.shape[2], device=cols.device)
        hidden = facts.once("later columns", keys, lambda: cols[None, :] > row[:, None])
        weights = weights.masked_fill_(hidden, 0.0)
    # Keys that nobody asked about are NaN, never 0: a 0 would read as a key without attention.
    total = torch.full((*lse.shape[:2], call.key.shape[2]), torch.nan, device=lse.device)
    total[:, :, cols] = torch.matmul(queries[:, None, None].float(), weights)[:, :, 0]
    return total
