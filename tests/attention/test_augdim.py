from __future__ import annotations

import pytest
import torch

from sinkscope.attention import augdim
from sinkscope.attention.blockwise import attend
from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.masks import from_call
from sinkscope.attention.primitives import DropWeights, LogBias, Reweigh, ValueScale
from sinkscope.attention.view import Context, Wants


def make(causal=True, heads=4, kv_heads=2, length=40, dtype=torch.float32, seed=0) -> Call:
    generator = torch.Generator().manual_seed(seed)
    shape = {"query": heads, "key": kv_heads, "value": kv_heads}
    parts = {k: torch.randn(2, n, length, 12, generator=generator).to(dtype) for k, n in shape.items()}
    mask, _ = from_call(None, parts["query"], parts["key"], causal)
    return Call(**parts, mask=mask, scale=12**-0.5)


def keys(call, columns, heads=(0, 1, 2, 3)) -> torch.Tensor:
    mask = torch.zeros(call.query.shape[0], call.query.shape[1], call.key.shape[2], dtype=torch.bool)
    for head in heads:
        mask[:, head, columns] = True
    return mask


def both(call, make_edits, tolerance=1e-5):
    context = Context(torch.ones(2, call.key.shape[2]).bool(), torch.zeros(2, call.key.shape[2]).long(), (0,))
    fast, slow = make_edits(), make_edits()
    assert augdim.serves(call, Wants(), fast)
    out, stats = augdim.attend(call, fast)
    expected, _ = attend(call, Wants(), context, slow)
    torch.testing.assert_close(out.float(), expected.float(), rtol=tolerance, atol=tolerance)
    assert stats.path == "augdim"
    return fast, slow


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_biases_of_key_sets_that_differ_by_head_and_row(causal, kv_heads):
    call = make(causal, kv_heads=kv_heads)
    rows = torch.zeros(2, 40, dtype=torch.bool)
    rows[:, 10:30] = True

    def edits():
        scattered = keys(call, [0, 5], heads=[0])
        scattered[:, 3, 7] = True
        return CallEdits(
            biases=[
                LogBias(keys=scattered, value=torch.tensor([-2.0, 0.0, 0.0, 3.0])),
                LogBias(keys=keys(call, [2, 3]), value=torch.full((4,), -1.0), queries=rows),
            ]
        )

    both(call, edits)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("columns", [[0], [0, 1, 5], [3], list(range(40))])
def test_hiding_is_exact_and_spares_the_same_rows(causal, columns):
    call = make(causal)

    def edits():
        return CallEdits(biases=[LogBias(keys=keys(call, columns, [1, 2]), value=torch.zeros(4), hide=True)])

    fast, slow = both(call, edits)
    assert fast.biases[0].tally.spared == slow.biases[0].tally.spared
    assert bool(fast.biases[0].tally.touched) == bool(slow.biases[0].tally.touched)


def test_hiding_holds_under_very_large_logits():
    call = make()
    call.query *= 200

    def edits():
        return CallEdits(biases=[LogBias(keys=keys(call, [0, 7]), value=torch.zeros(4), hide=True)])

    both(call, edits, tolerance=1e-3)


def test_values_gates_and_drops_run_on_the_plain_kernel():
    call = make()

    def edits():
        return CallEdits(
            values=[ValueScale(keys(call, [0], heads=[1]))], gates=[lambda out: out * 2],
            weights=[DropWeights(keys=keys(call, [4], heads=[0, 1]))],
        )  # fmt: skip

    fast, slow = both(call, edits)
    assert fast.values[0].tally.touched == slow.values[0].tally.touched > 0
    assert fast.weights[0].tally.touched > 0


def test_low_precision_keeps_the_bias():
    call = make(dtype=torch.bfloat16)

    def edits():
        return CallEdits(biases=[LogBias(keys=keys(call, [0]), value=torch.full((4,), -1.2345))])

    both(call, edits, tolerance=2e-2)


def test_the_bias_has_a_gradient():
    call = make()
    value = torch.full((4,), 0.3, requires_grad=True)
    context = Context(torch.ones(2, 40).bool(), torch.zeros(2, 40).long(), (0,))

    def gradient(run):
        edits = CallEdits(biases=[LogBias(keys=keys(call, [0, 3]), value=value)])
        return torch.autograd.grad(run(edits).square().sum(), value)[0]

    fast = gradient(lambda edits: augdim.attend(call, edits)[0])
    slow = gradient(lambda edits: attend(call, Wants(), context, edits)[0])
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)


def test_a_neutral_call_is_the_plain_result():
    call = make()
    edits = CallEdits(biases=[LogBias(keys=keys(call, [0]), value=torch.ones(4))], gates=[lambda out: out * 0])
    neutral = edits.neutral()
    assert augdim.serves(call, Wants(), neutral)
    out, _ = augdim.attend(call, neutral)
    plain = augdim.attend(call, CallEdits())[0]
    torch.testing.assert_close(out, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"softcap": 3.0}, {"sink_logits": torch.zeros(4)}, {"bias": torch.zeros(1, 1, 40, 40)},
        {"normaliser": "sigmoid"},
    ],
)  # fmt: skip
def test_other_calls_are_left_to_the_blockwise_pass(change):
    call = make()
    for name, value in change.items():
        setattr(call, name, value)
    assert not augdim.serves(call, Wants(), CallEdits(gates=[lambda out: out]))


def test_other_edits_are_left_to_the_blockwise_pass():
    call = make()
    bias = LogBias(keys=keys(call, [0]), value=torch.zeros(4))
    hide = LogBias(keys=keys(call, [0]), value=torch.zeros(4), hide=True)
    diagonal = LogBias(keys=keys(call, [0]), value=torch.zeros(4), keep_self=True)
    for edits in (
        CallEdits(biases=[hide, hide]), CallEdits(biases=[diagonal]), CallEdits(biases=[bias] * 5),
        CallEdits(weights=[Reweigh(bias)]), CallEdits(blockwise=True),
        CallEdits(weights=[DropWeights(keys=keys(call, [0]), keep_self=True)]),
    ):  # fmt: skip
        assert not augdim.serves(call, Wants(), edits)
    assert not augdim.serves(call, Wants("entropy"), CallEdits(biases=[bias]))
