"""What can be asked of a call, and how several calls of one module are joined."""

import torch

from sinkscope.attention.view import Context, LayerStats, Wants, join


def test_wants_say_whether_the_weights_are_needed():
    assert not Wants().anything
    assert not Wants(frozenset({"value_norm", "key_norm", "log_sum_exp"})).weights_needed
    assert Wants(frozenset({"value_norm"})).anything
    for asked in (Wants(frozenset({"entropy"})), Wants(maps=(0,)), Wants(maxima=(torch.ones(1, 3).bool(),))):
        assert asked.weights_needed
        assert asked.anything
    assert "entropy" in Wants(frozenset({"entropy"}))
    assert "entropy" not in Wants()


def test_role_columns_leave_out_padding():
    context = Context(torch.tensor([[True, True, False]]), torch.tensor([[4, 3, 3]]), (3, 4))
    assert context.one_hot().tolist() == [[[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]]


def part(rows, keys, fill):
    return LayerStats(
        key_sum=torch.full((1, 2, keys), fill),
        key_viewers=torch.full((1, keys), fill),
        role_share=torch.full((1, 2, rows, 3), fill),
        entropy=torch.full((1, 2, rows), fill),
        value_norm=torch.full((1, 2, keys), fill),
        maxima=[torch.full((1, 2, rows), fill), torch.full((1, 2, rows), -fill)],
        maps=torch.full((1, 1, rows, keys), fill),
        value=torch.full((1, 2, keys, 5), fill),
        path="blockwise",
    )


def test_calls_of_one_module_are_joined_block_by_block():
    joined = join([part(2, 2, 1.0), part(3, 3, 2.0)])
    assert joined.path == "blockwise"
    assert joined.key_sum.shape == (1, 2, 5)
    assert joined.key_viewers.tolist() == [[1, 1, 2, 2, 2]]
    assert joined.entropy[0, 0].tolist() == [1, 1, 2, 2, 2]
    assert joined.role_share.shape == (1, 2, 5, 3)
    assert joined.value.shape == (1, 2, 5, 5)
    assert [m[0, 0].tolist() for m in joined.maxima] == [[1, 1, 2, 2, 2], [-1, -1, -2, -2, -2]]
    wanted = torch.block_diag(torch.ones(2, 2), torch.full((3, 3), 2.0))
    assert torch.equal(joined.maps[0, 0], wanted)
    assert joined.row_sum is None


def test_a_single_call_is_given_back_as_it_is():
    one = part(2, 2, 1.0)
    assert join([one]) is one
