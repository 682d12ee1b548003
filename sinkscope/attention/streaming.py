"""One blockwise pass over the queries of an attention call: the output and every statistic, exact, no map kept.

For a tile of query rows and some heads: logits, softmax, the product with the values, and reductions, while the tile is
still near the core. Weights exist for one tile at a time, and accumulation is float32 whatever the dtype of the model.

Identities used, with p the weights and t the logits (docs/decisions.md has their cost): the log-sum-exp is
max(t) - log max(p), the entropy is log-sum-exp - sum(p t), and a denominator with more mass than the keys (learned
sink, null key) scales p by f = exp(lse - lse').
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from einops import rearrange
from jaxtyping import Float

from sinkscope.attention.bias import NEG, CallEdits, Tile
from sinkscope.attention.call import Call, Scratch, Work
from sinkscope.attention.masks import BLOCK
from sinkscope.attention.normalise import denominator, extra_mass, normalise, swapped
from sinkscope.attention.reduce import Accumulators, fold
from sinkscope.attention.view import Context, LayerStats, Wants

TILE = {"cpu": 1 << 20, "cuda": 1 << 25}
"""Numbers per tile: few enough to stay near a core on CPU, enough to fill the chip elsewhere."""

__all__ = ["Call", "attend"]


def attend(
    call: Call, wants: Wants, context: Context, edits: CallEdits | None = None
) -> tuple[Float[torch.Tensor, "batch query head vdim"], LayerStats]:
    """Run one call blockwise and return its output (batch, query, head, dim) and its statistics.

    Only real queries count in ``key_sum``. With a gradient wanted the same tiles run out of place, so autograd keeps
    them: memory is then that of the map.
    """
    batch, heads, rows, _ = call.query.shape
    keys = call.key.shape[2]
    real = context.real
    weight = real[:, -rows:].float() if real.shape[1] >= rows else real.new_ones(batch, rows).float()
    store = Accumulators((batch, heads, rows, keys), wants, context, weight)
    grad = torch.is_grad_enabled() and (call.query.requires_grad or call.value.requires_grad or _edit_grad(edits))
    block = min(BLOCK, rows)
    per_tile = max(1, min(batch * heads, TILE.get(call.query.device.type, TILE["cpu"]) // (block * keys)))
    scratch = None if grad else Scratch(per_tile * block * keys, call.query.device)
    outputs: list[torch.Tensor] = []
    start = 0
    with torch.set_grad_enabled(grad):
        for of_batch, of_head in _chunks(batch, heads, per_tile):
            where, (query, key, value) = _operands(call, of_batch, of_head, edits)
            pieces = []
            for begin in range(0, rows, BLOCK):
                work = Work(query, key, value, where, slice(begin, min(begin + BLOCK, rows)), scratch)
                pieces.append(_tile(call, (store, start), work, wants, edits))
            outputs.append(torch.cat(pieces, dim=1) if len(pieces) > 1 else pieces[0])
            start += len(query)
        out = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        out = _gate(rearrange(out, "(batch head) query dim -> batch query head dim", batch=batch), edits)
    stats = LayerStats()
    store.finish(batch, stats)
    if store.key_sum is not None:
        stats.key_viewers = call.mask.viewers(weight.bool())
    return out.to(call.query.dtype), stats


def _chunks(batch: int, heads: int, per_tile: int) -> Iterator[tuple[slice, slice]]:
    """Whole prompts where a tile holds all their heads, else some heads of one prompt."""
    if per_tile >= heads:
        step = per_tile // heads
        for first in range(0, batch, step):
            yield slice(first, min(first + step, batch)), slice(0, heads)
        return
    for row in range(batch):
        for first in range(0, heads, per_tile):
            yield slice(row, row + 1), slice(first, min(first + per_tile, heads))


def _operands(
    call: Call, of_batch: slice, of_head: slice, edits: CallEdits | None
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Batch and head of each flat head of a chunk, and its query (scaled), key and value, (flat, token, dim)."""
    device = call.query.device
    group = call.query.shape[1] // call.key.shape[1]
    rows, heads = (torch.arange(s.start, s.stop, device=device) for s in (of_batch, of_head))
    where = rows.repeat_interleave(len(heads)), heads.repeat(len(rows))

    def of_kv(tensor: torch.Tensor) -> torch.Tensor:
        part = tensor[of_batch]
        part = part[:, of_head] if group == 1 else part[:, heads // group]
        return part.flatten(0, 1).float()

    query, value = call.query[of_batch, of_head].flatten(0, 1).float() * call.scale, of_kv(call.value)
    for change in edits.values if edits else ():
        chosen = change.keys[where]
        change.tally.touched = change.tally.touched or int(chosen.sum())
        value = torch.where(chosen[..., None], value * change.scale, value)
    return where, (query, of_kv(call.key), value)


def _tile(
    call: Call, into: tuple[Accumulators, int], work: Work, wants: Wants, edits: CallEdits | None
) -> Float[torch.Tensor, "flat query vdim"]:
    """Logits, normalise, output and statistics of one tile."""
    batch, head = work.where
    tile = Tile(batch, head, work.rows, call.mask.extent(work.rows), call.mask)
    logits = _logits(call, work, tile)
    for bias in edits.biases if edits else ():
        logits = bias.apply(logits, tile)
    more_mass = extra_mass(call, edits)
    weights, lse = normalise(call, logits, work, edits, more_mass or "entropy" in wants or "log_sum_exp" in wants)
    factor, extra = denominator(call, lse, work, edits) if lse is not None and more_mass else (None, None)
    edited = bool(edits and edits.weights)
    if factor is not None and (wants.weights_needed or edited):
        weights = weights * factor[..., None]
        tile.rest = 1 - factor
        factor = None
    for change in edits.weights if edits else ():
        weights = change(weights, tile)
    out = torch.bmm(weights, work.value[:, tile.cols])
    if factor is not None:
        out = out * factor[..., None]
    if extra is not None:
        out = out + (extra if tile.rest_scale is None else extra * tile.rest_scale[..., None])
    if wants.anything:
        plain = None if edited or more_mass or swapped(call, edits) else (logits, lse)
        fold(into[0], tile, into[1], weights, plain, lse)
    return out


def _logits(call: Call, work: Work, tile: Tile) -> Float[torch.Tensor, "flat query key"]:
    query, key = work.query[:, tile.rows], work.key[:, tile.cols].transpose(1, 2)
    if work.scratch is None:
        logits = torch.bmm(query, key)
    else:
        out = work.scratch.view(work.scratch.logits, len(query), query.shape[1], key.shape[2])
        logits = torch.bmm(query, key, out=out)
    if call.softcap is not None:
        logits = torch.tanh(logits / call.softcap) * call.softcap
    if call.bias is not None:
        bias = call.bias.expand(call.query.shape[0], call.query.shape[1], *call.bias.shape[2:])
        logits = logits + bias[tile.batch, tile.head][:, tile.rows, tile.cols].float()
    hidden = call.mask.hidden(tile.rows, tile.cols)
    if hidden is None:
        return logits
    edge, block = hidden
    block = block if len(block) == 1 else block[tile.batch]
    if work.scratch is None:
        return torch.cat([logits[:, :, :edge], logits[:, :, edge:].masked_fill(block, NEG)], dim=-1)
    logits[:, :, edge:].masked_fill_(block, NEG)
    return logits


def _edit_grad(edits: CallEdits | None) -> bool:
    return edits is not None and any(bias.value.requires_grad for bias in edits.biases)


def _gate(
    out: Float[torch.Tensor, "batch query head vdim"], edits: CallEdits | None
) -> Float[torch.Tensor, "batch query head vdim"]:
    for gate in edits.gates if edits else ():
        out = gate(out)
    return out
