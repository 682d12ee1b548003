"""One blockwise pass over the queries of an attention call: the output and every statistic, exact, no map kept.

The path that serves every call, and the reference of all others. For a tile of query rows and some heads: logits,
softmax, the product with the values, and reductions, while the tile is still near the core. Weights exist for one tile
at a time, and accumulation is float32 whatever the dtype of the model. The identities are in ``attention/__init__.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int

from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.masks import BLOCK, HIDDEN_LOGIT, penalty
from sinkscope.attention.normalise import denominator, has_mass_off_keys, heads_without_softmax, normalise
from sinkscope.attention.statistic import CallFacts, Gatherer, WeightTile
from sinkscope.attention.tile import Scratch, Tile, TileInputs
from sinkscope.attention.view import Context, LayerStats, Wants

TILE = {"cpu": 1 << 19, "cuda": 1 << 25}
"""Numbers per tile: few enough to stay near a core on CPU, enough to fill the chip elsewhere."""


def attend(
    call: Call, wants: Wants, context: Context, edits: CallEdits | None = None
) -> tuple[Float[torch.Tensor, "batch query head vdim"], LayerStats]:
    """Run one call blockwise and return its output (batch, query, head, dim) and its statistics.

    With a gradient wanted the same tiles run out of place, so autograd keeps them: memory is then that of the map.
    """
    batch, heads, rows, _ = call.query.shape
    keys = call.key.shape[2]
    gather = Gatherer(wants.asks, CallFacts.of(call, context))
    learned = edits is not None and edits.needs_grad
    grad = torch.is_grad_enabled() and (call.query.requires_grad or call.value.requires_grad or learned)
    block = min(BLOCK, rows)
    device = call.query.device
    per_tile = max(1, min(batch * heads, TILE.get(device.type, TILE["cpu"]) // (block * keys)))
    size = per_tile * block
    scratch = None if grad else Scratch.take(size * keys, size * call.value.shape[-1], device)
    out = _Output(call, edits, grad)
    start = 0
    with torch.set_grad_enabled(grad):
        for chunk in _chunks(batch, call.group, heads, per_tile):
            where, key, value = _operands(call, chunk, edits)
            for begin in range(0, rows, BLOCK):
                span = slice(begin, min(begin + BLOCK, rows))
                # Scaling the thin query costs less than scaling a tile of logits.
                query = (call.query[chunk.batch, chunk.heads, span].float() * call.scale).flatten(0, 1)
                inputs = TileInputs(query, key, value, where, span, scratch)
                out.put(_tile(call, (gather, start), inputs, wants, edits), chunk, span)
            start += len(where[0])
        result = out.whole(edits)
    if scratch is not None:
        scratch.give_back()
    return result.to(call.query.dtype), LayerStats(gather.finish(), "blockwise")


@dataclass(frozen=True)
class _Chunk:
    """Heads that share a tile: of whole prompts, of some key-value groups of one prompt, or of one group."""

    batch: slice
    heads: slice
    kv_heads: slice


def _chunks(batch: int, group: int, heads: int, per_tile: int) -> Iterator[_Chunk]:
    """Cut the heads so that a tile never holds a part of one group beside another group."""
    if per_tile >= heads:
        step = per_tile // heads
        for first in range(0, batch, step):
            yield _Chunk(slice(first, min(first + step, batch)), slice(0, heads), slice(0, heads // group))
        return
    step = per_tile // group * group or per_tile
    for row in range(batch):
        for base in range(0, heads, max(step, group)):
            stop = min(base + max(step, group), heads)
            for first in range(base, stop, step):
                last = min(first + step, stop)
                yield _Chunk(slice(row, row + 1), slice(first, last), slice(first // group, (last - 1) // group + 1))


def _operands(
    call: Call, chunk: _Chunk, edits: CallEdits | None
) -> tuple[tuple[Int[torch.Tensor, " flat"], Int[torch.Tensor, " flat"]], torch.Tensor, torch.Tensor]:
    """Batch and head of each flat head of a chunk, and keys and values of its key-value heads, (kv, token, dim)."""
    device = call.query.device
    rows, heads = (torch.arange(s.start, s.stop, device=device) for s in (chunk.batch, chunk.heads))
    where = rows.repeat_interleave(len(heads)), heads.repeat(len(rows))
    key = call.key[chunk.batch, chunk.kv_heads].flatten(0, 1).float()
    value = call.value[chunk.batch, chunk.kv_heads].flatten(0, 1).float()
    if edits and edits.values:
        # Heads of a group may now have different values, so each head gets its own.
        value = value.repeat_interleave(len(where[0]) // len(value), 0)
        for change in edits.values:
            value = change.apply(value, lambda tensor: tensor[where])
    return where, key, value


class _Output:
    """The output of a call as its tiles come in: written at its place, or kept in pieces where autograd wants them."""

    def __init__(self, call: Call, edits: CallEdits | None, grad: bool) -> None:
        batch, heads, rows, _ = call.query.shape
        self.pieces: list[list[torch.Tensor]] = []
        # Gates work on float32; without one every tile is rounded to the model's type as it is written.
        dtype = torch.float32 if edits and edits.gates else call.query.dtype
        shape = (batch, rows, heads, call.value.shape[-1])
        self.bias = call.value_bias
        self.batch, self.out = batch, None if grad else torch.empty(shape, dtype=dtype, device=call.query.device)

    def put(self, tile: Float[torch.Tensor, "flat query vdim"], chunk: _Chunk, rows: slice) -> None:
        """Take one tile."""
        if self.out is not None:
            target = self.out[chunk.batch, rows, chunk.heads].transpose(1, 2)
            target.copy_(tile.view(target.shape))
            return
        if rows.start == 0:
            self.pieces.append([])
        self.pieces[-1].append(tile)

    def whole(self, edits: CallEdits | None) -> Float[torch.Tensor, "batch query head vdim"]:
        """Return the output with the model's own value bias, gated."""
        out = self.out
        if out is None:
            flat = torch.cat([torch.cat(pieces, dim=1) for pieces in self.pieces])
            out = rearrange(flat, "(batch head) query dim -> batch query head dim", batch=self.batch)
        if self.bias is not None:
            out = out + self.bias.to(out.dtype)
        for gate in edits.gates if edits else ():
            out = gate(out)
        return out


