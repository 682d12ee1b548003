"""From logits to weights: softmax, denominators that hold more than the keys, and normalisers without a softmax."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int

from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.masks import HIDDEN_LOGIT
from sinkscope.attention.primitives import ExtraKey
from sinkscope.attention.tile import Normaliser, Tile, TileInputs
from sinkscope.errors import UnsupportedModelError

LogitOf = Callable[[Float[torch.Tensor, "head dim"]], Float[torch.Tensor, "flat query"]]
"""Gives the logits of one further key per head."""

EPS = 1e-8
"""What is added to the sum of a row that is divided by it."""


def normalise(
    call: Call, logits: Float[torch.Tensor, "flat query key"], inputs: TileInputs, tile: Tile,
    edits: CallEdits | None, with_lse: bool,
) -> tuple[Float[torch.Tensor, "flat query key"], Float[torch.Tensor, "flat query"] | None]:  # fmt: skip
    """Return the weights and, where asked for, the log-sum-exp of the keys."""
    # PyTorch's fused softmax reads a tile once; max, subtract, exp and sum by hand read it four times.
    if inputs.scratch is None or logits.requires_grad:
        weights = torch.softmax(logits, dim=-1)
    else:
        weights = torch.softmax(logits, dim=-1, out=inputs.scratch.view(inputs.scratch.weights, *logits.shape))
    lse = None
    if with_lse:
        # The largest weight is exp(max t - lse), so the log-sum-exp follows without a second exponential of the tile.
        # Exact because that weight is at least 1 / number of keys: its logarithm never loses digits to underflow.
        lse = logits.amax(-1) - weights.amax(-1).log()
    if call.mask.dead_rows() is not None:
        # Softmax of equal hidden logits is uniform; a row that sees no key (left padding) has no weights at all.
        weights = weights.masked_fill((logits.amax(-1) <= HIDDEN_LOGIT / 2)[..., None], 0.0)
    for kind, heads in heads_without_softmax(call, edits).items():
        weights = torch.where(heads[tile.head][:, None, None], row_weights(kind, logits, tile), weights)
    return weights, lse


def _kinds(call: Call, edits: CallEdits | None) -> dict[Normaliser, Bool[torch.Tensor, " head"]]:
    """Heads under each normaliser that is not the softmax: the model's own, unless an edit swaps it."""
    kinds = edits.normalisers if edits else {}
    if call.normaliser == "softmax":
        return kinds
    left = torch.ones(call.query.shape[1], dtype=torch.bool, device=call.query.device)
    for heads in kinds.values():
        left = left & ~heads
    return {**kinds, call.normaliser: left | kinds[call.normaliser] if call.normaliser in kinds else left}


def heads_without_softmax(call: Call, edits: CallEdits | None) -> dict[Normaliser, Bool[torch.Tensor, " head"]]:
    """Return the heads whose normaliser is no softmax, by it: learned sinks and null keys play no part in them."""
    return {kind: heads for kind, heads in _kinds(call, edits).items() if kind not in ("softmax", "softmax1")}


def row_weights(
    kind: Normaliser, logits: Float[torch.Tensor, "flat query key"], tile: Tile
) -> Float[torch.Tensor, "flat query key"]:
    """Return attention without softmax: sigmoid(t), relu(t) / number of visible keys, or a function of the row.

    Sources: Guo et al. 2024; Gu et al. 2025.

    Raises:
        UnsupportedModelError: a name that is none of them.
    """
    hidden = logits <= HIDDEN_LOGIT / 2
    if callable(kind):
        return kind(logits, tile).masked_fill(hidden, 0.0)
    if kind == "sigmoid":
        return torch.sigmoid(logits).masked_fill(hidden, 0.0)
    if kind == "sigmoid_normalised":
        return over_sum(torch.sigmoid(logits), ~hidden)
    if kind != "relu":
        raise UnsupportedModelError(
            f"normaliser {kind!r}: unknown. Set config.sinkscope_normaliser to softmax, softmax1, sigmoid, "
            "sigmoid_normalised or relu."
        )
    count = (~hidden).sum(-1, keepdim=True).clamp(min=1)
    return torch.relu(logits).masked_fill(hidden, 0.0) / count


def over_sum(
    scores: Float[torch.Tensor, "flat query key"], seen: Bool[torch.Tensor, "flat query key"]
) -> Float[torch.Tensor, "flat query key"]:
    """Return the scores of the keys a query sees over their sum + 1e-8 (Gu et al. 2025)."""
    scores = scores * seen
    return scores / (scores.sum(-1, keepdim=True) + EPS)


def has_mass_off_keys(call: Call, edits: CallEdits | None) -> bool:
    """Return whether the denominator holds more than the keys, so that a row of weights sums to less than 1."""
    added = edits is not None and (edits.null_logits is not None or bool(edits.extra_keys))
    return added or "softmax1" in _kinds(call, edits) or call.sink_logits is not None or call.extra_key is not None


def denominator(
    call: Call, lse: Float[torch.Tensor, "flat query"], head: Int[torch.Tensor, " flat"], logit_of: LogitOf,
    edits: CallEdits | None,
) -> tuple[Float[torch.Tensor, "flat query"], Float[torch.Tensor, "flat query vdim"] | None]:  # fmt: skip
    """Return the logarithm of each row's whole denominator, and what the extra keys put out.

    Every implicit sink is one more term of the denominator, so it never needs a column of its own: the softmax over the
    keys is computed as ever and scaled by exp(lse - total). Working on logarithms keeps it exact when a sink takes all.
    """
    total = lse
    if call.sink_logits is not None:
        total = torch.logaddexp(total, call.sink_logits.float()[head][:, None])
    kinds = _kinds(call, edits)
    if "softmax1" in kinds:
        # Softmax-off-by-one adds 1 to the denominator: a term with logit 0.
        plus_one = torch.logaddexp(total, torch.zeros_like(total))
        total = torch.where(kinds["softmax1"][head][:, None], plus_one, total)
    if edits is not None and edits.null_logits is not None:
        total = torch.logaddexp(total, edits.null_logits[head][:, None].expand_as(total))
    extras = list(edits.extra_keys) if edits else []
    if call.extra_key is not None and call.extra_value is not None:
        own = torch.ones(len(call.extra_key), dtype=torch.bool, device=lse.device)
        extras.insert(0, ExtraKey(call.extra_key, call.extra_value, own))
    elif call.extra_key is not None:
        total = torch.logaddexp(total, logit_of(call.extra_key))
    logits = []
    for each in extras:
        logits.append(logit_of(each.key).masked_fill(~each.heads[head][:, None], -math.inf))
        total = torch.logaddexp(total, logits[-1])
    # Sigmoid and relu weigh each key by itself: there is no denominator for a further key to take mass from.
    alone = [heads[head][:, None] for heads in heads_without_softmax(call, edits).values()]
    extra_output = None
    for each, logit in zip(extras, logits, strict=True):
        share = (logit - total).exp()
        for bare in alone:
            share = share.masked_fill(bare, 0.0)
        part = share[..., None] * each.value.float()[head][:, None]
        extra_output = part if extra_output is None else extra_output + part
    for bare in alone:
        total = torch.where(bare, lse, total)
    return total, extra_output
