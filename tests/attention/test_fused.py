"""The fused path gives the numbers of the blockwise one, and stands back where it cannot."""

import oracle
import pytest
import torch

from attention.calls import make, wants
from sinkscope.attention import fused
from sinkscope.attention.blockwise import attend
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.fused import FEW
from sinkscope.attention.view import Ask, Wants


def cheap(case, count=3, *more):
    """Few keys' sums and the log-sum-exp."""
    return Wants(Ask("key_sum", {"keys": few(case, count)}), "key_viewers", "log_sum_exp", *more)


def fused_path(call, asked, context):
    assert fused.serves(call, asked, None)
    return fused.attend(call, asked, context)


def few(case, count=3):
    chosen = torch.zeros_like(case.context.real)
    chosen[:, :count] = True
    return chosen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("mask", ["causal", "full"])
@pytest.mark.parametrize("length", [1, 5, 128, 300])
def test_fused_equals_blockwise_and_dense(length, mask, group, dtype):
    case = make(length=length, mask=mask, group=group, dtype=dtype, seed=length)
    asked = cheap(case)
    out, stats = fused_path(case.call, asked, case.context)
    assert stats.path == "fused"
    other, plain = attend(case.call, asked, case.context)
    rounding = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(out, other, rtol=rounding, atol=rounding)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-3
    chosen = few(case)[0]
    shown, wanted = stats["key_sum"][:, :, chosen], plain["key_sum"][:, :, chosen]
    torch.testing.assert_close(shown / length, wanted / length, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(stats["key_viewers"], plain["key_viewers"])
    torch.testing.assert_close(stats["log_sum_exp"], plain["log_sum_exp"], rtol=tolerance, atol=tolerance)
    assert torch.isnan(stats["key_sum"][:, :, ~chosen]).all()
    dense = case.dense
    mass = torch.stack([oracle.key_mass(w, v) for w, v in zip(dense.weights, case.visible, strict=True)])
    found = (stats["key_sum"] / stats["key_viewers"][:, None])[:, :, chosen]
    torch.testing.assert_close(found.double(), mass[:, :, chosen], rtol=tolerance, atol=tolerance)


def test_key_sums_leave_out_rows_that_are_not_real():
    """A context can mark rows as unreal without a mask (all rows equally long, the first ones not measured)."""
    case = make(length=9)
    case.context.real[:, :4] = False
    asked = Wants(Ask("key_sum", {"keys": few(case)}), "key_viewers")
    _, stats = fused_path(case.call, asked, case.context)
    _, plain = attend(case.call, asked, case.context)
    torch.testing.assert_close(stats["key_sum"][..., :3], plain["key_sum"][..., :3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stats["key_viewers"], plain["key_viewers"])


def test_without_statistics_the_kernel_of_the_library_runs():
    case = make(length=50)
    out, stats = fused_path(case.call, Wants(), case.context)
    torch.testing.assert_close(out.transpose(1, 2).double(), case.dense.output, rtol=1e-5, atol=1e-5)
    assert stats.path == "fused"
    norms = Wants("value_norm", "key_norm")
    assert fused.serves(case.call, norms, None)


CANNOT = {
    "padding": {"padding": "right"}, "window": {"mask": "window"}, "cache": {"mask": "offset"},
    "soft cap": {"softcap": 3.0}, "learned sinks": {"sinks": True}, "sigmoid": {"normaliser": "sigmoid"},
}  # fmt: skip


@pytest.mark.parametrize("reason", CANNOT)
def test_it_stands_back_where_the_kernel_would_be_wrong(reason):
    case = make(length=20, **CANNOT[reason])
    assert not fused.serves(case.call, Wants(), None)


def test_it_stands_back_for_a_bias_for_edits_and_for_what_needs_the_weights():
    case = make(length=20)
    serves = cheap(case)
    assert fused.serves(case.call, serves, None)
    assert not fused.serves(case.call, serves, CallEdits(blockwise=True))
    for other in (
        Wants("entropy"), Wants("role_share"), Wants("key_sum", "key_viewers"),
        wants(case, names=()), Wants(Ask("map", {"heads": (0,)})), cheap(case, FEW + 1),
        cheap(case, 3, Ask("max_weight", {"keys": few(case)})),
    ):  # fmt: skip
        assert not fused.serves(case.call, other, None)
    case.call.bias = torch.zeros(1, 4, 20, 20)
    assert not fused.serves(case.call, Wants(), None)


def test_it_stands_back_where_a_gradient_is_wanted():
    """The kernel's log-sum-exp carries no gradient, so a share made of it would have a wrong one."""
    case = make(length=20)
    case.call.query.requires_grad_()
    assert not fused.serves(case.call, cheap(case), None)
    with torch.no_grad():
        assert fused.serves(case.call, cheap(case), None)
