"""Edits on the GPU path, in Triton's interpreter, against dense attention in float64 that is edited by definition."""

import copy
import math

import numpy as np
import oracle
import pytest
import torch

import sinkscope as sk
from attention.test_gpu import (
    CALLS,
    SMALL,
    _products_of_bfloat16,  # noqa: F401 - a fixture
    close,
    everything,
    make,
)
from sinkscope import testing
from sinkscope.attention import blockwise, gpu, logit_terms
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.primitives import DropWeights, ExtraKey, LogBias, ValueScale
from sinkscope.attention.view import Wants

pytest.importorskip("triton")


def keys_of(case, *places, heads=None):
    """A set of keys, of some heads."""
    chosen = torch.zeros(len(case.call.query), case.call.query.shape[1], case.call.key.shape[2], dtype=torch.bool)
    chosen[:, slice(None) if heads is None else heads, list(places)] = True
    return chosen


def every_third(case):
    rows = torch.zeros(len(case.call.query), case.call.query.shape[2], dtype=torch.bool)
    rows[:, ::3] = True
    return rows


def bias(case, number, *places, heads=None, **options):
    value = torch.full((case.call.query.shape[1],), 0.0 if options.get("hide") else number)
    return LogBias(keys=keys_of(case, *places, heads=heads), value=value, **options)


def drop(case, factor, *places, heads=None, **options):
    return DropWeights(keys=keys_of(case, *places, heads=heads), factor=factor, **options)


def diagonal(case):
    """The key column of the first query."""
    return case.call.mask.q_offset


EDITS = {
    "raised keys": lambda c: CallEdits(biases=[bias(c, math.log(3.0), 0, 5)]),
    "lowered keys of one head in some rows": lambda c: CallEdits(
        biases=[bias(c, math.log(0.1), 0, 2, 7, heads=[1], queries=every_third(c))]
    ),
    "hidden keys, which leave rows empty": lambda c: CallEdits(biases=[bias(c, 0, 0, 1, 2, 9, hide=True)]),
    "hidden keys but each row's own": lambda c: CallEdits(
        biases=[bias(c, 0, 0, 1, 2, 9, hide=True, keep_self=True, diagonal=diagonal(c))]
    ),
    "a bias and hidden keys": lambda c: CallEdits(
        biases=[bias(c, 1.5, 0, 3), bias(c, 0, 3, 4, hide=True, queries=every_third(c)), bias(c, -2.0, 4, 6)]
    ),
    "dropped weights": lambda c: CallEdits(weights=[drop(c, 0.0, 0, 4)]),
    "weights of some rows, halved and doubled": lambda c: CallEdits(
        weights=[drop(c, 0.5, 0, 4, heads=[0]), drop(c, 2.0, 4, 5, queries=every_third(c))]
    ),
    "dropped weights but each row's own": lambda c: CallEdits(
        weights=[drop(c, 0.0, *range(8), keep_self=True, diagonal=diagonal(c))]
    ),
    "a bias, then dropped weights": lambda c: CallEdits(biases=[bias(c, 2.0, 0, 1)], weights=[drop(c, 0.0, 1, 2)]),
    "values of keys, gone": lambda c: CallEdits(values=[ValueScale(keys_of(c, 0, 3))]),
    "values of one head of a group": lambda c: CallEdits(values=[ValueScale(keys_of(c, 0, 3, heads=[0]), 0.25)]),
    "a gate": lambda c: CallEdits(gates=[lambda out: out * torch.linspace(0, 1, out.shape[2])[:, None]]),
    "a null key": lambda c: CallEdits(null_logits=torch.linspace(-1, 2, c.call.query.shape[1])),
    "softmax off by one in a head": lambda c: CallEdits(
        normalisers={"softmax1": torch.arange(c.call.query.shape[1]) == 1}
    ),
    "an extra key": lambda c: CallEdits(extra_keys=[extra(c)]),
    "all of them": lambda c: CallEdits(
        biases=[bias(c, 1.0, 0, 3), bias(c, 0, 0, 4, hide=True)], weights=[drop(c, 0.0, 5, heads=[1])],
        values=[ValueScale(keys_of(c, 2, heads=[0]))], null_logits=torch.zeros(c.call.query.shape[1]),
        extra_keys=[extra(c)], gates=[lambda out: 0.5 * out],
    ),
}  # fmt: skip


