"""Architectures whose layers are not alike: more heads in some of them, and several residual streams side by side."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import sinkscope as sk
from sinkscope.errors import UnsupportedModelError
from sinkscope.testing.tiny import randomise

IDS = [[1, 5, 9, 33, 7, 60, 12], [1, 8, 20, 4]]
SIZES = {
    "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 8,
    "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
MIMO = {
    "num_key_value_heads": 1, "v_head_dim": 8, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2,
    "swa_head_dim": 8, "swa_v_head_dim": 8, "intermediate_size": 64, "moe_intermediate_size": 32, "sliding_window": 16,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "layer_types": ["full_attention", "sliding_attention"] * 2,
}  # fmt: skip
GEMMA3N = {
    "num_key_value_heads": 2, "vocab_size_per_layer_input": 96, "hidden_size_per_layer_input": 8, "laurel_rank": 4,
    "intermediate_size": [64] * 4, "num_kv_shared_layers": 1, "activation_sparsity_pattern": [0.0] * 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2, "altup_num_inputs": 3,
}  # fmt: skip

DEEPSEEK = {
    "moe_intermediate_size": 32, "num_hidden_layers": 2, "q_lora_rank": 16, "num_experts_per_tok": 2,
    "n_routed_experts": 4, "hc_mult": 3, "sliding_window": 64, "o_groups": 2, "o_lora_rank": 8, "index_n_heads": 2,
    "index_head_dim": 16, "index_topk": 4, "qk_rope_head_dim": 8, "head_dim": 16, "max_position_embeddings": 512,
}  # fmt: skip


def made(model_type, **more):
    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(SIZES | more))).eval()
    randomise(net, 0)
    return net


@pytest.mark.parametrize("batch_size", [1, 2])
def test_layers_with_fewer_key_value_heads_are_nan_beyond_them(batch_size):
    net = made("mimo_v2_flash", **MIMO)
    model = sk.load_model(net)
    prompts = sk.Prompts.from_ids(IDS, model)
    found = sk.run(model, prompts, [sk.ValueNorm(), sk.KeyMass(), sk.Contribution()], batch_size=batch_size)
    assert found.value_norm.sizes["kv_head"] == 2
    assert bool(found.value_norm.sel(layer=[0, 2], kv_head=1).isnull().all())
    values = []
    handles = [
        block.self_attn.v_proj.register_forward_hook(lambda _m, _a, out: values.append(out[0]))
        for block in net.model.layers
    ]
    with torch.no_grad():
        net(torch.tensor(IDS[:1]))
    for handle in handles:
        handle.remove()
    scale = float(getattr(net.config, "attention_value_scale", None) or 1.0)
    for layer, value in enumerate(values):
        wanted = scale * value.unflatten(-1, (-1, 8)).norm(dim=-1).T
        np.testing.assert_allclose(found.value_norm[0, layer, : len(wanted)], wanted, rtol=1e-5)
    assert not bool(found.key_mass[0].isnull().any())
    assert not bool(found.contribution.sel(role="bos").isnull().any())


def streams(net, ids):
    """States of all parallel streams going into each layer and out of the last, (stream, token, d_model)."""
    kept, handles = [], []
    for block in net.model.layers:
        handles.append(block.register_forward_pre_hook(lambda _m, args: kept.append(args[0][:, 0])))
    handles.append(net.model.layers[-1].register_forward_hook(lambda _m, _a, out: kept.append(out[:, 0])))
    with torch.no_grad():
        logits = net(torch.tensor([ids]), use_cache=False).logits[0]
    for handle in handles:
        handle.remove()
    return kept, logits


@pytest.mark.parametrize("batch_size", [1, 2])
def test_parallel_residual_streams_are_read_as_their_mean(batch_size):
    net = made("gemma3n_text", **GEMMA3N)
    model = sk.load_model(net)
    prompts = sk.Prompts.from_ids(IDS, model)
    found = sk.run(model, prompts, [sk.ResidualNorm(), sk.MassiveActivations()], batch_size=batch_size)
    names = ["embed", *(f"{layer}.post" for layer in range(4))]
    for row, ids in enumerate(IDS):
        for name, states in zip(names, streams(net, ids)[0], strict=True):
            assert states.shape == (3, len(ids), 32)
            read = found.residual_norm.sel(site=name)[row, : len(ids)]
            np.testing.assert_allclose(read, states.mean(0).norm(dim=-1), rtol=1e-5, err_msg=name)


def test_an_edit_of_the_mean_is_added_to_every_stream():
    net = made("gemma3n_text", **GEMMA3N)
    model = sk.load_model(net)
    prompts = sk.Prompts.from_ids(IDS[:1], model)
    edit = sk.SetActivations("1.post", dims=[3], value=5.0)
    found = sk.run(model, prompts, [sk.Logits(positions="all"), sk.ResidualNorm()], [edit])

    def shift(_module, args):
        mean = args[0].mean(0, keepdim=True)
        step = torch.zeros_like(mean)
        step[:, :, 0, 3] = 5.0 - mean[:, :, 0, 3]  # the first token, as the edit's default says
        return (args[0] + step, *args[1:])

    handle = net.model.layers[2].register_forward_pre_hook(shift)
    _, wanted = streams(net, IDS[0])
    handle.remove()
    np.testing.assert_allclose(found.logits[0], wanted, rtol=1e-4, atol=1e-5)
    assert float((wanted - streams(net, IDS[0])[1]).abs().max()) > 0.01


def test_streams_beside_the_model_width_are_read_as_their_mean_too():
    net = made("deepseek_v4", **DEEPSEEK)
    model = sk.load_model(net)
    found = sk.run(model, sk.Prompts.from_ids(IDS[:1], model), [sk.ResidualNorm()])
    kept = []
    handle = net.model.layers[1].register_forward_pre_hook(lambda _m, args: kept.append(args[0]))
    with torch.no_grad():
        net(torch.tensor(IDS[:1]), use_cache=False)
    handle.remove()
    assert kept[0].shape == (1, 7, 3, 32)
    read = found.residual_norm.sel(site="0.post")[0]
    np.testing.assert_allclose(read, kept[0][0].mean(1).norm(dim=-1), rtol=1e-5)


def test_keys_that_the_mask_does_not_know_are_refused_as_soon_as_there_are_any():
    net = made("deepseek_v4", **DEEPSEEK)
    model = sk.load_model(net)
    sk.run(model, sk.Prompts.from_ids([[1, *range(5, 60)]], model), [sk.KeyMass()])
    told = "attends from 140 queries to 141 keys under a mask made for 140 and 140: it has keys of its own"
    with pytest.raises(UnsupportedModelError, match=told):
        sk.run(model, sk.Prompts.from_ids([[1] + [5 + i % 80 for i in range(139)]], model), [sk.KeyMass()])
    assert "keys of its own" in model.capabilities(verify=True).why_not
