"""The blockwise pass against dense float64 attention, and the laws its statistics keep."""

import math

import oracle
import pytest
import torch
from hypothesis import given, settings

from attention.calls import MASKS, PADDING, cases, make, wants
from sinkscope.attention.blockwise import attend
from sinkscope.attention.tile import Scratch
from sinkscope.attention.view import Wants

laws = settings(max_examples=60, deadline=None, derandomize=True)
BOUNDARIES = [1, 127, 128, 129, 300]


def close(found, wanted, scale=1.0, tolerance=1e-5):
    torch.testing.assert_close(found.double(), wanted.double(), rtol=tolerance, atol=tolerance * max(1.0, scale))


def check(case):
    """Output and every statistic of one call against the oracle."""
    dense = case.dense
    asked = wants(case)
    out, stats = attend(case.call, asked, case.context)
    rounding = 8e-3 if case.call.query.dtype == torch.bfloat16 else 1e-5
    close(out.transpose(1, 2), dense.output, float(dense.value.abs().max()), rounding)
    rows = dense.weights.shape[2]
    real = case.context.real[:, -rows:]
    finite = dense.logits[dense.logits.isfinite()]
    size = float(finite.abs().max()) if len(finite) else 1.0
    live = case.visible.any(-1)[:, None].expand(dense.log_sum_exp.shape)
    close(stats["key_sum"], torch.einsum("bhqk,bq->bhk", dense.weights, real.double()), rows)
    close(stats["key_viewers"], torch.einsum("bqk,bq->bk", case.visible.double(), real.double()))
    shares = torch.stack([oracle.role_share(w, r, 4) for w, r in zip(dense.weights, case.context.roles, strict=True)])
    close(stats["role_share"], shares)
    close(stats["entropy"][live], oracle.entropy(dense.weights)[live], size)
    close(stats["row_sum"], dense.weights.sum(-1))
    close(stats["log_sum_exp"][live], dense.log_sum_exp[live], size)
    keys = asked.asks["max_weight"].of["keys"]
    wanted = torch.stack([oracle.largest(w, k) for w, k in zip(dense.weights, keys, strict=True)])
    close(stats["max_weight"].clamp(min=0.0), wanted)
    close(stats["map"], dense.weights[:, list(asked.asks["map"].of["heads"])])


@laws
@given(case=cases)
def test_output_and_statistics_equal_the_oracle(case):
    check(case)


