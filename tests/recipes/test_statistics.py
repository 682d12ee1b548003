"""Sink statistics along training on a tiny random Llama."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from recipes.statistics import sink_statistics, summary


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, attn_implementation="sdpa", bos_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.fixture
def ids():
    out = torch.randint(1, 50, (3, 12), generator=torch.Generator().manual_seed(1))
    out[:, 0] = 0
    return out


def test_alpha_is_the_mean_of_column_zero_and_the_model_is_left_as_it_was(model, ids):
    model.train()
    stats = sink_statistics(model, ids)
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    maps = model(ids, output_attentions=True).attentions
    expected = torch.stack([m[..., 0].mean((0, 2)) for m in maps])
    torch.testing.assert_close(torch.tensor(stats["alpha"]), expected)


def test_rows_that_do_not_sum_to_one_are_divided_by_their_sum(ids):
    from transformers import LlamaConfig

    from sinkscope.models import variants

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, bos_token_id=0, eos_token_id=None, sinkscope_normaliser="sigmoid",
    )  # fmt: skip
    model = variants.build(config)
    with torch.no_grad():
        maps = model(ids, output_attentions=True).attentions
    assert float((maps[0].sum(-1) - 1).abs().max()) > 0.5
    expected = torch.stack([(m[..., 0] / m.sum(-1)).mean((0, 2)) for m in maps])
    torch.testing.assert_close(torch.tensor(sink_statistics(model, ids)["alpha"]), expected, atol=1e-5, rtol=0)


def test_value_ratio_and_massive_follow_the_weights(model, ids):
    with torch.no_grad():
        model.model.embed_tokens.weight[0] = 0
        model.model.embed_tokens.weight[0, 5] = 1e4
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight[:, 5] = 0
    stats = sink_statistics(model, ids)
    assert max(r for row in stats["value_ratio"] for r in row) < 0.05
    assert stats["massive_dim"] == [5, 5]
    assert stats["massive_value"][0] == pytest.approx(1e4, rel=1e-3)
    assert min(stats["massive"]) > 1e4
    assert min(stats["residual_ratio"]) > 1e3


def test_summary_counts_heads_over_the_threshold_and_leaves_out_the_first_layer():
    stats = {
        "loss": 1.0, "alpha": [[0.9, 0.1], [0.4, 0.2]], "value_ratio": [[1.0, 1.0], [0.2, 0.4]],
        "massive": [3.0, 7.0], "residual_ratio": [1.0, 2.0],
    }  # fmt: skip
    out = summary(stats)
    assert out["alpha_mean"] == pytest.approx(0.4)
    assert out["sink_rate"] == 0.5
    assert out["sink_rate_after_first"] == 0.5
    assert summary(stats, 0.45)["sink_rate_after_first"] == 0.0
    assert out["value_ratio_min"] == pytest.approx(0.2)
    assert out["massive"] == 7.0
    assert "sink_rate_third" not in out
    first = [[[0, 0], [0, 0], [0.9, 0.9], [0, 0]], [[0.9, 0.9], [0, 0], [0.4, 0.1], [0, 0]]]  # layer, position, head
    more = summary(stats | {"alpha_first": first, "off_keys": [[0.0, 0.0], [0.0, 0.0]]})
    assert more["sink_rate_third"] == 0.5


def test_a_window_is_measured_over_the_queries_that_see_the_first_token(ids):
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, bos_token_id=0, eos_token_id=None, sliding_window=5, initializer_range=0.5,
    )  # fmt: skip
    model = MistralForCausalLM(config)
    stats = sink_statistics(model, ids)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = torch.stack(model(ids, output_attentions=True).attentions)
    assert maps[..., 5:, 0].abs().max() == 0
    torch.testing.assert_close(torch.tensor(stats["alpha"]), maps[..., :5, 0].mean((1, 3)))
    oldest = torch.stack([maps[..., i, i - 4] for i in range(5, 12)], -1).mean((1, 3))
    torch.testing.assert_close(torch.tensor(stats["oldest"]), oldest)
    assert summary(stats)["oldest_max"] == pytest.approx(float(oldest.max()))
