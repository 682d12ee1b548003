"""Edits on the fused kernel: a log-bias on keys becomes one more dimension of queries and keys.

q' = [q | a / scale] and k' = [k | m] give the logits q.k x scale + a m, so a bias ``a`` (per head and row) on a key set
``m`` needs no mask tensor, and the kernel's own causal masking stays. Values are padded with zeros to the same width.
In low precision the bias is split into a rounded part and the rest. Gradients flow, to the bias too. Values and gates
are edited before and after the call. Whatever else an edit needs, the blockwise pass does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float

from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.primitives import DropWeights, LogBias, ValueScale
from sinkscope.attention.view import LayerStats, Wants

HIDE = {torch.float16: -6e4}
"""Query entry that hides a key: exp of it is exactly 0 after scaling. float16 holds no more than this."""

MOST = 4
"""Most log-biases in one call; beyond that the extra columns cost more than the blockwise pass."""


def serves(call: Call, wants: Wants, edits: CallEdits) -> bool:
    """Return whether these edits can run on the fused kernel: plain mask and softmax, no statistics of weights."""
    biases = edits.log_biases
    if wants.from_kernel or not call.plain or edits.normalisers or edits.extra_keys or biases is None:
        return False
    if not all(isinstance(w, DropWeights) and w.queries is None and not w.keep_self for w in edits.weights):
        return False
    # Rows left with no key are found for each bias by itself; two hiding biases could empty a row together.
    hiding = sum(bias.hide for bias in biases)
    simple = hiding <= 1 and len(biases) <= MOST and not any(bias.keep_self for bias in biases)
    return simple and edits.null_logits is None and not edits.blockwise


def attend(call: Call, edits: CallEdits) -> tuple[Float[torch.Tensor, "batch query head dim"], LayerStats]:
    """Run a call that :func:`serves` accepted."""
    query, key = call.query, call.key
    # Without statistics, weights dropped in every row are the same as values of 0.
    drops = [ValueScale(w.keys, w.factor, w.tally) for w in edits.weights if isinstance(w, DropWeights)]
    values = [*edits.values, *drops]
    value = edited_values(call, values)
    biases = edits.log_biases or []
    if value.shape[1] > key.shape[1] or any(_differs_within_groups(call, bias) for bias in biases):
        key, value = (tensor.repeat_interleave(query.shape[1] // tensor.shape[1], 1) for tensor in (key, value))
    per_group = query.shape[1] // key.shape[1]
    columns = [_columns(bias, call, per_group) for bias in biases]
    width = query.shape[-1]
    if columns:
        extra = sum(part.shape[-1] for part, _ in columns)
        # Kernels want head sizes that are multiples of 8, or copy the operands to make them so.
        short = -(width + extra) % 8
        query = _widen(query, [part for part, _ in columns], short)
        key = _widen(key, [part for _, part in columns], short)
        value = torch.nn.functional.pad(value, (0, extra + short))
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=call.causal, scale=call.scale, enable_gqa=per_group > 1
    )
    out = rearrange(out[..., :width], "batch head query dim -> batch query head dim")
    for gate in edits.gates:
        out = gate(out)
    return out.to(call.query.dtype), LayerStats(path="augdim")


def edited_values(call: Call, values: Sequence[ValueScale]) -> Float[torch.Tensor, "batch kv_or_head key vdim"]:
    """Return the values of a call, edited: of every head where those of a group come to differ."""
    value, step = call.value, call.group
    alike = (
        torch.equal(change.keys, _by_group(change.keys, step).repeat_interleave(step, 1)) for change in values
    )  # fmt: skip
    if step > 1 and not all(alike):
        value, step = value.repeat_interleave(step, 1), 1
    for change in values:
        value = change.apply(value, lambda tensor: tensor[:, ::step])
    return value


def _columns(bias: LogBias, call: Call, per_group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns of one log-bias: (batch, head, query, 1 or 2) for the queries, (batch, kv_head, key, same) for keys."""
    batch, heads, rows = call.query.shape[:3]
    acts = bias.keys.any(-1)[:, :, None].expand(batch, heads, rows)
    if bias.queries is not None:
        acts = acts & bias.queries[:, None]
    if bias.hides:
        left_empty = _sees_only_hidden(bias.keys, rows, call.causal)
        bias.tally.spared += int((acts & left_empty).sum())
        acts = acts & ~left_empty
    bias.tally.touched = bias.tally.touched or int(acts.sum())
    dtype = call.query.dtype
    if bias.hides:
        entry = torch.full((heads,), HIDE.get(dtype, -1e9 / call.scale), device=call.query.device)
    else:
        entry = bias.value / call.scale
    entry = torch.where(acts, entry[None, :, None], torch.zeros((), device=entry.device, dtype=entry.dtype))
    parts = [entry.to(dtype)]
    if dtype != torch.float32 and not bias.hides:
        # bfloat16 keeps 8 bits of the bias; what rounding took away goes into a second column.
        parts.append((entry - parts[0].to(entry.dtype)).to(dtype))
    member = _by_group(bias.keys, per_group).to(dtype)[..., None]
    return torch.stack(parts, dim=-1), member.expand(*member.shape[:-1], len(parts))


def _sees_only_hidden(
    keys: Bool[torch.Tensor, "batch head key"], rows: int, causal: bool
) -> Bool[torch.Tensor, "batch head query"]:
    """Rows that see only hidden keys: while every key so far is hidden, or all of them without a causal mask."""
    if causal:
        return keys.long().cumprod(-1).bool()
    return keys.all(-1, keepdim=True).expand(*keys.shape[:2], rows)


def _by_group(keys: Bool[torch.Tensor, "batch head key"], per_group: int) -> Bool[torch.Tensor, "batch kv_head key"]:
    """One key set per key-value head: that of the heads in its group that have one."""
    return rearrange(keys, "batch (kv group) key -> batch kv group key", group=per_group).any(2)


def _differs_within_groups(call: Call, bias: LogBias) -> bool:
    """Whether heads that share a key-value head select different keys."""
    union = _by_group(bias.keys, call.group).repeat_interleave(call.group, 1)
    return call.group > 1 and not torch.equal(bias.keys, union & bias.keys.any(-1, keepdim=True))


def _widen(tensor: torch.Tensor, parts: list[torch.Tensor], short: int) -> torch.Tensor:
    """Append columns, and zeros up to a multiple of 8."""
    return torch.nn.functional.pad(torch.cat([tensor, *parts], dim=-1), (0, short))
