"""Tiny models, inputs that fit them, and planted sinks with their twins."""

import math

import pytest
import torch

from sinkscope import testing
from sinkscope.errors import ModelError

ALL = testing.names()


def maps(network, **inputs):
    """Attention maps of every layer of a transformers model, by the library's own eager path."""
    network.set_attn_implementation("eager")
    with torch.no_grad():
        out = network(**inputs, output_attentions=True)
    parts = [out.get(name) for name in ("text_model_output", "vision_model_output")]
    found = out.get("attentions") or [each for part in parts if part is not None for each in part.attentions]
    for name in ("encoder_attentions", "decoder_attentions", "cross_attentions"):
        found = [*found, *(out.get(name) or ())]
    return list(found)


def residual_stream(network, ids):
    """Outputs of every block, (layer, batch, key, d_model)."""
    outputs = []
    handles = [
        block.register_forward_hook(lambda _m, _a, out: outputs.append(out[0] if isinstance(out, tuple) else out))
        for block in network.model.layers
    ]
    with torch.no_grad():
        network(ids)
    for handle in handles:
        handle.remove()
    return torch.stack(outputs)


@pytest.mark.parametrize("name", ALL)
def test_tiny_runs_finite_and_attends_unevenly(name):
    network = testing.tiny(name)
    assert not network.training
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    found = maps(network, **testing.inputs(network))
    assert len(found) >= (1 if name in testing.names("hybrid") else 2)
    for attention in found:
        assert torch.isfinite(attention).all()
        last = attention[..., -1, :]
        assert last.amax(-1).mean() > 1.5 / attention.shape[-1], "attention is almost uniform"


