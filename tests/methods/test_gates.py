"""Gates read without knowing the module: those of a gated Llama as its own weights say, ones where there are none."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

import sinkscope as sk
from sinkscope.errors import PromptError, UnsupportedModelError
from sinkscope.methods.gates import GATE_EDITS, gate_edits, gate_values
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


def loss_of(model, prompts):
    return sk.run(model, prompts, [sk.TokenLoss()])["token_loss"].mean("query").values


@pytest.mark.parametrize("kind", ["element", True])
def test_gate_edits_are_the_model_with_those_gates_put_in_by_hand(kind):
    model = gated(kind)
    rng = np.random.default_rng(1)
    prompts = sk.Prompts.from_ids([[1, *rng.integers(3, 60, 9).tolist()] for _ in range(3)], model)
    projections = [layer.self_attn.gate_proj for layer in model.model.model.layers]
    logits = [[], []]
    for index in range(3):
        handles = [
            each.register_forward_hook(lambda _m, _i, out, layer=layer: logits[layer].append(out.detach()))
            for layer, each in enumerate(projections)
        ]
        sk.run(model, prompts.subset([index]), [sk.TokenLoss()])
        for handle in handles:
            handle.remove()
    recorded = [[out for out in each if out.shape[1] == 10] for each in logits]

    def with_logits(made):
        handles = [
            each.register_forward_hook(lambda _m, _i, out, own=own: own.expand_as(out))
            for each, own in zip(projections, made, strict=True)
        ]
        try:
            return loss_of(model, prompts.subset([0]))[0]
        finally:
            for handle in handles:
                handle.remove()

    found = gate_edits(model, prompts)["loss"]
    assert found.edit.values.tolist() == list(GATE_EDITS)
    np.testing.assert_allclose(found.sel(edit="same"), loss_of(model, prompts), rtol=1e-5)
    means = [torch.sigmoid(torch.cat(each[1:3], 1)).mean((0, 1)) for each in recorded]
    wanted = {
        "mean": with_logits([torch.logit(mean) for mean in means]),
        "shuffled": with_logits([each[1] for each in recorded]),
        "one": with_logits([torch.full((), 40.0)] * 2),
    }
    for edit, value in wanted.items():
        np.testing.assert_allclose(found.sel(edit=edit)[0], value, rtol=1e-5)
    assert float(abs(found.sel(edit="noise") - found.sel(edit="same")).min()) > 1e-4


def test_gates_that_do_not_depend_on_the_token_lose_nothing_by_their_mean():
    model = gated(True)
    with torch.no_grad():
        for layer in model.model.model.layers:
            layer.self_attn.gate_proj.weight.zero_()
    ids = np.random.default_rng(2).integers(3, 60, (2, 8)).tolist()
    loss = gate_edits(model, sk.Prompts.from_ids(ids, model))["loss"]
    for edit in ("mean", "shuffled", "noise"):
        np.testing.assert_allclose(loss.sel(edit=edit), loss.sel(edit="same"), rtol=1e-6)
    assert float(abs(loss.sel(edit="one") - loss.sel(edit="same")).max()) > 1e-3


def test_gate_edits_ask_for_prompts_of_one_length_and_for_a_next_token():
    model = gated(True)
    for ids in ([[1, 5, 6]], [[1, 5, 6], [1, 5, 6, 7]]):
        with pytest.raises(
            PromptError, match=r"gate_edits: . prompts of \[.*\] tokens\. Give two or more of one length"
        ):
            gate_edits(model, sk.Prompts.from_ids(ids, model))
    encoder = sk.load_model(tiny("bert"))
    with pytest.raises(UnsupportedModelError, match=r"gate_edits: .* predicts no next token"):
        gate_edits(encoder, sk.Prompts.from_ids([[1, 5, 6], [1, 7, 8]], encoder))


def test_gate_edits_of_a_model_without_gates_and_of_single_tokens_are_refused():
    plain = sk.load_model(tiny("llama"))
    with pytest.raises(UnsupportedModelError, match=r"gate_edits: every gate of .* is 1, so it has none"):
        gate_edits(plain, sk.Prompts.from_ids([[1, 5, 6], [1, 7, 8]], plain))
    model = gated(True)
    with pytest.raises(PromptError, match=r"gate_edits: 2 prompts of \[1\] tokens.* two tokens or more"):
        gate_edits(model, sk.Prompts.from_ids([[1], [5]], model))


@pytest.mark.parametrize("call", [gate_values, gate_edits])
def test_what_is_no_prompts_is_refused(call):
    with pytest.raises(PromptError, match=rf"{call.__name__}: expected Prompts, got a list of 2 str"):
        call(gated(True), ["one", "two"])