@pytest.mark.parametrize("length", BOUNDARIES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("padding", PADDING)
def test_every_mask_at_the_block_boundaries(mask, padding, length):
    check(make(length=length, mask=mask, padding=padding, seed=length))


@pytest.mark.parametrize("length", BOUNDARIES)
@pytest.mark.parametrize("kind", ["sigmoid", "relu", "softmax1"])
def test_other_normalisers(kind, length):
    case = make(length=length, normaliser=kind, padding="right")
    dense = case.dense
    out, stats = attend(case.call, wants(case), case.context)
    close(out.transpose(1, 2), dense.output, float(dense.output.abs().max()))
    close(stats["row_sum"], dense.weights.sum(-1), float(dense.weights.sum(-1).max()))
    close(stats["entropy"], oracle.entropy(dense.weights), float(oracle.entropy(dense.weights).abs().max()))
    close(stats["role_share"].sum(-1), dense.weights.sum(-1), float(dense.weights.sum(-1).max()))


@laws
@given(case=cases)
def test_key_sums_add_up_to_the_row_sums_of_real_queries(case):
    _, stats = attend(case.call, wants(case), case.context)
    real = case.context.real[:, -case.call.query.shape[2] :]
    total = torch.einsum("bhq,bq->bh", stats["row_sum"], real.float())
    close(stats["key_sum"].sum(-1), total, float(real.sum()))
    if case.call.sink_logits is None:
        seeing = (case.visible.any(-1) & real).sum(-1).float()
        close(total, seeing[:, None].expand_as(total), float(real.sum()))


@laws
@given(case=cases)
def test_role_shares_sum_to_the_row_sums_and_are_never_negative(case):
    _, stats = attend(case.call, wants(case), case.context)
    close(stats["role_share"].sum(-1), stats["row_sum"])
    assert (stats["role_share"] >= 0).all()
    assert (stats["row_sum"] <= 1 + 1e-5).all()


@laws
@given(case=cases)
def test_entropy_lies_between_nothing_and_the_log_of_the_visible_keys(case):
    _, stats = attend(case.call, wants(case), case.context)
    count = case.visible.sum(-1).clamp(min=1).float()
    # With an implicit sink the weights sum to less than 1, which may add up to log(1 + n) - log(n) at most.
    most = (count + (case.call.sink_logits is not None)).log()[:, None]
    assert (stats["entropy"] >= -1e-5).all()
    assert (stats["entropy"] <= most + 1e-4).all()


@laws
@given(case=cases)
def test_the_largest_weight_bounds_the_entropy_and_the_mass(case):
    asked = wants(case, keys=case.context.real)
    _, stats = attend(case.call, asked, case.context)
    largest = stats["max_weight"].clamp(min=0.0)
    assert (largest <= stats["row_sum"] + 1e-5).all()
    assert (largest * case.visible.sum(-1)[:, None] >= stats["row_sum"] - 1e-4).all()


@pytest.mark.parametrize("padding", ["left", "none"])
def test_a_row_that_sees_nothing_is_zero_and_never_nan(padding):
    case = make(length=20, mask="random", padding=padding, seed=3)
    dead = case.visible.clone()
    dead[:, 4] = dead[:, 9] = False
    case.call.mask.rule = lambda b, h, i, j: dead[b, i, j]
    out, stats = attend(case.call, wants(case), case.context)
    gone = ~(dead & case.context.real[:, None]).any(-1)
    assert gone[:, 4].all()
    assert (out[gone] == 0).all()
    assert torch.isfinite(out).all()
    nothing = gone[:, None].expand(stats["row_sum"].shape)
    for name in ("row_sum", "entropy"):
        assert (stats[name][nothing] == 0).all(), name
    assert (stats["role_share"][nothing] == 0).all()
    assert (stats["log_sum_exp"][nothing] < -1e29).all()
    for name in ("key_sum", "key_viewers", "row_sum", "entropy", "role_share"):
        assert torch.isfinite(stats[name]).all(), name


def test_only_what_is_asked_is_computed():
    case = make()
    out, stats = attend(case.call, Wants("entropy"), case.context)
    assert set(stats.values) == {"entropy"}
    close(out.transpose(1, 2), case.dense.output)
    assert attend(case.call, Wants(), case.context)[1].values == {}


def test_statistics_of_one_role_only_and_of_a_role_that_is_absent():
    case = make(length=9)
    case.context.roles[:] = 2
    _, stats = attend(case.call, wants(case), case.context)
    close(stats["role_share"][..., 2], stats["row_sum"])
    assert (stats["role_share"][..., [0, 1, 3]] == 0).all()


def test_a_bias_per_head_is_added_to_the_logits():
    case = make(length=10, mask="full")
    case.call.bias = torch.randn(1, 4, 10, 10, generator=torch.Generator().manual_seed(1))
    check(case)


def test_logits_far_from_zero_stay_exact():
    """Logits of several hundred, as in heads that attend to a sink: shares to 1e-5, entropy to its own rounding."""
    case = make(length=64, spread=60.0, seed=5)
    dense = case.dense
    assert dense.logits[dense.logits.isfinite()].abs().max() > 150
    _, stats = attend(case.call, wants(case), case.context)
    torch.testing.assert_close(stats["row_sum"].double(), dense.weights.sum(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stats["entropy"].double(), oracle.entropy(dense.weights), rtol=0, atol=2e-4)


def test_a_gradient_flows_through_the_pass_and_equals_that_of_dense_attention():
    case = make(length=140, batch=1, sinks=True, softcap=3.0)
    leaves = [t.requires_grad_() for t in (case.call.query, case.call.key, case.call.value, case.call.sink_logits)]
    out, stats = attend(case.call, wants(case), case.context)
    target = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    found = torch.autograd.grad((out * target).sum(), leaves)
    query, key, value, sinks = (t.detach().double().requires_grad_() for t in leaves)
    logits = query @ key.repeat_interleave(2, 1).transpose(2, 3) * case.call.scale
    logits = (3.0 * torch.tanh(logits / 3.0)).masked_fill(~case.visible[:, None], -torch.inf)
    both = torch.cat([logits, sinks[None, :, None, None].expand(1, 4, 140, 1)], -1).softmax(-1)
    dense = (both[..., :-1] @ value.repeat_interleave(2, 1)).transpose(1, 2)
    wanted = torch.autograd.grad((dense * target).sum(), (query, key, value, sinks))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)
    assert not stats["entropy"].requires_grad


def test_many_tiles_give_what_one_tile_gives(monkeypatch):
    """The number of heads computed at once is a matter of speed alone."""
    case = make(length=130, batch=2, kv_heads=2, group=2, padding="right", sinks=True)
    whole = attend(case.call, wants(case), case.context)
    monkeypatch.setattr("sinkscope.attention.blockwise.TILE", {"cpu": 130 * 128 * 3})
    tiles = attend(case.call, wants(case), case.context)
    torch.testing.assert_close(tiles[0], whole[0])
    for name in ("key_sum", "entropy", "role_share", "map"):
        torch.testing.assert_close(tiles[1][name], whole[1][name], rtol=1e-6, atol=1e-6)
    assert math.prod(tiles[1]["entropy"].shape) == 2 * 4 * 130


def test_buffers_serve_the_next_call_of_the_thread_and_never_two_at_once():
    case = make(length=20)
    attend(case.call, wants(case), case.context)
    first = Scratch.take(16, 16, torch.device("cpu"))
    second = Scratch.take(16, 16, torch.device("cpu"))
    assert first.logits.data_ptr() != second.logits.data_ptr()
    first.give_back()
    again = Scratch.take(16, 16, torch.device("cpu"))
    assert again is first
    again.give_back()


@pytest.mark.parametrize("tile", [1, 130 * 128 * 2, 130 * 128 * 5, 130 * 128 * 6])
def test_groups_are_never_cut_unevenly(monkeypatch, tile):
    """Tiles of less than a group, of whole groups, and of a prompt and a half: the same numbers."""
    case = make(length=130, batch=3, kv_heads=2, group=3, padding="left")
    whole = attend(case.call, wants(case), case.context)
    monkeypatch.setattr("sinkscope.attention.blockwise.TILE", {"cpu": tile})
    tiles = attend(case.call, wants(case), case.context)
    torch.testing.assert_close(tiles[0], whole[0])
    for name in ("key_sum", "entropy", "role_share", "map"):
        torch.testing.assert_close(tiles[1][name], whole[1][name], rtol=1e-6, atol=1e-6)
