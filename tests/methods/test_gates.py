"""Gates read without knowing the module: those of a gated Llama as its own weights say, ones where there are none."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

import sinkscope as sk
from sinkscope.errors import UnsupportedModelError
from sinkscope.methods.gates import gate_values
from sinkscope.models import variants
from sinkscope.testing import tiny
from sinkscope.testing.tiny import randomise


def gated(kind):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    config.sinkscope_gate = kind
    network = variants.build(config).eval()
    with torch.no_grad():
        for layer in network.model.layers:
            layer.self_attn.gate_proj.weight.normal_(std=0.6)
    return sk.load_model(network)


def prompts_of(model):
    rng = np.random.default_rng(0)
    return sk.Prompts.from_ids([[1, *rng.integers(3, 60, n).tolist()] for n in (7, 11)], model)


@pytest.mark.parametrize("kind", ["element", True])
def test_gates_are_what_the_module_computes(kind):
    model = gated(kind)
    prompts, seen = prompts_of(model), []
    handles = [
        layer.self_attn.gate_proj.register_forward_hook(lambda _m, _i, out: seen.append(torch.sigmoid(out[0])))
        for layer in model.model.model.layers
    ]
    sk.run(model, prompts.subset([0]), [sk.TokenLoss()])
    for handle in handles:
        handle.remove()
    found = gate_values(model, prompts)
    assert found["gate"].dims == ("prompt", "layer", "head", "query")
    for layer, own in enumerate(seen[-2:]):  # the first run of a model tries it with one token
        wanted = own.view(8, 4, -1).float()
        np.testing.assert_allclose(found["gate"][0, layer, :, :8], wanted.mean(-1).T, atol=1e-5)
        np.testing.assert_allclose(found["gate_spread"][0, layer, :, :8], wanted.numpy().std(-1).T, atol=1e-5)
    assert np.isnan(found["gate"][0, :, :, 8:]).all(), "beyond the prompt's end"
    assert bool((found["gate_spread"].max() > 0.05) == (kind == "element"))
    assert int(found["gate_count"].sum()) == 2 * 4 * (8 + 12) * 8


def test_a_head_whose_gate_is_shut_by_hand_is_found():
    model = gated(True)
    with torch.no_grad():
        weight = model.model.model.layers[1].self_attn.gate_proj.weight
        weight.zero_()
        bias = torch.zeros(4)
        bias[2] = -9.0
        model.model.model.layers[1].self_attn.gate_proj.bias = torch.nn.Parameter(bias)
    found = gate_values(model, prompts_of(model))["gate"].mean(["prompt", "query"])
    assert float(found[1, 2]) < 2e-4
    np.testing.assert_allclose(found[1, [0, 1, 3]], 0.5, atol=1e-6)


def test_a_model_without_gates_has_ones_and_one_with_a_norm_is_refused():
    model = sk.load_model(tiny("llama"))
    prompts = sk.Prompts.from_ids([[1, 5, 6, 7, 8]], model)
    found = gate_values(model, prompts)
    np.testing.assert_allclose(found["gate"], 1.0, atol=1e-6)
    assert int(found["gate_count"].isel(bin=-1).sum()) == int(found["gate_count"].sum())
    config = {"vocab_size": 96, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    config |= {"num_hidden_layers": 2, "intermediate_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model("bitnet", **config)).eval()
    randomise(network, 0)
    normed = sk.load_model(network)
    with pytest.raises(
        UnsupportedModelError, match=r"gate_values: .* does more to the outputs of its heads before W_O"
    ):
        gate_values(normed, sk.Prompts.from_ids([[1, 5, 6, 7, 8]], normed))
