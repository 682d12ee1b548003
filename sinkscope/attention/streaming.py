"""One blockwise pass over the queries of an attention call: the output and every statistic, exact, no map kept.

For a tile of query rows and some heads: logits, softmax, one product with [values | role columns], and reductions, while
the tile is still in the cache. Weights exist for one tile at a time. Accumulation is float32 whatever the model's dtype.
Identities (docs/decisions.md has their cost): with p the weights and t the logits, the log-sum-exp is max(t) - log
max(p), the entropy is log-sum-exp - sum(p t), and a denominator with more mass than the keys (learned sink, null key)
scales p by f = exp(lse - lse').
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int

from sinkscope.attention.bias import NEG, CallEdits, Tile
from sinkscope.attention.masks import BLOCK, MaskSpec
from sinkscope.attention.view import Context, LayerStats, Wants

TILE = {"cpu": 1 << 18, "cuda": 1 << 25}
"""Numbers per tile: what stays in a core's cache on CPU, what fills the chip elsewhere."""


@dataclass
class Call:
    """One attention call as a model makes it: keys and values un-repeated, rotary positions already applied."""

    query: Float[torch.Tensor, "batch head query dim"]
    key: Float[torch.Tensor, "batch kv_head key dim"]
    value: Float[torch.Tensor, "batch kv_head key vdim"]
    mask: MaskSpec
    scale: float
    bias: torch.Tensor | None = None
    softcap: float | None = None
    sink_logits: Float[torch.Tensor, " head"] | None = None
    extra_key: Float[torch.Tensor, "head dim"] | None = None
    normaliser: str = "softmax"


class Accumulators:
    """Where a pass writes its statistics: allocated once per call, only for what is wanted."""

    def __init__(self, call: Call, wants: Wants, context: Context) -> None:
        batch, heads, rows = call.query.shape[:3]
        keys, device = call.key.shape[2], call.query.device

        def empty(*shape: int) -> torch.Tensor:
            return torch.zeros(batch * heads, *shape, device=device)

        self.key_sum = empty(keys) if "key_mass" in wants or "contribution" in wants else None
        self.roles = _Roles.of(context, keys) if "role_share" in wants else None
        self.role_share = empty(rows, len(context.role_list)) if self.roles else None
        self.entropy = empty(rows) if "entropy" in wants else None
        self.row_sum = empty(rows) if "row_sum" in wants else None
        self.log_sum_exp = empty(rows) if "log_sum_exp" in wants else None
        self.maxima = [empty(rows) for _ in wants.maxima]
        self.masks = [_KeySet.of(mask) for mask in wants.maxima]
        self.map_heads = wants.maps
        self.maps = torch.zeros(batch, len(wants.maps), rows, keys, device=device) if wants.maps else None

    def finish(self, batch: int, stats: LayerStats) -> None:
        """Give the flat (batch head) buffers their shape back and hand them over."""
        for name in ("key_sum", "role_share", "entropy", "row_sum", "log_sum_exp"):
            flat = getattr(self, name)
            if flat is not None:
                setattr(stats, name, rearrange(flat, "(batch head) ... -> batch head ...", batch=batch))
        stats.maxima = [rearrange(flat, "(batch head) query -> batch head query", batch=batch) for flat in self.maxima]
        stats.maps = self.maps


