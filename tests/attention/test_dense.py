import oracle
import pytest
import torch

from sinkscope.attention.dense import reduce_map
from sinkscope.attention.view import Ask, Context, Wants

ALL = ("key_sum", "key_viewers", "role_share", "entropy", "row_sum", "value_norm", "write_norm")


@pytest.fixture
def layer():
    """Two rows of five tokens, the second padded on the left by two; 4 heads, 2 key-value heads."""
    torch.manual_seed(0)
    real = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]).bool()
    visible = oracle.causal(5) & real[:, None, :]
    query, key, value = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    roles = torch.tensor([[0, 3, 3, 5, 3], [3, 3, 0, 3, 3]])
    dense = oracle.attention(query, key, value, visible, 8**-0.5)
    return dense, Context(real, roles, (0, 3, 5)), value, visible


def test_every_statistic_is_its_definition(layer):
    dense, context, value, visible = layer
    keys = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 1, 0, 0]]).bool()
    asked = Wants(*ALL, Ask("max_weight", {"keys": keys}), Ask("map", {"heads": (1, 3)}))
    stats = reduce_map(dense.weights, asked, context, visible, vectors=(None, value))
    for row, live in enumerate(context.real):
        weights, seen = dense.weights[row], visible[row]
        mass = (stats["key_sum"] / stats["key_viewers"][:, None])[row][:, live]
        torch.testing.assert_close(mass, oracle.key_mass(weights, seen, live)[:, live].float())
        torch.testing.assert_close(stats["entropy"][row], oracle.entropy(weights).float())
        torch.testing.assert_close(stats["row_sum"][row], weights.sum(-1).float())
        shares = oracle.role_share(weights, context.roles[row], 6)[..., [0, 3, 5]]
        torch.testing.assert_close(stats["role_share"][row][:, live], shares[:, live].float())
        torch.testing.assert_close(stats["max_weight"][row], oracle.largest(weights, keys[row]).float())
    torch.testing.assert_close(stats["map"], dense.weights[:, [1, 3]].float())
    torch.testing.assert_close(stats["value_norm"], value.norm(dim=-1))
    assert stats["write_norm"] is not None
    assert stats.path == "dense"


def test_only_what_is_wanted_is_made(layer):
    dense, context, _, visible = layer
    stats = reduce_map(dense.weights, Wants("entropy"), context, visible)
    assert list(stats.values) == ["entropy"]


def test_a_row_that_sees_nothing_counts_for_nothing(layer):
    dense, context, value, visible = layer
    spread = dense.weights.clone()
    spread[1, :, :2] = 0.2  # what a library's softmax makes of a row of equal, hidden logits
    stats = reduce_map(spread, Wants(*ALL), context, visible, vectors=(None, value))
    assert float(stats["row_sum"][1, :, :2].abs().max()) == 0.0
    assert float(stats["entropy"][1, :, :2].abs().max()) == 0.0
    assert torch.isfinite(stats["role_share"]).all()


def test_without_a_mask_every_real_query_sees_every_key(layer):
    dense, context, _, _ = layer
    stats = reduce_map(dense.weights, Wants("key_sum", "key_viewers"), context)
    assert stats["key_viewers"].tolist() == [[5.0] * 5, [3.0] * 5]


def test_halves_are_summed_in_float32(layer):
    dense, context, value, visible = layer
    stats = reduce_map(dense.weights.bfloat16(), Wants(*ALL), context, visible, vectors=(None, value))
    assert stats["entropy"].dtype == stats["key_sum"].dtype == stats["role_share"].dtype == torch.float32
