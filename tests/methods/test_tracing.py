"""Tracing: all states of a layer bring everything back, tokens that do not differ bring nothing; exits of the image."""

import numpy as np
import pytest
import torch
import xarray as xr

import sinkscope as sk
from sinkscope import testing
from sinkscope.errors import PromptError
from sinkscope.methods.sink_heads import output_rank, sink_heads
from sinkscope.methods.tracing import injection, trace, visual_exit
from sinkscope.tasks.scene_questions import scene_questions


@pytest.fixture(scope="module")
def case():
    model = sk.load_model(testing.tiny("llama"))
    clean = sk.Prompts.from_ids([[1, 5, 6, 7, 8, 9]], model)
    return model, clean, sk.Prompts.from_ids([[1, 5, 20, 7, 8, 9]], model)


def test_all_gives_one_and_nothing_gives_zero(case):
    model, clean, corrupt = case
    gap = sk.run(model, clean, [sk.Logits()]).logits - sk.run(model, corrupt, [sk.Logits()]).logits
    found = trace(model, clean, corrupt, [int(gap.values.argmax())], {"all": "all", "before": [0, 1], "last": "last"})
    assert found.recovery.dims == ("prompt", "component", "layer", "group")
    if abs(float(found.clean[0] - found.corrupt[0])) < 0.01:
        pytest.fail("the pair does not differ enough for a recovery rate")
    np.testing.assert_allclose(found.recovery.sel(component="state", group="all"), 1, atol=1e-3)
    np.testing.assert_allclose(found.recovery.sel(group="before"), 0, atol=1e-3)
    np.testing.assert_allclose(found.recovery.sel(component="state", group="last")[0, -1], 1, atol=1e-3)


def test_pairs_must_fit(case):
    model, clean, corrupt = case
    with pytest.raises(PromptError, match=r"with 2 answers\. Give pairs of"):
        trace(model, clean, corrupt, [1, 2], {"all": "all"})


def test_the_last_layers_can_do_without_the_image_where_the_first_cannot():
    model = sk.load_model("zoo:vlm-shapes")
    picture = np.zeros((48, 48, 3), np.uint8)
    picture[10:30, 10:30] = [255, 0, 0]
    prompts = sk.Prompts.from_chat([{"image": picture, "text": "What colour is the square?"}], model)
    found = visual_exit(model, prompts)
    assert found.divergence.shape == (1, model.backend.towers["text"].depth)
    assert float(found.divergence[0, 0]) > float(found.divergence[0, -1]) >= 0


def test_the_exit_is_where_attention_was_planted_to_end():
    model = sk.load_model("zoo:vlm-shapes")
    asked = scene_questions(model, 3, ("colour",))
    for layer in model.model.model.language_model.layers[3:]:
        # From here on no token reads another one.
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    found = visual_exit(model, asked.prompts, asked.examples.answers)
    ratio = found["loss"].mean("prompt") / found["full_loss"].mean()
    assert sk.metrics.exit_layer(found["agree"].mean("prompt"), ratio) == 3
    np.testing.assert_allclose(found["loss"].values[:, 3:], found["full_loss"].values[:, None].repeat(3, 1), atol=1e-5)
    assert float(found["divergence"].isel(layer=2).mean()) > 1e-3
    other = visual_exit(model, asked.prompts, keys="text")
    assert float(other["divergence"].isel(layer=0).mean()) > 1e-3
    with pytest.raises(PromptError, match="visual_exit: 3 prompts with 1 answers"):
        visual_exit(model, asked.prompts, [1])


def test_planted_sinks_are_no_operations_and_their_heads_are_named():
    model, truth = testing.planted_sink(0)
    ids = [[model.config.bos_token_id, *range(5, 40)]]
    prompts = sk.Prompts.from_ids(ids, model)
    found = sink_heads(model, prompts)
    for layer, head in truth.heads:
        one = found.sel(prompt=0, layer=layer, head=head)
        assert bool(one["sink"])
        assert str(one["type"].values) in ("no-operation", "between")
        assert float(one.value_ratio) < 0.6
    assert output_rank(model, prompts).min() >= 1
    twin, _ = testing.planted_sink(0, shuffled=True)
    assert int(sink_heads(twin, sk.Prompts.from_ids(ids, twin))["sink"].sum()) == 0


def test_a_planted_sink_that_is_given_a_value_is_a_broadcast():
    model, truth = testing.planted_sink(0)
    layer, head = truth.heads[0]
    attention = model.model.model.layers[layer].self_attn
    with torch.no_grad():
        row = head // attention.num_key_value_groups * attention.head_dim
        attention.v_proj.weight[row, truth.dims[0]] = 3.0
    prompts = sk.Prompts.from_ids([[model.config.bos_token_id, *range(5, 40)]], model)
    found = sink_heads(model, prompts).isel(prompt=0)
    assert str(found["type"].sel(layer=layer, head=head).values) == "broadcast"
    others = [str(found["type"].sel(layer=at, head=one).values) for at, one in truth.heads if at != layer]
    assert "broadcast" not in others


def test_the_blocks_that_carry_the_answer_are_written_again(case):
    model, clean, _ = case
    depth = model.backend.towers["text"].depth
    rates = np.zeros((1, 3, depth, 1))
    rates[0, 0, :, 0] = np.linspace(0.8, 0.1, depth)
    found = xr.Dataset(
        {"recovery": (("prompt", "component", "layer", "group"), rates)},
        coords={"component": ["attention", "mlp", "state"], "layer": range(depth), "group": ["last"]},
    )
    edits = injection(found, sources=1, targets=depth)
    assert len(edits) == 1  # the MLP brings nothing back
    assert (edits[0].component, edits[0].sources, edits[0].targets) == ("attention", (0,), tuple(range(1, depth)))
    assert edits[0].weights == (0.8,)
    assert float(
        abs(sk.run(model, clean, [sk.Logits()], edits).logits - sk.run(model, clean, [sk.Logits()]).logits).max()
    )
    with pytest.raises(PromptError, match=r"the trace has groups \['last'\]"):
        injection(found, group="object")