def _tile(
    call: Call, into: tuple[Gatherer, int], inputs: TileInputs, wants: Wants, edits: CallEdits | None
) -> Float[torch.Tensor, "flat query vdim"]:
    """Logits, normalise, output and statistics of one tile."""
    batch, head = inputs.where
    tile = Tile(batch, head, inputs.rows, call.mask.extent(inputs.rows), call.mask)
    logits = _logits(call, inputs, tile)
    for bias in edits.biases if edits else ():
        logits = bias.apply(logits, tile)
    off_keys = has_mass_off_keys(call, edits)
    weights, lse = normalise(call, logits, inputs, tile, edits, off_keys or wants.log_sum_exp_needed)
    on_keys = extra_output = None
    if lse is not None and off_keys:
        total, extra_output = denominator(call, lse, head, inputs.logit_of, edits)
        on_keys = (lse - total).exp()
    edited = bool(edits and edits.weights)
    if on_keys is not None and (wants.weights_needed or edited):
        weights = weights * on_keys[..., None]
        tile.off_keys = 1 - on_keys
        on_keys = None
    for change in edits.weights if edits else ():
        weights = change(weights, tile)
    out = inputs.product_with_values(weights, tile.cols)
    if on_keys is not None:
        # Nobody looks at the weights themselves: scaling the output is a scaling of dim numbers a row, not of keys.
        out = out * on_keys[..., None]
    if extra_output is not None:
        scale = tile.off_keys_scale
        out = out + (extra_output if scale is None else extra_output * scale[..., None])
    if wants.from_kernel:
        # Only rows that are a softmax of these logits have entropy = lse - sum(p t) and shares that add up to 1.
        softmax_rows = not (edited or off_keys or heads_without_softmax(call, edits))
        into[0].fold(_detached(tile, into[1], weights, logits if softmax_rows else None, lse))
    return out


def _detached(
    tile: Tile, start: int, weights: torch.Tensor, logits: torch.Tensor | None, lse: torch.Tensor | None
) -> WeightTile:
    """Statistics carry no gradient: what they see is cut off from the graph."""
    logits, lse = (None if tensor is None else tensor.detach() for tensor in (logits, lse))
    return WeightTile(tile, slice(start, start + len(weights)), weights.detach(), logits, lse)


def _logits(call: Call, inputs: TileInputs, tile: Tile) -> Float[torch.Tensor, "flat query key"]:
    logits = inputs.product_with_keys(tile.cols)
    kept = inputs.scratch is None
    if call.softcap is not None:
        if kept:
            logits = torch.tanh(logits / call.softcap) * call.softcap
        else:
            logits = logits.div_(call.softcap).tanh_().mul_(call.softcap)
    if call.bias is not None:
        # After the soft cap and before the mask, as in the models that have both.
        bias = call.bias.expand(call.query.shape[0], call.query.shape[1], *call.bias.shape[2:])
        logits = logits + bias[:, :, tile.rows, tile.cols][tile.batch, tile.head].float()
    found = call.mask.hidden(tile.rows, tile.cols) if kept else penalty(call.mask, tile.rows, tile.cols)
    if found is None:
        return logits
    edge, block = found
    block = block if len(block) == 1 else block[tile.batch]
    if kept:
        return torch.cat([logits[:, :, :edge], logits[:, :, edge:].masked_fill(block, HIDDEN_LOGIT)], dim=-1)
    logits[:, :, edge:].add_(block)
    return logits