@pytest.mark.parametrize("name", ALL)
def test_tiny_is_the_same_for_the_same_seed(name):
    first, again, other = testing.tiny(name), testing.tiny(name), testing.tiny(name, seed=1)
    pairs = list(zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_tiny_leaves_the_global_seed_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    testing.tiny("llama")
    assert torch.equal(torch.rand(1), expected)


def test_tiny_takes_overrides_also_of_nested_configurations():
    assert testing.tiny("llama", num_hidden_layers=1).config.num_hidden_layers == 1
    config = testing.tiny("llava", text_config={"num_hidden_layers": 1}).config
    assert config.text_config.num_hidden_layers == 1
    assert config.text_config.hidden_size == 32


def test_tiny_shapes_are_the_traps_they_should_be():
    assert testing.tiny("mistral").config.sliding_window == 5
    assert testing.tiny("gemma2").config.attn_logit_softcapping == 4.0
    assert testing.tiny("qwen3").config.head_dim * 4 != testing.tiny("qwen3").config.hidden_size
    sinks = [p for n, p in testing.tiny("gpt_oss").named_parameters() if n.endswith("sinks")]
    assert len(sinks) == 3
    assert all(p.abs().max() > 0.1 for p in sinks)


def test_names_by_kind():
    assert "llama" in testing.names("decoder")
    assert testing.names("bypass") == ["gptj", "gpt_neo", "falcon", "bloom", "mpt"]
    assert testing.names("encoder-decoder") == ["t5", "bart", "pegasus", "mbart", "whisper", "moonshine"]
    assert (
        len(testing.names())
        == sum(len(testing.names(k)) for k in ("decoder", "hybrid", "encoder", "vision", "dual", "vlm")) + 11
    )


def test_unknown_names_are_refused():
    with pytest.raises(
        ModelError, match=r"testing\.tiny\('llamma'\): there is no such tiny model\. Names are \['llama'"
    ):
        testing.tiny("llamma")
    with pytest.raises(ModelError, match=r"testing\.names\('text'\): the kinds are \['bypass', 'decoder'"):
        testing.names("text")


def test_text_ids_start_with_bos_and_hold_no_special_id():
    network = testing.tiny("llama")
    ids = testing.text_ids(network, batch=3, length=20, seed=4)
    assert ids.shape == (3, 20)
    assert (ids[:, 0] == network.config.bos_token_id).all()
    assert ids[:, 1:].min() >= 3
    assert ids.max() < 90
    assert torch.equal(ids, testing.text_ids(network, batch=3, length=20, seed=4))


def test_pixels_of_a_model_without_a_fixed_size_are_refused():
    with pytest.raises(ModelError, match="Qwen2VLForConditionalGeneration has no fixed image size"):
        testing.pixels(testing.tiny("qwen2_vl"))


@pytest.mark.parametrize("name", testing.names("vlm"))
def test_vlm_inputs_hold_as_many_placeholders_as_the_image_has_tokens(name):
    network = testing.tiny(name)
    given = testing.inputs(network, batch=1, length=9)
    count = int((given["input_ids"] == network.config.image_token_id).sum())
    assert given["input_ids"].shape[1] == 9 + count
    assert count >= 4


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("length", [16, 64])
def test_planted_sink_is_where_the_truth_says(seed, length):
    model, truth = testing.planted_sink(seed)
    network = model.model
    ids = testing.text_ids(network, batch=4, length=length, seed=seed)
    assert ids[0, 0] == network.config.bos_token_id
    mass = torch.stack([m[..., truth.position].mean(-1).mean(0) for m in maps(network, input_ids=ids)])
    uniform = sum(1 / n for n in range(1, length + 1)) / length
    for layer in range(mass.shape[0]):
        for head in range(mass.shape[1]):
            if (layer, head) in truth.heads:
                assert mass[layer, head] > 0.9
            else:
                assert mass[layer, head] < 1.2 * uniform


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_planted_activation_has_the_value_and_dimension_of_the_truth(seed):
    model, truth = testing.planted_sink(seed)
    stream = residual_stream(model.model, testing.text_ids(model.model, batch=4, length=32, seed=seed))
    at_sink = stream[:, :, truth.position].abs()
    assert at_sink.max().item() == pytest.approx(truth.value, rel=1e-5)
    assert set(at_sink.argmax(-1).flatten().tolist()) == set(truth.dims)
    assert at_sink.max() > 1000 * stream.abs().flatten(1).median(1).values.max()
    assert stream[:, :, truth.position + 1 :].abs().max() < 100


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_planted_values_are_drained_in_the_planted_heads(seed):
    model, truth = testing.planted_sink(seed)
    network, values = model.model, []
    for block in network.model.layers:
        block.self_attn.v_proj.register_forward_hook(lambda _m, _a, out: values.append(out))
    with torch.no_grad():
        network(testing.text_ids(network, batch=4, length=32, seed=seed))
    for layer, head in truth.heads:
        norms = values[layer].unflatten(-1, (2, -1))[:, :, head // 2].norm(dim=-1)
        assert (norms[:, 0] < 0.5 * norms.median(1).values).all()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("length", [12, 64])
def test_the_twin_has_neither_sink_nor_massive_activation(seed, length):
    model, truth = testing.planted_sink(seed, shuffled=True)
    ids = testing.text_ids(model.model, batch=8, length=length, seed=seed + 100)
    assert truth.heads == []
    assert truth.dims == []
    assert math.isnan(truth.value)
    mass = torch.stack([m[..., 0].mean((0, -1)) for m in maps(model.model, input_ids=ids)])
    assert mass.max() < 0.3
    stream = residual_stream(model.model, ids).abs()
    assert stream.max() < 100
    assert (stream.flatten(1).amax(1) < 100 * stream.flatten(1).median(1).values).all()


def test_the_twin_holds_the_same_entries():
    planted, twin = testing.planted_sink(3)[0].model, testing.planted_sink(3, shuffled=True)[0].model
    for (name, a), (_, b) in zip(planted.named_parameters(), twin.named_parameters(), strict=True):
        assert torch.equal(a.flatten().sort().values, b.flatten().sort().values), name
        if a.ndim == 2:
            assert not torch.equal(a, b)


def test_planted_models_are_named_and_repeat():
    (first, truth), (again, same) = testing.planted_sink(2), testing.planted_sink(2)
    assert first.id == "planted-sink-2"
    assert testing.planted_sink(2, shuffled=True)[0].id == "planted-sink-2-shuffled"
    assert (first.fingerprint, truth) == (again.fingerprint, same)
    assert testing.planted_sink(4)[1] != truth
