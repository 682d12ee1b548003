"""What a model tells its attention function is honoured or refused, and nobody's function is replaced."""

import sys
import types

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import AttentionInterface
from transformers.models.llama import modeling_llama

import sinkscope as sk
from sinkscope import testing
from sinkscope.attention.keywords import HONOURED, INERT, check_keywords
from sinkscope.errors import UnsupportedModelError

SIZES = {
    "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "intermediate_size": 64, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
}  # fmt: skip
MORE = {
    "inkling2_text": {
        "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8, "num_experts": 4,
    },
    "minimax_m3_vl_text": {
        "index_n_heads": 2, "index_head_dim": 8, "index_block_size": 8, "index_topk_blocks": 2, "index_local_blocks": 1,
        "num_local_experts": 4, "shared_expert_intermediate_size": 32, "dense_intermediate_size": 64, "rotary_dim": 8,
        "layer_types": ["minimax_m3_sparse"] * 2,
    },
}  # fmt: skip


def plain():
    return testing.tiny("llama").model.layers[0].self_attn


@pytest.mark.parametrize("value", [torch.zeros(1), 0.5])
def test_an_unknown_tensor_or_real_number_is_refused(value):
    told = (
        rf"LlamaAttention \(llama\) hands its attention function tilt= \({type(value).__name__}\), which sinkscope does"
    )
    with pytest.raises(UnsupportedModelError, match=told):
        check_keywords(plain(), {"use_cache": False, "tilt": value})


def test_flags_that_go_down_to_every_part_and_what_is_absent_pass():
    check_keywords(plain(), {"use_cache": True, "logits_to_keep": 1, "tilt": None, "output_router_logits": False})


@pytest.mark.parametrize("name", sorted(HONOURED | INERT))
def test_what_is_honoured_or_without_effect_passes(name):
    check_keywords(plain(), {name: torch.zeros(1)})


def test_a_flag_that_the_models_own_eager_function_reads_is_refused(monkeypatch):
    home = types.ModuleType("a_model")
    exec(
        "import torch\n"
        "class Attention(torch.nn.Module): pass\n"
        "def eager_attention_forward(module, query, key, value, attention_mask, scaling, flip=False, **kwargs):\n"
        "    return kwargs.get('turn')\n",
        vars(home),
    )
    home.Attention.__module__ = "a_model"
    monkeypatch.setitem(sys.modules, "a_model", home)
    for name in ("flip", "turn"):
        with pytest.raises(UnsupportedModelError, match=rf"hands its attention function {name}= \(bool\)"):
            check_keywords(home.Attention(), {name: True})
    check_keywords(home.Attention(), {"use_cache": True})


def with_a_keyword_of_its_own(model_type):
    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES, **MORE[model_type])).eval()
    return sk.load_model(net)


def test_an_architecture_with_a_keyword_of_its_own_is_refused_by_name():
    model = with_a_keyword_of_its_own("inkling2_text")
    found = model.capabilities()
    assert found.reading == "none"
    assert "(inkling2_text) hands its attention function sinks= (Tensor)" in found.why_not
    with pytest.raises(UnsupportedModelError, match="sinks="):
        sk.run(model, sk.Prompts.from_ids([[1, 5, 9]], model), [sk.KeyMass()])


def test_an_architecture_with_a_keyword_of_its_own_is_never_run_without_it():
    model = with_a_keyword_of_its_own("minimax_m3_vl_text")
    found = model.capabilities()
    assert (found.reading, found.edits) == ("dense", False)
    assert "(minimax_m3_vl_text) hands its attention function block_indices= (Tensor)" in found.why_not
    ids = list(range(1, 25))
    ds = sk.run(model, sk.Prompts.from_ids([ids], model), [sk.KeyMass()])
    model.model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model.model(torch.tensor([ids]), output_attentions=True).attentions
    seen = torch.arange(len(ids), 0, -1)
    for layer, weights in enumerate(maps):
        torch.testing.assert_close(torch.tensor(ds["key_mass"].values[0, layer]), weights[0].sum(1) / seen)


def theirs(module, query, key, value, attention_mask=None, scaling=None, **_):
    """Attention by somebody else: uniform over all keys."""
    mean = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1).mean(2, keepdim=True)
    return mean.expand(-1, -1, query.shape[2], -1).transpose(1, 2).contiguous(), None


@pytest.fixture
def foreign():
    AttentionInterface.register("theirs", theirs)
    net = testing.tiny("llama")
    net.set_attn_implementation("theirs")
    yield net
    del AttentionInterface._global_mapping["theirs"]


def test_somebodys_attention_is_not_replaced(foreign):
    model = sk.load_model(foreign)
    told = r"this model's attention is 'theirs' \(.*test_keywords\.theirs\), a function that is registered .* by others"
    with pytest.raises(UnsupportedModelError, match=told):
        sk.run(model, sk.Prompts.from_ids([[1, 5, 9]], model), [sk.KeyMass()])
    assert foreign.config._attn_implementation == "theirs"
    assert "TransformerLens cannot serve it either" in model.capabilities().why_not
    with pytest.raises(UnsupportedModelError, match="'theirs'"):
        model.to_bridge()


def test_attention_that_somebody_puts_in_later_is_not_replaced(foreign):
    foreign.set_attn_implementation("sdpa")
    model = sk.load_model(foreign)
    prompts = sk.Prompts.from_ids([[1, 5, 9]], model)
    sk.run(model, prompts, [sk.KeyMass()])
    foreign.set_attn_implementation("theirs")
    with pytest.raises(UnsupportedModelError, match="'theirs'"):
        sk.run(model, prompts, [sk.KeyMass()])
    with pytest.raises(UnsupportedModelError, match="'theirs'"), sk.applied(model, [sk.MaskKeys("first")], prompts):
        pass


def test_an_eager_function_put_beside_a_class_is_not_replaced(monkeypatch):
    """Its maps are read where the model returns them; an edit, which would run another function, is refused."""
    network = testing.tiny("llama")
    network.set_attn_implementation("eager")
    own = modeling_llama.eager_attention_forward

    def hotter(module, query, key, value, mask, scaling, **kwargs):
        return own(module, query, key, value, mask, 3 * scaling, **kwargs)

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", hotter)
    ids = [1, 5, 9, 12]
    wanted = network(torch.tensor([ids]), output_attentions=True)
    model = sk.load_model(network)
    prompts = sk.Prompts.from_ids([ids], model)
    reading = sk.run(model, prompts, [sk.AttentionMap([1], [0]), sk.Logits("all")])
    found = torch.from_numpy(reading.attention.values).reshape(4, 4)
    torch.testing.assert_close(found, wanted.attentions[1][0, 0].detach(), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.from_numpy(reading.logits.values[0]), wanted.logits[0].detach())
    with pytest.raises(
        UnsupportedModelError, match=r"eager_attention_forward of .*modeling_llama was replaced by .*hotter"
    ):
        sk.run(model, prompts, [sk.KeyMass()], [sk.MaskKeys("first")])
    network.set_attn_implementation("sdpa")
    assert sk.load_model(network).capabilities().edits


def test_an_eager_function_put_in_later_is_found(monkeypatch):
    network = testing.tiny("llama")
    network.set_attn_implementation("eager")
    model = sk.load_model(network)
    prompts = sk.Prompts.from_ids([[1, 5, 9]], model)
    sk.run(model, prompts, [sk.KeyMass()])
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", lambda *_, **__: None)
    with pytest.raises(UnsupportedModelError, match=r"Put the library's own function back"):
        sk.run(model, prompts, [sk.KeyMass()])
