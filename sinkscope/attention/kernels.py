"""Triton kernels of the GPU path: tiles of a call, walked in the registers of one program each.

Three kernels share one function for the logits of a tile: ``forward`` (output and log-sum-exp, where the library has no
kernel that returns it), ``rows`` (statistics of each query, by a walk over its keys) and ``columns`` (sums over queries
for each key, by a walk over the queries that see it). Sums are float32 whatever the dtype, no number is added by two
programs, and no tile leaves the chip. :mod:`sinkscope.attention.gpu` launches them. The same source runs in Triton's
interpreter on a CPU (``TRITON_INTERPRET=1``), which is how the tests hold it against dense attention in float64.

What a query sees is a run of keys, ``first <= key < stop``, minus padding: :mod:`sinkscope.attention.spans`. What edits
do to scores and weights is added to the logits: :mod:`sinkscope.attention.logit_terms`.
"""

# Called outside a kernel these functions raise, so a type checker takes every call for one that never returns.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

HIDDEN = tl.constexpr(-1e30)
"""Logit of a hidden key, as :data:`sinkscope.attention.masks.HIDDEN_LOGIT`."""


@triton.jit
def _load(base, rows, count, stride, columns, WIDTH: tl.constexpr):
    """Load (rows, columns) of a matrix with ``count`` rows of WIDTH numbers; zeros outside."""
    inside = (rows[:, None] < count) & (columns[None, :] < WIDTH)
    return tl.load(base + rows.to(tl.int64)[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _program(heads):
    """Return which block of which head this program has: its block, place on (batch head), batch and head."""
    flat = tl.program_id(1).to(tl.int64)
    return tl.program_id(0), flat, flat // heads, flat % heads


@triton.jit
def _queries(query, first_of, stop_of, batch, row, dim, queries, q_row, DIM: tl.constexpr):
    """Load queries of one head, and the run of keys that each sees: which are there, vectors, first, stop."""
    live = row < queries
    first = tl.load(first_of + batch * queries + row, mask=live, other=0)
    stop = tl.load(stop_of + batch * queries + row, mask=live, other=0)
    return live, _load(query, row, queries, q_row, dim, DIM), first, stop


@triton.jit
def _changed(t, visible, step, acts, own, flat, row, column, queries, keys, FROM: tl.constexpr, TO: tl.constexpr):
    """Add terms FROM to TO of the edits to the logits of one tile; a key that one of them hides is not seen."""
    for term in tl.static_range(FROM, TO):
        place = term * tl.num_programs(1) + flat
        number = tl.load(step + place * keys + column, mask=column < keys, other=0.0)
        act = tl.load(acts + place * queries + row, mask=row < queries, other=0.0)
        mine = column[None, :] == row[:, None] + tl.load(own + term)
        t += tl.where(mine, 0.0, act[:, None] * number[None, :])
    visible = visible & (t > 0.5 * HIDDEN)
    return tl.where(visible, t, HIDDEN), visible


@triton.jit
def _logits(q, k, first, stop, keys, seen, scale, cap, CAPPED: tl.constexpr, PADDED: tl.constexpr):
    """Scaled, capped and masked logits of one tile, and which of them are seen."""
    # Products of float32 in full precision: tensor cores would round them to ten bits.
    t = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if CAPPED:
        t = (2.0 * tl.sigmoid(2.0 * t / cap) - 1.0) * cap  # tanh, of which Triton has none
    visible = (keys[None, :] >= first[:, None]) & (keys[None, :] < stop[:, None])
    if PADDED:
        visible = visible & (seen[None, :] > 0)
    return tl.where(visible, t, HIDDEN), visible


@triton.jit
def _product(weights, other, SPLIT: tl.constexpr):
    """Product of float32 weights with zeros and ones, in two parts of bfloat16 where the model is of half precision."""
    if SPLIT:
        high = weights.to(tl.bfloat16, fp_downcast_rounding="rtne")
        low = (weights - high.to(tl.float32)).to(tl.bfloat16, fp_downcast_rounding="rtne")
        other = other.to(tl.bfloat16)
        found = tl.dot(high, other) + tl.dot(low, other)
    else:
        found = tl.dot(weights, other, input_precision="ieee")
    return found


@triton.jit
def forward(
    query, key, value, out, lse, first_of, stop_of, block_first, block_stop, real, step, acts, own,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    scale, cap, heads, group, queries, keys, v_group,
    DIM: tl.constexpr, DIM2: tl.constexpr, VDIM: tl.constexpr, VDIM2: tl.constexpr,
    TERMS: tl.constexpr, BEFORE: tl.constexpr,
    CAPPED: tl.constexpr, PADDED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
) -> None:  # fmt: skip
    """Write output (batch, query, head, vdim) and log-sum-exp (batch, head, query) of BM queries of one head."""
    block, flat, batch, head = _program(heads)
    row = block * BM + tl.arange(0, BM)
    dim, vdim = tl.arange(0, DIM2), tl.arange(0, VDIM2)
    query += batch * q_batch + head * q_head
    live, q, first, stop = _queries(query, first_of, stop_of, batch, row, dim, queries, q_row, DIM)
    most = tl.full([BM], HIDDEN, tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, VDIM2], tl.float32)
    for start in range(tl.load(block_first + block) // BN * BN, tl.load(block_stop + block), BN):
        column = start + tl.arange(0, BN)
        k = _load(key + batch * k_batch + (head // group) * k_head, column, keys, k_row, dim, DIM)
        v = _load(value + batch * v_batch + (head // v_group) * v_head, column, keys, v_row, vdim, VDIM)
        seen = tl.load(real + batch * keys + column, mask=column < keys, other=0) if PADDED else column
        t, visible = _logits(q, k, first, stop, column, seen, scale, cap, CAPPED, PADDED)
        if BEFORE:
            t, visible = _changed(t, visible, step, acts, own, flat, row, column, queries, keys, 0, BEFORE)
        new = tl.maximum(most, tl.max(t, 1))
        e = tl.where(visible, tl.exp(t - new[:, None]), 0.0)
        old = tl.exp(most - new)
        total = total * old + tl.sum(e, 1)
        if TERMS > BEFORE:  # what is done to weights is no part of the denominator
            t, visible = _changed(t, visible, step, acts, own, flat, row, column, queries, keys, BEFORE, TERMS)
            e = tl.where(visible, tl.exp(t - new[:, None]), 0.0)
        acc = acc * old[:, None] + tl.dot(e.to(v.dtype), v, input_precision="ieee")
        most = new
    sees = total > 0
    acc = tl.where(sees[:, None], acc / tl.where(sees, total, 1.0)[:, None], 0.0)
    place = (batch * queries + row.to(tl.int64)) * heads + head
    inside = live[:, None] & (vdim[None, :] < VDIM)
    tl.store(out + place[:, None] * VDIM + vdim[None, :], acc.to(out.dtype.element_ty), mask=inside)
    tl.store(lse + flat * queries + row, tl.where(sees, most + tl.log(tl.where(sees, total, 1.0)), HIDDEN), mask=live)


@triton.jit
def rows(
    query, key, total, one_hot, chosen, numbers, column_of, shares,
    first_of, stop_of, block_first, block_stop, real, step, acts, own,
    q_batch, q_head, q_row, k_batch, k_head, k_row,
    scale, cap, heads, group, queries, keys, one_hot_batch, size,
    DIM: tl.constexpr, DIM2: tl.constexpr, ROLES: tl.constexpr, ROLES2: tl.constexpr,
    CHOSEN: tl.constexpr, TOP: tl.constexpr, SPLIT: tl.constexpr,
    TERMS: tl.constexpr, BEFORE: tl.constexpr,
    CAPPED: tl.constexpr, PADDED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
) -> None:  # fmt: skip
    """Write the statistics of BM queries of one head, from the logarithm ``total`` of each row's denominator.

    ``numbers`` (4, batch head query) takes row sum, entropy, largest logit and largest weight on the ``chosen`` keys;
    ``column_of`` the key of the largest weight, ``shares`` (batch head query, role) the weight on each role.
    """
    block, flat, batch, head = _program(heads)
    row = block * BM + tl.arange(0, BM)
    dim, role = tl.arange(0, DIM2), tl.arange(0, ROLES2)
    query += batch * q_batch + head * q_head
    live, q, first, stop = _queries(query, first_of, stop_of, batch, row, dim, queries, q_row, DIM)
    log_total = tl.load(total + flat * queries + row, mask=live, other=0.0)
    row_sum, entropy = tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32)
    most, most_chosen = tl.full([BM], HIDDEN, tl.float32), tl.full([BM], -float("inf"), tl.float32)
    best = tl.full([BM], -1, tl.int32)
    share = tl.zeros([BM, ROLES2], tl.float32)
    for start in range(tl.load(block_first + block) // BN * BN, tl.load(block_stop + block), BN):
        column = start + tl.arange(0, BN)
        k = _load(key + batch * k_batch + (head // group) * k_head, column, keys, k_row, dim, DIM)
        seen = tl.load(real + batch * keys + column, mask=column < keys, other=0) if PADDED else column
        t, visible = _logits(q, k, first, stop, column, seen, scale, cap, CAPPED, PADDED)
        if TERMS:
            t, visible = _changed(t, visible, step, acts, own, flat, row, column, queries, keys, 0, TERMS)
        below = log_total[:, None] - t  # -log of the weight: terms of the entropy have one sign, nothing cancels
        p = tl.where(visible, tl.exp(-below), 0.0)
        row_sum += tl.sum(p, 1)
        entropy += tl.sum(p * below, 1)
        if TOP:
            highest, where = tl.max(t, 1, return_indices=True)
            best = tl.where(highest > most, start + where, best)
        else:
            highest = tl.max(t, 1)
        most = tl.maximum(most, highest)
        if CHOSEN:
            mine = tl.load(chosen + batch * keys + column, mask=column < keys, other=0)
            weight = tl.where(visible & (mine[None, :] > 0), p, -float("inf"))
            most_chosen = tl.maximum(most_chosen, tl.max(weight, 1))
        if ROLES:
            member = _load(one_hot + batch * one_hot_batch, column, keys, ROLES, role, ROLES)
            share += _product(p, member, SPLIT)
    place = flat * queries + row
    tl.store(numbers + place, row_sum, mask=live)
    tl.store(numbers + size + place, entropy, mask=live)
    tl.store(numbers + 2 * size + place, most, mask=live)
    if CHOSEN:
        tl.store(numbers + 3 * size + place, most_chosen, mask=live)
    if TOP:
        tl.store(column_of + place, best, mask=live)
    if ROLES:
        inside = live[:, None] & (role[None, :] < ROLES)
        tl.store(shares + place[:, None] * ROLES + role[None, :], share, mask=inside)


@triton.jit
def columns(
    query, key, total, counted, sums, first_of, stop_of, block_first, block_stop, real, step, acts, own,
    q_batch, q_head, q_row, k_batch, k_head, k_row,
    scale, cap, heads, group, queries, keys, counted_batch,
    DIM: tl.constexpr, DIM2: tl.constexpr, TERMS: tl.constexpr, BEFORE: tl.constexpr,
    CAPPED: tl.constexpr, PADDED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
) -> None:  # fmt: skip
    """Write for BN keys of one head the sum of their weights over the ``counted`` queries, (batch, head, key)."""
    block, flat, batch, head = _program(heads)
    column = block * BN + tl.arange(0, BN)
    dim = tl.arange(0, DIM2)
    query += batch * q_batch + head * q_head
    k = _load(key + batch * k_batch + (head // group) * k_head, column, keys, k_row, dim, DIM)
    seen = tl.load(real + batch * keys + column, mask=column < keys, other=0) if PADDED else column
    acc = tl.zeros([BN], tl.float32)
    for start in range(tl.load(block_first + block), tl.load(block_stop + block), BM):
        row = start + tl.arange(0, BM)
        live, q, first, stop = _queries(query, first_of, stop_of, batch, row, dim, queries, q_row, DIM)
        log_total = tl.load(total + flat * queries + row, mask=live, other=0.0)
        count = tl.load(counted + batch * counted_batch + row, mask=live, other=0.0)
        t, visible = _logits(q, k, first, stop, column, seen, scale, cap, CAPPED, PADDED)
        if TERMS:
            t, visible = _changed(t, visible, step, acts, own, flat, row, column, queries, keys, 0, TERMS)
        p = tl.where(visible, tl.exp(t - log_total[:, None]), 0.0)
        acc += tl.sum(p * count[:, None], 0)
    tl.store(sums + flat * keys + column, acc, mask=column < keys)
