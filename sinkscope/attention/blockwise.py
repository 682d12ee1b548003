"""One blockwise pass over the queries of an attention call: the output and every statistic, exact, no map kept.

The path that serves every call, and the reference of all others. For a tile of query rows and some heads: logits,
softmax, the product with the values, and reductions, while the tile is still near the core. Weights exist for one tile
at a time, and accumulation is float32 whatever the dtype of the model. The identities are in ``attention/__init__.py``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from einops import rearrange
from jaxtyping import Float

from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.masks import BLOCK, HIDDEN_LOGIT
from sinkscope.attention.normalise import denominator, has_mass_off_keys, heads_without_softmax, normalise
from sinkscope.attention.statistic import CallFacts, Gatherer, WeightTile
from sinkscope.attention.tile import Scratch, Tile, TileInputs
from sinkscope.attention.view import Context, LayerStats, Wants

TILE = {"cpu": 1 << 20, "cuda": 1 << 25}
"""Numbers per tile: few enough to stay near a core on CPU, enough to fill the chip elsewhere."""


def attend(
    call: Call, wants: Wants, context: Context, edits: CallEdits | None = None
) -> tuple[Float[torch.Tensor, "batch query head vdim"], LayerStats]:
    """Run one call blockwise and return its output (batch, query, head, dim) and its statistics.

    With a gradient wanted the same tiles run out of place, so autograd keeps
    them: memory is then that of the map.
    """
    batch, heads, rows, _ = call.query.shape
    keys = call.key.shape[2]
    gather = Gatherer(wants.asks, CallFacts.of(call, context))
    learned = edits is not None and edits.needs_grad
    grad = torch.is_grad_enabled() and (call.query.requires_grad or call.value.requires_grad or learned)
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
                inputs = TileInputs(query, key, value, where, slice(begin, min(begin + BLOCK, rows)), scratch)
                pieces.append(_tile(call, (gather, start), inputs, wants, edits))
            outputs.append(torch.cat(pieces, dim=1) if len(pieces) > 1 else pieces[0])
            start += len(query)
        out = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        out = rearrange(out, "(batch head) query dim -> batch query head dim", batch=batch)
        for gate in edits.gates if edits else ():
            out = gate(out)
    return out.to(call.query.dtype), LayerStats(gather.finish(), "blockwise")


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
    group = call.group
    rows, heads = (torch.arange(s.start, s.stop, device=device) for s in (of_batch, of_head))
    where = rows.repeat_interleave(len(heads)), heads.repeat(len(rows))

    def of_kv(tensor: torch.Tensor) -> torch.Tensor:
        # Grouped-query heads: key-value heads are repeated for the heads of one chunk, never for the whole call.
        part = tensor[of_batch]
        part = part[:, of_head] if group == 1 else part[:, heads // group]
        return part.flatten(0, 1).float()

    # Scaling the thin query costs less than scaling a tile of logits.
    query, value = call.query[of_batch, of_head].flatten(0, 1).float() * call.scale, of_kv(call.value)
    for change in edits.values if edits else ():
        chosen = change.keys[where]
        change.count(chosen)
        value = torch.where(chosen[..., None], value * change.scale, value)
    return where, (query, of_kv(call.key), value)


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
    on_keys, extra_output = denominator(call, lse, inputs, edits) if lse is not None and off_keys else (None, None)
    edited = bool(edits and edits.weights)
    if on_keys is not None and (wants.weights_needed or edited):
        weights = weights * on_keys[..., None]
        tile.off_keys = 1 - on_keys
        on_keys = None
    for change in edits.weights if edits else ():
        weights = change(weights, tile)
    out = torch.bmm(weights, inputs.value[:, tile.cols])
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
    query, key = inputs.query[:, tile.rows], inputs.key[:, tile.cols].transpose(1, 2)
    if inputs.scratch is None:
        logits = torch.bmm(query, key)
    else:
        out = inputs.scratch.view(inputs.scratch.logits, len(query), query.shape[1], key.shape[2])
        logits = torch.bmm(query, key, out=out)
    if call.softcap is not None:
        logits = torch.tanh(logits / call.softcap) * call.softcap
    if call.bias is not None:
        # After the soft cap and before the mask, as in the models that have both.
        bias = call.bias.expand(call.query.shape[0], call.query.shape[1], *call.bias.shape[2:])
        logits = logits + bias[tile.batch, tile.head][:, tile.rows, tile.cols].float()
    hidden = call.mask.hidden(tile.rows, tile.cols)
    if hidden is None:
        return logits
    edge, block = hidden
    block = block if len(block) == 1 else block[tile.batch]
    if inputs.scratch is None:
        return torch.cat([logits[:, :, :edge], logits[:, :, edge:].masked_fill(block, HIDDEN_LOGIT)], dim=-1)
    logits[:, :, edge:].masked_fill_(block, HIDDEN_LOGIT)
    return logits