def attend(
    call: Call, wants: Wants, context: Context, edits: CallEdits | None = None
) -> tuple[Float[torch.Tensor, "batch query head vdim"], LayerStats]:
    """Run one call blockwise and return its output (batch, query, head, dim) and its statistics.

    Only real queries count in ``key_sum``. With a gradient wanted the same tiles run out of place, so autograd keeps
    them: memory is then that of the map.
    """
    batch, heads, rows, _ = call.query.shape
    kv_heads, keys = call.key.shape[1:3]
    stats = LayerStats()
    store = Accumulators(call, wants, context)
    real = context.real
    weight = real[:, -rows:].float() if real.shape[1] >= rows else real.new_ones(batch, rows).float()
    grad = torch.is_grad_enabled() and (call.query.requires_grad or call.value.requires_grad or _edit_grad(edits))
    per_tile = max(1, TILE.get(call.query.device.type, TILE["cpu"]) // (min(BLOCK, rows) * keys))
    per_tile = min(per_tile, batch * heads)
    scratch = None if grad else _Scratch(per_tile * min(BLOCK, rows) * keys, call.query.device)
    outputs: list[torch.Tensor] = []
    for start in range(0, batch * heads, per_tile):
        flat = torch.arange(start, min(start + per_tile, batch * heads), device=call.query.device)
        where = flat // heads, flat % heads
        key, value = _operands(call, where, heads // kv_heads, edits)
        query = call.query[where].float() * call.scale
        pieces = []
        for begin in range(0, rows, BLOCK):
            span = slice(begin, min(begin + BLOCK, rows))
            pieces.append(
                _tile(call, store, _Work(query, key, value, where, span, weight, scratch, start), wants, edits)
            )
        outputs.append(torch.cat(pieces, dim=1) if len(pieces) > 1 else pieces[0])
    out = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    out = rearrange(out, "(batch head) query dim -> batch query head dim", batch=batch)
    store.finish(batch, stats)
    if store.key_sum is not None:
        stats.key_viewers = call.mask.viewers(weight.bool())
    return _gate(out, edits).to(call.query.dtype), stats


class _Scratch:
    """Two buffers that every tile of a call is computed in; fresh memory per tile would cost more than the arithmetic."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.logits = torch.empty(size, device=device)
        self.weights = torch.empty(size, device=device)

    @staticmethod
    def view(buffer: torch.Tensor, *shape: int) -> torch.Tensor:
        """The first numbers of a buffer, shaped."""
        return buffer[: math.prod(shape)].view(shape)


@dataclass
class _Work:
    query: Float[torch.Tensor, "flat query dim"]
    key: Float[torch.Tensor, "flat key dim"]
    value: Float[torch.Tensor, "flat key columns"]
    where: tuple[Int[torch.Tensor, " flat"], Int[torch.Tensor, " flat"]]
    rows: slice
    weight: Float[torch.Tensor, "batch query"]
    scratch: _Scratch | None
    start: int


def _operands(
    call: Call,
    where: tuple[Int[torch.Tensor, " flat"], Int[torch.Tensor, " flat"]],
    group: int,
    edits: CallEdits | None,
) -> tuple[Float[torch.Tensor, "flat key dim"], Float[torch.Tensor, "flat key vdim"]]:
    batch, head = where
    key = call.key[batch, head // group].float()
    value = call.value[batch, head // group].float()
    for change in edits.values if edits else ():
        chosen = change.keys[batch, head]
        change.tally.touched = change.tally.touched or int(chosen.sum())
        value = torch.where(chosen[..., None], value * change.scale, value)
    return key, value


def _tile(
    call: Call, store: Accumulators, work: _Work, wants: Wants, edits: CallEdits | None
) -> Float[torch.Tensor, "flat query vdim"]:
    """Logits, normalise, output and statistics of one tile."""
    batch, head = work.where
    tile = Tile(batch, head, work.rows, call.mask.extent(work.rows), call.mask)
    logits = _logits(call, work, tile)
    for bias in edits.biases if edits else ():
        logits = bias.apply(logits, tile)
    more_mass = _extra_mass(call, edits)
    weights, lse = _normalise(call, logits, work, edits, more_mass or "entropy" in wants or "log_sum_exp" in wants)
    factor, extra = _denominator(call, lse, work, edits) if lse is not None and more_mass else (None, None)
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
        plain = None if edited or more_mass or _swapped(call, edits) else (logits, lse)
        _reduce(store, work, tile, weights, plain, lse)
    return out


def _logits(call: Call, work: _Work, tile: Tile) -> Float[torch.Tensor, "flat query key"]:
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


def _normalise(
    call: Call, logits: Float[torch.Tensor, "flat query key"], work: _Work, edits: CallEdits | None, with_lse: bool
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
    for kind, heads in _swapped(call, edits).items():
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


def _swapped(call: Call, edits: CallEdits | None) -> dict[str, Bool[torch.Tensor, " head"]]:
    """Heads whose normaliser works on each weight alone."""
    return {kind: heads for kind, heads in _kinds(call, edits).items() if kind in ("sigmoid", "relu")}


def elementwise(kind: str, logits: Float[torch.Tensor, "flat query key"]) -> Float[torch.Tensor, "flat query key"]:
    """Attention without softmax: sigmoid(t), or relu(t) / number of visible keys (Guo et al. 2024; Gu et al. 2025)."""
    hidden = logits <= NEG / 2
    if kind == "sigmoid":
        return torch.sigmoid(logits).masked_fill(hidden, 0.0)
    count = (~hidden).sum(-1, keepdim=True).clamp(min=1)
    return torch.relu(logits).masked_fill(hidden, 0.0) / count


def _extra_mass(call: Call, edits: CallEdits | None) -> bool:
    """True where the denominator holds more than the keys."""
    added = edits is not None and (edits.null_logits is not None or bool(edits.extra_keys))
    return added or "softmax1" in _kinds(call, edits) or call.sink_logits is not None or call.extra_key is not None


def _denominator(
    call: Call, lse: Float[torch.Tensor, "flat query"], work: _Work, edits: CallEdits | None
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
    alone = [heads[head][:, None] for heads in _swapped(call, edits).values()]
    extra = None
    for each, logit in zip(extras, logits, strict=True):
        share = (logit - total).exp()
        for swapped in alone:
            share = share.masked_fill(swapped, 0.0)
        part = share[..., None] * each.value.float()[head][:, None]
        extra = part if extra is None else extra + part
    factor = (lse - total).exp()
    for swapped in alone:
        factor = factor.masked_fill(swapped, 1.0)
    return factor, extra


def _reduce(
    store: Accumulators,
    work: _Work,
    tile: Tile,
    weights: Float[torch.Tensor, "flat query key"],
    plain: tuple[torch.Tensor, torch.Tensor | None] | None,
    lse: Float[torch.Tensor, "flat query"] | None,
) -> None:
    """Fold one tile into the accumulators. ``plain`` holds logits and log-sum-exp where rows are an unedited softmax."""
    weights = weights.detach()
    span = slice(work.start, work.start + len(work.where[0]))
    rows, cols = tile.rows, tile.cols
    if store.key_sum is not None:
        counted = work.weight[tile.batch][:, None, rows]
        store.key_sum[span, cols] += torch.bmm(counted, weights)[:, 0]
    if store.row_sum is not None:
        store.row_sum[span, rows] = weights.sum(-1)
    if store.role_share is not None and store.roles is not None:
        dead = tile.mask.dead_rows()
        total = None if dead is None else (~dead[tile.batch, rows]).float()
        total = total if plain is not None else weights.sum(-1)
        store.role_share[span, rows] = store.roles.shares(weights, total, tile)
    if store.log_sum_exp is not None and lse is not None:
        store.log_sum_exp[span, rows] = lse.detach()
    for target, mask in zip(store.maxima, store.masks, strict=True):
        target[span, rows] = _largest(weights, mask, tile)
    if store.maps is not None:
        for i, head in enumerate(store.map_heads):
            chosen = tile.head == head
            if bool(chosen.any()):
                store.maps[tile.batch[chosen], i, rows, cols] = weights[chosen]
    if store.entropy is None:
        return
    if plain is None or plain[1] is None:
        store.entropy[span, rows] = torch.special.entr(weights).sum(-1)
        return
    # Last use of this tile's logits: their buffer takes the products.
    logits = plain[0].detach()
    products = torch.mul(weights, logits, out=logits) if work.scratch is not None else weights * logits
    # Rounding may not leave an entropy below zero; a row that sees no key has none.
    store.entropy[span, rows] = (plain[1].detach() - products.sum(-1)).clamp(min=0.0)


@dataclass
class _Roles:
    """Role membership of the keys, laid out so that few columns are summed.

    All roles but the most frequent one are summed over their own columns; the most frequent gets the rest of the row,
    which for a softmax is 1 minus the others. Summing every column by a product would cost a sixth of the pass.
    """

    cols: Int[torch.Tensor, " minor"]
    one_hot: Float[torch.Tensor, "batch minor role"]
    major: int

    @staticmethod
    def of(context: Context, keys: int) -> _Roles:
        """Find the most frequent role of the batch and the columns of all others."""
        one_hot = context.one_hot()[:, -keys:]
        major = int(one_hot.sum((0, 1)).argmax())
        one_hot[..., major] = 0.0
        cols = one_hot.any(-1).any(0).nonzero()[:, 0]
        return _Roles(cols, one_hot[:, cols], major)

    def shares(
        self, weights: Float[torch.Tensor, "flat query key"], total: torch.Tensor | None, tile: Tile
    ) -> Float[torch.Tensor, "flat query role"]:
        """Shares of one tile; ``total`` is the row sum where it is not 1."""
        inside = (self.cols >= tile.cols.start) & (self.cols < tile.cols.stop)
        cols = self.cols[inside] - tile.cols.start
        shares = torch.bmm(weights.index_select(2, cols), self.one_hot[tile.batch][:, inside])
        rest = (1.0 if total is None else total) - shares.sum(-1)
        shares[..., self.major] = rest.clamp(min=0.0)
        return shares


@dataclass
class _KeySet:
    """Keys whose largest weight is wanted: their mask, and the run of columns that holds them all."""

    mask: Bool[torch.Tensor, "batch key"]
    first: int
    stop: int
    whole: bool

    @staticmethod
    def of(mask: Bool[torch.Tensor, "batch key"]) -> _KeySet:
        """Find the run of columns once per call."""
        union = mask.any(0).nonzero()[:, 0]
        if len(union) == 0:
            return _KeySet(mask, 0, 0, True)
        first, stop = int(union[0]), int(union[-1]) + 1
        return _KeySet(mask, first, stop, bool(mask[:, first:stop].all()))


def _largest(
    weights: Float[torch.Tensor, "flat query key"], keys: _KeySet, tile: Tile
) -> Float[torch.Tensor, "flat query"]:
    """Largest weight on the wanted keys; minus infinity where a row's tile holds none of them."""
    first, stop = max(keys.first, tile.cols.start), min(keys.stop, tile.cols.stop)
    if first >= stop:
        return weights.new_full(weights.shape[:2], -math.inf)
    part = weights[:, :, first - tile.cols.start : stop - tile.cols.start]
    if not keys.whole:
        part = part.masked_fill(~keys.mask[tile.batch][:, None, first:stop], -math.inf)
    return part.amax(-1)


def _edit_grad(edits: CallEdits | None) -> bool:
    return edits is not None and any(bias.value.requires_grad for bias in edits.biases)


def _gate(
    out: Float[torch.Tensor, "batch query head vdim"], edits: CallEdits | None
) -> Float[torch.Tensor, "batch query head vdim"]:
    for gate in edits.gates if edits else ():
        out = gate(out)
    return out
