"""What a model is made of, found by running one token or one blank image."""

import pytest
import torch
from parity.common import DECODERS, DUAL, ENCODERS, MULTIMODAL, SEAM, VISION
from transformers import (
    AutoConfig,
    BartForSequenceClassification,
    ConvNextConfig,
    ConvNextModel,
    MambaConfig,
    MambaForCausalLM,
    T5ForConditionalGeneration,
)

import sinkscope as sk
from sinkscope import testing
from sinkscope.errors import UnsupportedModelError
from sinkscope.models.backends.discovery import discover, trial_inputs

GROUPED = {"llama", "qwen2", "qwen3", "mistral", "olmo", "gemma", "gemma2", "gemma3_text", "gpt_oss", *MULTIMODAL}
CAUSAL = {*DECODERS, *MULTIMODAL, "clip"}


@pytest.mark.parametrize("name", SEAM)
def test_layers_heads_and_the_direction_of_attention(name):
    net = testing.tiny(name)
    towers = discover(net)
    first = next(iter(towers.values()))
    assert first.name == ("vision" if name in VISION else "text")
    assert first.causal == (name in CAUSAL)
    assert first.d_model == 32
    assert [site.layer for site in first.attention] == [0, 1, 2]
    for site in first.attention:
        assert site.heads == 4
        assert site.kv_heads == (2 if name in GROUPED else 4)
        assert site.implicit_sink == (name == "gpt_oss")
        module = net.get_submodule(site.output_path)
        weight = module.weight.T if type(module).__name__ == "Conv1D" else module.weight
        assert weight.shape == (32, site.heads * site.head_dim)
    assert len({site.path for site in first.attention}) == 3
    assert len({site.output_path for site in first.attention}) == 3


@pytest.mark.parametrize("name", DUAL)
def test_two_encoders_side_by_side_are_two_towers(name):
    towers = discover(testing.tiny(name))
    assert list(towers) == ["text", "vision"]
    assert all(site.path.startswith("text_model.") for site in towers["text"].attention)
    assert all(site.path.startswith("vision_model.") for site in towers["vision"].attention)


@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS, *VISION])
def test_sites_are_in_order_and_their_modules_exist(name):
    net = testing.tiny(name)
    tower = next(iter(discover(net).values()))
    names = [n for n in tower.site_names if not n.endswith("mid")]
    assert names == ["embed", "0.post", "1.post", "2.post"]
    assert ("0.mid" in tower.site_names) == (name != "gpt_neox")
    for site in tower.residual:
        net.get_submodule(site.path)
        assert site.turn is None
    assert [site.before for site in tower.residual][-1] is False
    assert all(site.before for site in tower.residual[:-1])


def test_discovery_changes_neither_weights_nor_hooks_nor_the_random_state():
    net = testing.tiny("gemma3")
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())
    weights = {name: p.clone() for name, p in net.named_parameters()}
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    discover(net)
    assert torch.equal(torch.rand(1), wanted)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()) == hooks
    assert all(torch.equal(p, weights[name]) for name, p in net.named_parameters())


@pytest.mark.parametrize("name", testing.names("bypass"))
def test_architectures_that_bypass_the_interface_are_refused_with_the_way_out(name):
    net = testing.tiny(name)
    with pytest.raises(UnsupportedModelError) as raised:
        discover(net)
    text = str(raised.value)
    assert text.startswith(f"{type(net).__name__}: running one token made no call to transformers' attention interface")
    assert "The model computes it by itself (" in text
    assert text.endswith(
        "or what mixes its tokens is no attention; use backend='lens' where TransformerLens serves it, or a forward "
        "hook of your own on that module."
    )


def test_a_model_without_attention_is_refused():
    sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    with pytest.raises(UnsupportedModelError, match="MambaForCausalLM: none of its modules is one of attention"):
        discover(MambaForCausalLM(MambaConfig(**sizes)))


def test_a_head_that_stops_the_trial_names_what_is_below_it():
    """BART for classification wants an end of text in a target as long as the source."""
    network = testing.tiny("bart")
    classifier = BartForSequenceClassification(network.config).eval()
    said = sk.load_model(classifier).capabilities()
    assert said.reading == "none"
    assert "Its parts may be read by themselves: load_model(model.model)." in said.why_not
    assert sk.load_model(classifier.model).capabilities().towers == "decoder, encoder, cross"


def test_of_a_model_without_attention_nothing_is_said_of_maps():
    said = sk.load_model(ConvNextModel(ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8])).eval())
    assert "none of its modules is one of attention" in said.capabilities().why_not
    assert "eager" not in said.capabilities().why_not
    assert "maps" not in said.capabilities().why_not


def test_an_encoder_decoder_is_told_apart_by_the_shapes_of_its_calls():
    sizes = {"vocab_size": 96, "d_model": 32, "d_kv": 8, "num_heads": 4, "num_layers": 2, "d_ff": 64}
    towers = discover(T5ForConditionalGeneration(AutoConfig.for_model("t5", **sizes)))
    assert {name: [site.path for site in tower.attention] for name, tower in towers.items()} == {
        "decoder": [f"decoder.block.{n}.layer.0.SelfAttention" for n in (0, 1)],
        "encoder": [f"encoder.block.{n}.layer.0.SelfAttention" for n in (0, 1)],
        "cross": [f"decoder.block.{n}.layer.1.EncDecAttention" for n in (0, 1)],
    }
    assert [tower.causal for tower in towers.values()] == [True, False, False]


def test_an_error_of_the_model_itself_is_not_taken_for_a_bypass():
    net = testing.tiny("llama")
    net.model.layers[2].mlp.register_forward_pre_hook(lambda _m, _a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        discover(net)


def test_trial_inputs_are_the_smallest_that_reach_every_layer():
    assert trial_inputs(testing.tiny("llama"))[0]["input_ids"].tolist() == [[1]]
    blank = trial_inputs(testing.tiny("vit"))[0]["pixel_values"]
    assert blank.shape == (1, 3, 16, 16)
    assert set(trial_inputs(testing.tiny("clip"))[0]) == {"input_ids", "pixel_values"}
    odd = testing.tiny("llama", bos_token_id=None, eos_token_id=2)
    assert trial_inputs(odd)[0]["input_ids"].tolist() == [[2]]
    none = testing.tiny("llama", bos_token_id=200, eos_token_id=None)
    assert trial_inputs(none)[0]["input_ids"].tolist() == [[0]]


@pytest.mark.parametrize(
    ("name", "layer", "wanted"),
    [
        ("llama", 1, "model.layers.1"),
        ("gpt2", 2, "transformer.h.2"),
        ("bert", 0, "bert.encoder.layer.0"),
        ("vit", 2, "layers.2"),
    ],
)
def test_the_block_is_the_outermost_list_member(name, layer, wanted):
    (tower,) = discover(testing.tiny(name)).values()
    assert (tower.blocks[layer].path, tower.blocks[layer].layer) == (wanted, layer)
    assert tower.depth == 3
