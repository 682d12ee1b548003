"""What can be asked of a call, and how several calls of one module are joined."""

import pytest
import torch

from sinkscope.attention.view import Ask, Context, LayerStats, Wants, join
from sinkscope.errors import ProbeError


def test_wants_say_whether_the_weights_are_needed():
    assert not Wants().anything
    assert not Wants("value_norm", "key_norm", "log_sum_exp").weights_needed
    assert Wants("value_norm").anything
    largest = Ask("max_weight", {"keys": torch.ones(1, 3).bool()})
    for asked in (Wants("entropy"), Wants(Ask("map", {"heads": (0,)})), Wants(largest)):
        assert asked.weights_needed
        assert asked.anything
    assert "entropy" in Wants("entropy")
    assert "entropy" not in Wants()


def test_role_columns_leave_out_padding():
    context = Context(torch.tensor([[True, True, False]]), torch.tensor([[4, 3, 3]]), (3, 4))
    assert context.one_hot().tolist() == [[[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]]


def test_a_statistic_of_everything_is_asked_once_and_others_have_labels_of_their_own():
    some, others = (Ask("key_sum", {"queries": torch.eye(3)[:1].bool()}) for _ in range(2))
    wants = Wants("entropy", "key_sum", "entropy", some, others)
    assert list(wants.asks) == ["entropy", "key_sum", "key_sum#2", "key_sum#3"]
    assert wants.add(some) == "key_sum#2"
    assert wants.add("key_sum") == "key_sum"
    assert wants.names == {"entropy", "key_sum"}
    cut = wants.cut(lambda mask: mask[:, 1:])
    assert list(cut.asks) == list(wants.asks)
    assert cut.asks["key_sum#2"].of["queries"].shape == (1, 2)
    assert cut.weights_needed


def test_an_unknown_statistic_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ProbeError, match=r"statistic 'entropi': there is no such .* key_sum, .* mean 'entropy'\?"):
        Wants("entropi")


MASKS = [torch.tensor([[True, False]]), torch.tensor([[False, True]])]
WANTS = Wants(
    "key_sum", "key_viewers", "role_share", "entropy", "value_norm", "write_norm",
    *(Ask("max_weight", {"keys": mask}) for mask in MASKS), Ask("map", {"heads": (0,)}),
)  # fmt: skip


def part(rows, keys, fill):
    values = {
        "key_sum": torch.full((1, 2, keys), fill),
        "key_viewers": torch.full((1, keys), fill),
        "role_share": torch.full((1, 2, rows, 3), fill),
        "entropy": torch.full((1, 2, rows), fill),
        "value_norm": torch.full((1, 2, keys), fill),
        "max_weight": torch.full((1, 2, rows), fill),
        "max_weight#7": torch.full((1, 2, rows), -fill),
        "map": torch.full((1, 1, rows, keys), fill),
        "write_norm": torch.full((1, 2, keys, 5), fill),
    }
    return LayerStats(values, "blockwise")


def test_calls_of_one_module_are_joined_block_by_block():
    assert set(part(1, 1, 0.0).values) == set(WANTS.asks)
    joined = join([part(2, 2, 1.0), part(3, 3, 2.0)], WANTS)
    assert joined.path == "blockwise"
    assert joined["key_sum"].shape == (1, 2, 5)
    assert joined["key_viewers"].tolist() == [[1, 1, 2, 2, 2]]
    assert joined["entropy"][0, 0].tolist() == [1, 1, 2, 2, 2]
    assert joined["role_share"].shape == (1, 2, 5, 3)
    assert joined["write_norm"].shape == (1, 2, 5, 5)
    largest = [joined["max_weight"], joined["max_weight#7"]]
    assert [m[0, 0].tolist() for m in largest] == [[1, 1, 2, 2, 2], [-1, -1, -2, -2, -2]]
    wanted = torch.block_diag(torch.ones(2, 2), torch.full((3, 3), 2.0))
    assert torch.equal(joined["map"][0, 0], wanted)
    assert "row_sum" not in joined


def test_a_single_call_is_given_back_as_it_is():
    one = part(2, 2, 1.0)
    assert join([one], WANTS) is one
