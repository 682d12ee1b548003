from __future__ import annotations

import pytest
import torch

from sinkscope.attention import merged
from sinkscope.attention.blockwise import attend
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.primitives import DropWeights, ExtraKey, LogBias, Reweigh, Tally, ValueScale
from sinkscope.attention.view import Context, Wants
from tests.attention.test_augdim import keys, make


def both(call, make_edits, first, tolerance=1e-5):
    length = call.key.shape[2]
    context = Context(torch.ones(2, length).bool(), torch.zeros(2, length).long(), (0,))
    fast, slow = make_edits(), make_edits()
    with torch.no_grad():
        assert merged.first_keys(call, Wants(), fast) == first
        out, stats = merged.attend(call, fast, first)
        expected, _ = attend(call, Wants(), context, slow)
    torch.testing.assert_close(out.float(), expected.float(), rtol=tolerance, atol=tolerance)
    assert stats.path == "merged"
    return fast, slow


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_everything_at_once(causal, kv_heads):
    call = make(causal, kv_heads=kv_heads)
    generator = torch.Generator().manual_seed(1)
    rows = torch.rand(2, 40, generator=generator) > 0.5

    def edits():
        made = CallEdits()
        made.add_bias(LogBias(keys=keys(call, [0, 3], heads=[0, 3]), value=torch.tensor([-2.0, 0, 0, 1.5])))
        made.add_bias(LogBias(keys=keys(call, [1]), value=torch.zeros(4), hide=True, queries=rows))
        made.weights.append(DropWeights(keys=keys(call, [2], heads=[1]), keep_self=True))
        made.add_bias(LogBias(keys=keys(call, [0]), value=torch.full((4,), 0.7)))
        made.values.append(ValueScale(keys(call, [0, 20], heads=[2])))
        made.add_null(torch.tensor([0.5, -torch.inf, 1.0, 0.0]))
        made.swap("softmax1", torch.tensor([True, True, False, False]), Tally())
        draw = torch.Generator().manual_seed(2)
        made.extra_keys.append(
            ExtraKey(torch.randn(4, 12, generator=draw), torch.randn(4, 12, generator=draw), torch.arange(4) > 0)
        )
        made.gates.append(lambda out: out * 0.5)
        return made

    fast, slow = both(call, edits, first=4)
    for one, other in zip(fast.biases, slow.biases, strict=True):
        assert bool(one.tally.touched) == bool(other.tally.touched)
        assert one.tally.spared == other.tally.spared


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("columns", [[0], [0, 1, 5], [7], list(range(20))])
def test_hiding_is_exact_and_spares_the_same_rows(causal, columns):
    call = make(causal, length=20)

    def edits():
        half = LogBias(keys=keys(call, columns, [1, 2]), value=torch.zeros(4), hide=True)
        return CallEdits(biases=[half, LogBias(keys=keys(call, [0, 2], [2]), value=torch.zeros(4), hide=True)])

    fast, slow = both(call, edits, first=max(2, *columns) + 1)
    assert [b.tally.spared for b in fast.biases] == [b.tally.spared for b in slow.biases]


def test_a_sink_that_takes_nearly_everything_can_still_be_hidden():
    # Subtracting the sink's part from the finished output loses all digits here.
    call = make()
    call.key[:, :, 0] = call.query[:, ::2].mean(2) * 200

    def edits():
        return CallEdits(biases=[LogBias(keys=keys(call, [0]), value=torch.zeros(4), hide=True)])

    both(call, edits, first=1, tolerance=1e-4)


def test_low_precision():
    call = make(dtype=torch.bfloat16)

    def edits():
        return CallEdits(biases=[LogBias(keys=keys(call, [0]), value=torch.full((4,), -1.2345))])

    both(call, edits, first=1, tolerance=2e-2)


def test_a_null_key_alone_keeps_no_key_apart():
    call = make()
    both(call, lambda: CallEdits(null_logits=torch.full((4,), 0.3)), first=0)


def test_small_memory_is_taken_in_parts(monkeypatch):
    call = make()
    monkeypatch.setattr(merged, "CHUNK", 200)
    both(call, lambda: CallEdits(biases=[LogBias(keys=keys(call, [1]), value=torch.ones(4))]), first=2)


@pytest.mark.parametrize("kind", ["bias", "hide", "drop", "null", "softmax1", "extra", "values", "gate", "later"])
def test_neutral_takes_the_same_path_and_changes_no_bit(kind):
    call = make()
    bias = LogBias(keys=keys(call, [0]), value=torch.ones(4), hide=kind == "hide")
    made = CallEdits(biases=[LogBias(keys=keys(call, [1]), value=torch.ones(4))])
    if kind in ("bias", "hide"):
        made.add_bias(bias)
    elif kind == "drop":
        made.weights.append(DropWeights(keys=keys(call, [0])))
    elif kind == "later":
        made.weights += [DropWeights(keys=keys(call, [2])), Reweigh(bias)]
    elif kind == "null":
        made.add_null(torch.zeros(4))
    elif kind == "softmax1":
        made.swap("softmax1", torch.ones(4).bool(), Tally())
    elif kind == "extra":
        made.extra_keys.append(ExtraKey(torch.ones(4, 12), torch.ones(4, 12), torch.ones(4).bool()))
    elif kind == "values":
        made.values.append(ValueScale(keys(call, [0])))
    else:
        made.gates.append(lambda out: -out)
    with torch.no_grad():
        first = merged.first_keys(call, Wants(), made)
        assert first is not None
        neutral = made.neutral()
        assert merged.first_keys(call, Wants(), neutral) == first
        plain = CallEdits(biases=[LogBias(keys=keys(call, list(range(first))), value=torch.zeros(4))])
        same = merged.attend(call, neutral, first)[0]
        torch.testing.assert_close(same, merged.attend(call, plain, first)[0], rtol=0, atol=1e-6)
        assert not torch.equal(merged.attend(call, made, first)[0], same)


def test_what_it_cannot_do_is_left_to_others():
    call = make()
    bias = LogBias(keys=keys(call, [0]), value=torch.zeros(4, requires_grad=True))
    far = LogBias(keys=keys(call, [39]), value=torch.zeros(4))
    with torch.no_grad():
        assert merged.first_keys(call, Wants(), CallEdits(biases=[bias])) == 1
        assert merged.first_keys(call, Wants(), CallEdits(biases=[far])) is None
        assert merged.first_keys(call, Wants(), CallEdits(weights=[lambda weights, _: weights])) is None
        assert merged.first_keys(call, Wants(), CallEdits(gates=[lambda out: out])) is None
        assert merged.first_keys(call, Wants("entropy"), CallEdits(biases=[bias])) is None
        assert merged.first_keys(call, Wants(), CallEdits(biases=[bias], blockwise=True)) is None
    assert merged.first_keys(call, Wants(), CallEdits(biases=[bias])) is None
    call.softcap = 2.0
    with torch.no_grad():
        assert merged.first_keys(call, Wants(), CallEdits(biases=[bias])) is None
