"""Contribution reads what is written: adapters, quantised weights, gates and norms before W_O, and edits of values."""

import copy
import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import sinkscope as sk
from sinkscope.errors import UnsupportedModelError
from sinkscope.roles import MEASURED_ROLES
from sinkscope.testing import tiny
from sinkscope.testing.tiny import randomise

IDS = [1, 5, 9, 33, 7, 60, 12, 44]
SIZES = {
    "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
MORE = {
    "bitnet": {},
    "qwen3_next": {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 8,
        "shared_expert_intermediate_size": 32, "layer_types": ["full_attention"] * 2,
    },
    "afmoe": {
        "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 8,
        "num_dense_layers": 2, "layer_types": ["full_attention", "full_attention"],
    },
}  # fmt: skip


def made(model_type):
    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES, **MORE[model_type])).eval()
    randomise(net, 0)
    return net


class Lora(torch.nn.Module):
    """A low-rank adapter as PEFT makes it: the projection itself, and beside it a product of two thin matrices."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.in_features, self.out_features = base.in_features, base.out_features
        self.down = torch.nn.Linear(base.in_features, 2, bias=False)
        self.up = torch.nn.Linear(2, base.out_features, bias=False)
        self.on = True

    def forward(self, x):
        return self.base_layer(x) + (self.up(self.down(x)) if self.on else 0)


def by_definition(net, ids, between):
    """Contribution in float64: each key's part alone is put through the module, gates and norm statistics held.

    ``between`` maps (layer, module, hidden state, heads' outputs) to what every entry is multiplied by before W_O.
    """
    double = copy.deepcopy(net).double()
    for config in {id(m.config): m.config for m in double.modules() if hasattr(m, "config")}.values():
        config._attn_implementation_internal, config._experts_implementation = "eager", "eager"
    kept, found = {}, []
    handles = []
    for layer, block in enumerate(double.model.layers):
        attention = block.self_attn
        handles += [
            attention.register_forward_pre_hook(
                lambda _m, args, named, at=layer: kept.__setitem__(
                    (at, "hidden"), args[0] if args else named["hidden_states"]
                ),
                with_kwargs=True,
            ),
            attention.v_proj.register_forward_hook(lambda _m, _a, out, at=layer: kept.__setitem__((at, "value"), out)),
        ]  # fmt: skip
    with torch.no_grad():
        maps = double(input_ids=torch.tensor([ids]), output_attentions=True, use_cache=False).attentions
        for layer, block in enumerate(double.model.layers):
            attention, weights = block.self_attn, maps[layer][0]
            value = kept[layer, "value"][0].unflatten(-1, (2, 8)).repeat_interleave(2, dim=1)
            outputs = torch.einsum("hqk,khd->qhd", weights, value)
            scale = between(layer, attention, kept[layer, "hidden"][0], outputs)
            parts = torch.einsum("hqk,khd,qhd->qkhd", weights, value, scale)
            norms = torch.zeros(4, len(ids), len(ids), dtype=torch.float64)
            bias = attention.o_proj(torch.zeros(32).double())
            for head in range(4):
                alone = torch.zeros_like(parts)
                alone[:, :, head] = parts[:, :, head]
                norms[head] = (attention.o_proj(alone.flatten(2)) - bias).norm(dim=-1)
            found.append(norms)
    for handle in handles:
        handle.remove()
    return torch.stack(found)


def nothing(_layer, _module, _hidden, outputs):
    return torch.ones_like(outputs)


def qwen_gate(_layer, module, hidden, outputs):
    joint = module.q_proj(hidden).unflatten(-1, (4, 16))
    return torch.sigmoid(joint.chunk(2, dim=-1)[1])


def afmoe_gate(_layer, module, hidden, outputs):
    return torch.sigmoid(module.gate_proj(hidden)).unflatten(-1, (4, 8))


def held_norm(_layer, module, _hidden, outputs):
    norm = module.attn_sub_norm
    flat = outputs.flatten(1)
    scale = torch.rsqrt(flat.square().mean(-1, keepdim=True) + norm.variance_epsilon)
    return (norm.weight * scale.expand_as(flat)).unflatten(-1, (4, 8))


def read(net, edits=(), ids=IDS):
    model = sk.load_model(net)
    return sk.run(model, sk.Prompts.from_ids([ids], model), [sk.Contribution()], edits).contribution[0]


def roles_of(net, ids=IDS):
    model = sk.load_model(net)
    return sk.Prompts.from_ids([ids], model).roles[0]


def assert_reads(net, wanted, edits=()):
    """``wanted`` (layer, head, query, key) summed over the keys of each role, mean over queries."""
    found, roles = read(net, edits), roles_of(net)
    for index, name in enumerate(MEASURED_ROLES):
        expected = wanted[..., torch.as_tensor(roles == index)].sum(-1).mean(-1)
        np.testing.assert_allclose(found.sel(role=name), expected, rtol=2e-5, atol=1e-6, err_msg=name)


def test_an_adapter_is_part_of_the_projection():
    net = tiny("llama", num_hidden_layers=2)
    for block in net.model.layers:
        block.self_attn.o_proj = Lora(block.self_attn.o_proj)
    torch.manual_seed(0)
    assert_reads(net, by_definition(net, IDS, nothing))


def test_an_adapter_that_is_switched_off_is_read_without_a_weight_being_changed():
    net = tiny("llama", num_hidden_layers=2)
    plain = read(net)
    for block in net.model.layers:
        block.self_attn.o_proj = Lora(block.self_attn.o_proj)
    model = sk.load_model(net)
    prompts = sk.Prompts.from_ids([IDS], model)
    on = sk.run(model, prompts, [sk.Contribution()]).contribution[0, 0]
    for block in net.model.layers:
        block.self_attn.o_proj.on = False
    off = sk.run(model, prompts, [sk.Contribution()]).contribution[0, 0]
    assert float(abs(on - off).max()) > 0.05
    np.testing.assert_allclose(off, plain[0], rtol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_int8_weights_are_read_as_the_module_applies_them():
    net = tiny("llama", num_hidden_layers=2)
    plain = read(net)
    torch.ao.quantization.quantize_dynamic(net, {torch.nn.Linear}, inplace=True)
    found = read(net)
    assert float(abs(found - plain).max() / plain.max()) < 0.05


@pytest.mark.parametrize(
    ("model_type", "between"), [("qwen3_next", qwen_gate), ("afmoe", afmoe_gate), ("bitnet", held_norm)]
)
def test_gates_and_norms_before_the_projection_are_part_of_what_is_written(model_type, between):
    net = made(model_type)
    wanted = by_definition(net, IDS, between)
    raw = by_definition(net, IDS, nothing)
    assert float((wanted.sum() / raw.sum()).log().abs()) > 0.05, "the gate must matter, or nothing is tested"
    assert_reads(net, wanted)


@pytest.mark.parametrize("model_type", ["qwen3_next", "bitnet"])
def test_padding_changes_no_contribution_behind_a_gate(model_type):
    net = made(model_type)
    model = sk.load_model(net)
    prompts = sk.Prompts.from_ids([IDS, IDS[:5]], model)
    together = sk.run(model, prompts, [sk.Contribution()], batch_size=2).contribution
    alone = sk.run(model, prompts, [sk.Contribution()], batch_size=1).contribution
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "qwen3_next", "bitnet"])
def test_a_value_that_is_zeroed_writes_nothing(name):
    net = tiny("llama", num_hidden_layers=2) if name == "llama" else made(name)
    before, after = read(net), read(net, [sk.ZeroValues("first")])
    assert float(before.sel(role="bos").min()) > 0
    assert float(after.sel(role="bos").max()) == 0
    assert float(after.sel(role="text")[0].min()) > 0


@pytest.mark.parametrize("name", ["llama", "qwen3_next"])
def test_a_gated_head_writes_that_much_less(name):
    net = tiny("llama", num_hidden_layers=2) if name == "llama" else made(name)
    before, after = read(net), read(net, [sk.GateHeads(0.25, heads={0: [1, 3]})])
    np.testing.assert_allclose(after[0, [1, 3]], 0.25 * before[0, [1, 3]], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after[0, [0, 2]], before[0, [0, 2]], rtol=1e-5, atol=1e-6)


def test_a_second_look_at_a_call_counts_no_edit_twice():
    net = made("qwen3_next")
    model = sk.load_model(net)
    prompts = sk.Prompts.from_ids([IDS], model)
    edits = [sk.CalibrateSinks(threshold=0.1)]
    plain, read_twice = (sk.run(model, prompts, probes, edits) for probes in ([sk.KeyMass()], [sk.Contribution()]))
    assert json.loads(plain.attrs["edit_counts"])[0]["fired"] > 0
    assert read_twice.attrs["edit_counts"] == plain.attrs["edit_counts"]


def test_a_head_that_is_taken_out_writes_nothing():
    net = tiny("llama", num_hidden_layers=2)
    assert float(read(net, [sk.AblateHeads({0: [2]})])[0, 2].max()) == 0


class Bent(torch.nn.Linear):
    def forward(self, x):
        return torch.tanh(super().forward(x))


def test_a_projection_that_is_not_linear_is_refused():
    net = tiny("llama", num_hidden_layers=2)
    net.model.layers[1].self_attn.o_proj = Bent(32, 32)
    told = r"the output projection of layer 1 \(model\.layers\.1\.self_attn\.o_proj, Bent\) is not linear"
    with pytest.raises(UnsupportedModelError, match=told):
        read(net)


def test_what_is_neither_gate_nor_norm_is_refused():
    net = tiny("llama", num_hidden_layers=2)
    attention = net.model.layers[1].self_attn
    attention.o_proj = torch.nn.Sequential(torch.nn.Tanh(), attention.o_proj)
    with pytest.raises(UnsupportedModelError, match=r"layer 1 .* does more to the outputs of its heads before W_O"):
        read(net)


@pytest.mark.parametrize("name", ["llama", "qwen3_next"])
def test_a_head_whose_output_is_replaced_is_nan_and_the_others_are_as_they_were(name):
    net = tiny("llama", num_hidden_layers=2) if name == "llama" else made(name)
    before, after = read(net), read(net, [sk.AblateHeads({1: [2]}, how="mean")])
    assert bool(np.isnan(after[1, 2]).all())
    np.testing.assert_allclose(after[1, [0, 1, 3]], before[1, [0, 1, 3]], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after[0], before[0], rtol=1e-5, atol=1e-6)