def extra(case):
    heads, draw = case.call.query.shape[1], torch.Generator().manual_seed(1)
    key, value = (torch.randn(heads, case.call.query.shape[-1], generator=draw) for _ in range(2))
    return ExtraKey(key, value, torch.arange(heads) != 1)


def chosen(case, target):
    """Which pairs of (head, query, key) a target means."""
    found = target.keys[:, :, None].expand(-1, -1, case.call.query.shape[2], -1)
    if target.queries is not None:
        found = found & target.queries[:, None, :, None]
    if target.keep_self:
        rows = torch.arange(found.shape[2])[:, None] + target.diagonal
        found = found & (torch.arange(found.shape[3]) != rows)
    return found


def by_definition(case, edits):
    """Logits, log-sum-exp, weights and output of the edited call in float64; shares no code with the package."""
    call, dense = case.call, case.dense
    logits = dense.logits.clone()
    for each in edits.biases:
        if each.hide:
            hidden = logits.masked_fill(chosen(case, each), -torch.inf)
            left_empty = (hidden.amax(-1) == -torch.inf)[..., None]
            logits = torch.where(left_empty, logits, hidden)
        else:
            logits = logits + each.value.double()[:, None, None] * chosen(case, each)
    lse = total = torch.logsumexp(logits, -1)
    others = [] if call.sink_logits is None else [call.sink_logits[:, None]]
    others += [] if edits.null_logits is None else [edits.null_logits[:, None]]
    others += [torch.where(heads, 0.0, -torch.inf)[:, None] for heads in edits.normalisers.values()]
    extras = [
        torch.einsum("bhqd,hd->bhq", call.query.double(), each.key.double() * call.scale).masked_fill(
            ~each.heads[:, None], -torch.inf
        )
        for each in edits.extra_keys
    ]
    for other in [*others, *extras]:
        total = torch.logaddexp(total, other.double().expand_as(total))
    weights = (logits - total[..., None]).exp().nan_to_num(0.0)
    for each in edits.weights:
        weights = torch.where(chosen(case, each), weights * each.factor, weights)
    value = dense.value.repeat_interleave(weights.shape[1] // dense.value.shape[1], 1)
    for each in edits.values:
        value = torch.where(each.keys[..., None], value * each.scale, value)
    out = weights @ value
    for each, logit in zip(edits.extra_keys, extras, strict=True):
        out = out + (logit - total).exp().nan_to_num(0.0)[..., None] * each.value.double()[:, None]
    out = out.transpose(1, 2)
    for gate in edits.gates:
        out = gate(out)
    return logits, lse, weights, out


def check(case, edits):
    call, asked = case.call, everything(case)
    logits, lse, weights, wanted = by_definition(case, edits)
    again = copy.deepcopy(edits)
    assert gpu.knows(call, asked, case.context, edits)
    with torch.no_grad():
        out, stats = gpu.attend(call, asked, case.context, edits, SMALL)
        blockwise.attend(call, asked, case.context, again)
    assert stats.path == "triton"
    half = call.query.dtype != torch.float32
    near = 2e-4 if half else 1e-5
    close(out, wanted, 1.6e-2 if half else 1e-5)
    rows = weights.shape[2]
    real = case.context.real[:, -rows:].double()
    close(stats["key_sum"], torch.einsum("bhqk,bq->bhk", weights, real), near)
    shares = torch.stack([oracle.role_share(w, r, 4) for w, r in zip(weights, case.context.roles, strict=True)])
    close(stats["role_share"], shares, near)
    close(stats["entropy"], oracle.entropy(weights), near)
    close(stats["row_sum"], weights.sum(-1), near)
    close(stats["value_norm"], case.dense.value.norm(dim=-1), near)
    seeing = (logits > -torch.inf).any(-1)
    close(stats["log_sum_exp"][seeing], lse[seeing], near)
    for label, ask in asked.asks.items():
        if ask.name == "max_weight":
            largest = torch.stack([oracle.largest(w, k) for w, k in zip(weights, ask.of["keys"], strict=True)])
            close(stats[label].clamp(min=0.0), largest, near)
    column = torch.where((weights > 0).any(-1), weights.argmax(-1), -1)
    assert torch.equal(stats["top_column"].long(), column)
    softmax = not (edits.weights or edits.null_logits is not None or edits.extra_keys or edits.normalisers)
    largest = logits.amax(-1) if softmax and call.sink_logits is None else torch.full_like(lse, torch.nan)
    close(stats["max_logit"][seeing], largest[seeing], near)
    for mine, other in zip([*edits.biases, *edits.weights], [*again.biases, *again.weights], strict=True):
        tallies = [(getattr(each, "target", each)).tally for each in (mine, other)]
        assert [t.spared for t in tallies] == [tallies[1].spared] * 2
        assert bool(tallies[0].touched) == bool(tallies[1].touched)


@pytest.mark.parametrize("name", EDITS)
def test_output_statistics_and_counts_under_an_edit(name):
    case = make(length=18, padding="left", seed=len(name))
    check(case, EDITS[name](case))


OTHERS = (
    "one token", "window", "one query after a cache", "window after a cache", "vectors that are no power of two",
    "learned sinks, soft cap, window, padding", "bfloat16", "full", "two kv groups",
)  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_edits_of_other_calls(name):
    case = make(**({"seed": 2, "group": 2} | CALLS[name] | {"group": 2}))
    last = case.call.key.shape[2] - 1
    edits = CallEdits(
        biases=[bias(case, 1.0, 0, last), bias(case, 0, 0, last // 2, hide=True, queries=every_third(case))],
        weights=[drop(case, 0.5, last, heads=[1])], values=[ValueScale(keys_of(case, 0, heads=[0]))],
    )  # fmt: skip
    check(case, edits)


def test_what_has_no_such_form_is_left_to_the_blockwise_pass():
    case = make(length=12)
    two = [bias(case, 0, 1, hide=True), bias(case, 0, 2, hide=True)]
    for edits in (
        CallEdits(biases=two), CallEdits(weights=[lambda weights, tile: weights]), CallEdits(blockwise=True),
        CallEdits(normalisers={"sigmoid": torch.ones(2, dtype=torch.bool)}), CallEdits(weights=[drop(case, -1.0, 0)]),
        CallEdits(biases=[bias(case, 1.0, 0)] * 5),
    ):  # fmt: skip
        assert not gpu.knows(case.call, Wants("entropy"), case.context, edits)
    assert logit_terms.serves(CallEdits(biases=two[:1]))


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "available", lambda device: True)


RUNS = (
    [sk.ScaleKeys(0.3), sk.ZeroValues("first")],
    [sk.MaskKeys(keys=[2], keep_self=True), sk.DropKeys("first", layers=[1])],
)  # fmt: skip


@pytest.mark.parametrize("edits", RUNS)
def test_a_reading_says_that_the_kernels_made_it_and_equals_that_of_the_blockwise_pass(edits, request):
    model = sk.load_model(testing.tiny("llama", num_hidden_layers=2))
    prompts = sk.Prompts.from_ids([[1, 5, 9, 12, 20, 7], [1, 8, 30]], model)
    probes = [sk.KeyMass(), sk.Entropy(), sk.Contribution(), sk.TokenLoss()]
    wanted = sk.run(model, prompts, probes, edits, batch_size=2)
    request.getfixturevalue("as_on_a_gpu")
    found = sk.run(model, prompts, probes, edits, batch_size=2)
    assert (wanted.attrs["path"], found.attrs["path"]) == ("blockwise", "triton")
    for name in wanted.data_vars:
        np.testing.assert_allclose(found[name], wanted[name], atol=2e-5, rtol=2e-5, err_msg=str(name))
