import copy
import subprocess

import numpy as np
import oracle
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from models.backends.lens_models import LISTS, bridge, bridged, differences, eager, logits_of, model, prompts
from sinkscope import probes as p
from sinkscope.engine.run import run
from sinkscope.errors import ProbeError, UnsupportedModelError
from sinkscope.models.backends.lens import LensBackend, to_bridge
from sinkscope.models.handle import load_model
from sinkscope.prompts import Prompts
from sinkscope.roles import MEASURED_ROLES
from sinkscope.testing import pixels, tiny
from sinkscope.testing.tiny import randomise

BOTH = ("llama", "gpt2", "gpt_neox", "gemma2", "qwen2", "mistral", "gpt_oss")
DELEGATED = ("opt", "bert")
BYPASS = ("gptj", "gpt_neo", "falcon", "bloom", "mpt")
TOLERANCE = 1e-5


def probes(name, *more):
    every = [
        p.KeyMass(), p.RoleShare(), p.Entropy(), p.RowSum(), p.MaxAttention(keys="first", queries="all"),
        p.ValueNorm(), p.KeyNorm(), p.Contribution(), p.ResidualNorm(), p.MassiveActivations(top=5), p.SinkDims(),
    ]  # fmt: skip
    return [*every, *more, *([] if name == "bert" else [p.TokenLoss()])]


def assert_equal(first, second, tolerance=TOLERANCE):
    scale = {name: max(1.0, float(np.nanmax(np.abs(first[name].values)))) for name in first.data_vars}
    worst = {name: value / scale[name] for name, value in differences(first, second).items()}
    assert max(worst.values()) <= tolerance, worst


@pytest.mark.parametrize("size", [1, 3], ids=["unpadded", "padded"])
@pytest.mark.parametrize("name", BOTH)
def test_both_backends_read_the_same(name, size):
    asked = probes(name, p.LogSumExp(), p.Logits(positions="all"))
    lens = run(bridged(name), prompts(name), asked, batch_size=size)
    own = run(model(name), prompts(name), asked, batch_size=size)
    assert_equal(own, lens)
    assert list(own.site.values) == list(lens.site.values)
    assert list(own.kv_of_head.values) == list(lens.kv_of_head.values)
    assert (lens.attrs["backend"], lens.attrs["path"], own.attrs["backend"]) == ("lens", "dense", "transformers")
    assert lens.attrs["implicit_sink"] == own.attrs["implicit_sink"] == int(name == "gpt_oss")


@pytest.mark.parametrize("name", DELEGATED)
def test_attention_left_to_transformers_is_read_the_same(name):
    lens, own = (run(m(name), prompts(name), probes(name), batch_size=3) for m in (bridged, model))
    assert_equal(own, lens)
    assert list(own.site.values) == list(lens.site.values)
    assert lens.attrs["causal"] == int(name == "opt")


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_named_maps_are_kept_for_their_layer_and_heads(name):
    asked = [p.AttentionMap(layers=[1], heads=[0, 3])]
    lens, own = (run(m(name), prompts(name), asked, batch_size=3) for m in (bridged, model))
    assert_equal(own, lens)
    assert lens.attention.shape[1:3] == (1, 2)


def test_a_vision_encoder_is_its_own_tower():
    network = tiny("vit")
    images = list(pixels(network, batch=2))
    through = load_model(network, backend="lens")
    asked = [p.KeyMass(), p.Entropy(), p.ValueNorm(), p.ResidualNorm()]
    lens = run(through, Prompts.from_images(images, through), asked)
    own_model = load_model(network)
    own = run(own_model, Prompts.from_images(images, own_model), asked)
    assert_equal(own, lens)
    assert (through.backend.default_tower, lens.attrs["causal"]) == ("vision", 0)


def fused(count, index):
    """Values or keys of a joint projection that keeps one head's query, key and value together."""
    return lambda out: out.unflatten(-1, (4, count, 8))[..., index, :]


SPLITS = {
    "gptj": ("transformer.h.{}.attn", "out_proj", ("k_proj", "v_proj"), [lambda out: out.unflatten(-1, (4, 8))] * 2),
    "gpt_neo": (
        "transformer.h.{}.attn.attention", "out_proj", ("k_proj", "v_proj"), [lambda out: out.unflatten(-1, (4, 8))] * 2
    ),
    "falcon": (
        "transformer.h.{}.self_attention", "dense", ("query_key_value",) * 2,
        [lambda out: out.unflatten(-1, (6, 8))[..., [4], :], lambda out: out.unflatten(-1, (6, 8))[..., [5], :]],
    ),
    "bloom": ("transformer.h.{}.self_attention", "dense", ("query_key_value",) * 2, [fused(3, 1), fused(3, 2)]),
    "mpt": (
        "transformer.blocks.{}.attn", "out_proj", ("Wqkv",) * 2,
        [lambda out: out.chunk(3, -1)[1].unflatten(-1, (4, 8)), lambda out: out.chunk(3, -1)[2].unflatten(-1, (4, 8))],
    ),
}  # fmt: skip
"""Where the library keeps the projections of these models, and how their outputs split into keys and values."""


@torch.no_grad()
def library(name, ids):
    """Maps, keys, values, W_O of every layer, and logits, as transformers itself makes them for one prompt."""
    network, (where, write, parts, cuts) = eager(name), SPLITS[name]
    layers = len(network.transformer.blocks if name == "mpt" else network.transformer.h)
    kept, handles = {}, []
    for layer in range(layers):
        for what, part in zip(("key", "value"), parts, strict=True):
            module = network.get_submodule(f"{where.format(layer)}.{part}")
            handles.append(
                module.register_forward_hook(lambda _m, _a, out, at=(layer, what): kept.__setitem__(at, out))
            )
    out = network(input_ids=torch.tensor([ids]), output_attentions=True)
    for handle in handles:
        handle.remove()
    found = []
    for layer in range(layers):
        key, value = (
            cut(kept[layer, what])[0].transpose(0, 1) for what, cut in zip(("key", "value"), cuts, strict=True)
        )
        weight = network.get_submodule(f"{where.format(layer)}.{write}").weight
        found.append((out.attentions[layer][0].double(), key, value.double(), weight.T.unflatten(0, (4, 8)).double()))
    return found, out.logits[0]


@pytest.mark.parametrize("size", [1, 3], ids=["unpadded", "padded"])
@pytest.mark.parametrize("name", BYPASS)
def test_models_that_bypass_the_interface_agree_with_the_library(name, size):
    handle = model(name)
    assert (handle.backend.name, handle.backend.reading) == ("lens", "dense")
    ds = run(handle, prompts(name), [*probes(name), p.Logits(positions="all")], batch_size=size)
    for i, ids in enumerate(LISTS):
        layers, logits = library(name, ids)
        n, roles = len(ids), prompts(name).roles[i]
        np.testing.assert_allclose(ds.logits[i, :n], logits, atol=TOLERANCE * float(logits.abs().max()))
        loss = oracle.token_loss(logits, torch.tensor(ids))
        np.testing.assert_allclose(ds.token_loss[i, : n - 1], loss, atol=TOLERANCE)
        for layer, (weights, key, value, write) in enumerate(layers):
            window = 5 if name == "gpt_neo" and layer == 1 else None
            seen = oracle.causal(n, window=window)[0]
            assert float(weights[:, ~seen].abs().max()) == 0.0
            at = {"prompt": i, "layer": layer}
            wanted = {
                "key_mass": oracle.key_mass(weights, seen), "entropy": oracle.entropy(weights),
                "row_sum": weights.sum(-1), "max_attention": weights[..., 0],
                "value_norm": value.norm(dim=-1), "key_norm": key.norm(dim=-1),
                "contribution": oracle.contribution(weights, value, write, roles, len(MEASURED_ROLES)),
                "role_share": oracle.role_share(weights, roles, len(MEASURED_ROLES))[:, 1:].mean(1),
            }  # fmt: skip
            for statistic, expected in wanted.items():
                found = ds[statistic].isel(at).values[:, : expected.shape[1]]
                np.testing.assert_allclose(found, expected, atol=2e-5, err_msg=f"{name} layer {layer} {statistic}")


@pytest.mark.parametrize("name", BYPASS)
def test_padding_changes_no_reading(name):
    one, three = (run(bridged(name), prompts(name), probes(name), batch_size=size) for size in (1, 3))
    assert_equal(one, three)


def test_the_residual_stream_of_a_bypassing_model_is_that_of_its_blocks():
    network, kept = eager("bloom"), {}
    blocks = network.transformer.h
    handles = [
        block.register_forward_hook(lambda _m, _a, out, at=i: kept.__setitem__(at, out[0]))
        for i, block in enumerate(blocks)
    ]
    logits_of(network, LISTS[0])
    for handle in handles:
        handle.remove()
    ds = run(bridged("bloom"), prompts("bloom"), [p.ResidualNorm()])
    for layer in range(3):
        found = ds.residual_norm.sel(prompt=0, site=f"{layer}.post").values
        np.testing.assert_allclose(found, kept[layer].reshape(-1, 32).norm(dim=-1), rtol=1e-5)


def state(network):
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()]
    return hooks, {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_a_bridge_is_left_as_it_was(name):
    held = bridge(name)
    mine = []
    held.add_hook("blocks.0.hook_resid_post", lambda tensor, hook: mine.append(1))
    before, hooks = logits_of(held, LISTS[0]), state(held)
    run(bridged(name), prompts(name), probes(name), batch_size=3)
    after = state(held)
    assert hooks[0] == after[0]
    assert all(torch.equal(tensor, after[1][key]) for key, tensor in hooks[1].items())
    assert torch.equal(before, logits_of(held, LISTS[0]))
    assert len(mine) >= 3
    held.reset_hooks()


def test_after_an_exception_no_hook_is_left(monkeypatch):
    held = bridge("llama")
    before, hooks = logits_of(held, LISTS[0]), state(held)[0]

    def fail(*_args):
        raise RuntimeError("a probe went wrong")

    monkeypatch.setattr(p.Entropy, "at_layer", fail)
    with pytest.raises(RuntimeError, match="a probe went wrong"):
        run(bridged("llama"), prompts("llama"), [p.Entropy()])
    assert state(held)[0] == hooks
    assert torch.equal(before, logits_of(held, LISTS[0]))


def test_to_bridge_leaves_the_model_alone():
    network = tiny("gpt2").train()
    network.config._attn_implementation = "sdpa"
    before = copy.deepcopy(network.state_dict())
    made = to_bridge(network)
    assert network.training
    assert not made.original_model.training
    assert network.config._attn_implementation == "sdpa"
    assert type(network.transformer.h[0].attn).__module__.startswith("transformers.")
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert not {t.data_ptr() for t in network.parameters()} & {t.data_ptr() for t in made.original_model.parameters()}


def test_the_bridge_of_a_bridge_is_a_copy():
    copied = bridged("llama").to_bridge()
    assert copied is not bridge("llama")
    expected = logits_of(bridge("llama"), LISTS[0])
    assert torch.equal(logits_of(copied, LISTS[0]), expected)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(logits_of(bridge("llama"), LISTS[0]), expected)


def test_bfloat16_maps_are_reduced_in_float32():
    lens = load_model(to_bridge(tiny("llama").bfloat16()))
    own = load_model(tiny("llama").bfloat16())
    asked = [p.KeyMass(), p.Entropy(), p.ValueNorm()]
    first, second = (run(m, Prompts.from_ids(LISTS, m), asked, batch_size=3) for m in (lens, own))
    worst = differences(first, second)
    assert worst["key_mass"] < 0.03
    assert worst["entropy"] < 0.1


def test_an_architecture_without_adapter_is_refused():
    with pytest.raises(
        UnsupportedModelError, match=r"BertModel: TransformerLens has no adapter .* language-model head"
    ):
        to_bridge(tiny("bert_base"))


def test_nothing_is_installed(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("something was about to be installed")

    monkeypatch.setattr(subprocess, "check_call", refuse)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None if name == "torchvision" else object())
    with pytest.raises(UnsupportedModelError, match=r"needs torchvision .* install it by itself\. Install it first"):
        to_bridge(tiny("qwen2_5_vl"))


def test_a_bridge_with_other_logits_is_refused():
    # The library's own eager path of Falcon counts ALiBi twice, its default path once; the bridge follows the former.
    with pytest.raises(
        UnsupportedModelError, match=r"computes other logits than the model itself \(largest difference 0"
    ):
        to_bridge(tiny("falcon", alibi=True))


def test_a_bridge_that_cannot_be_built_says_why():
    with pytest.raises(UnsupportedModelError, match=r"could not build a bridge of this model \(split_with_sizes"):
        to_bridge(tiny("falcon", new_decoder_architecture=True, num_kv_heads=2))


def test_where_neither_backend_serves_run_refuses_and_the_table_says_so():
    handle = load_model(tiny("falcon", alibi=True))
    assert handle.capabilities().reading == "none"
    assert "TransformerLens cannot serve it either" in handle.capabilities().why_not
    with pytest.raises(UnsupportedModelError, match="TransformerLens cannot serve it either"):
        run(handle, Prompts.from_ids(LISTS, handle), [p.KeyMass()])


def test_folded_weights_give_weights_but_no_magnitudes():
    folded = to_bridge(tiny("llama"))
    folded.enable_compatibility_mode(disable_warnings=True)
    handle = load_model(folded)
    first = run(handle, Prompts.from_ids(LISTS, handle), [p.KeyMass(), p.Entropy()], batch_size=3)
    second = run(bridged("llama"), prompts("llama"), [p.KeyMass(), p.Entropy()], batch_size=3)
    assert_equal(first, second, 1e-4)
    for probe, what in ((p.ValueNorm(), "value_norm"), (p.ResidualNorm(), "the residual stream")):
        with pytest.raises(UnsupportedModelError, match=rf"{what}: this bridge's weights were folded and centred"):
            run(handle, Prompts.from_ids(LISTS, handle), [probe])


def test_hooks_that_never_fire_are_said_to_be_silent():
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    network = tiny("opt")
    network.set_attn_implementation("sdpa")
    backend = LensBackend(build_bridge_from_module(network, "OPTForCausalLM", hf_config=network.config))
    assert (backend.reading, backend.towers, backend.edits) == ("none", {}, False)
    assert "no attention weights in layers [0, 1, 2] (attention implementation 'sdpa')" in backend.why_not


def test_log_sum_exp_needs_scores():
    with pytest.raises(
        UnsupportedModelError, match=r"no attention scores before the softmax for blocks\.0\.attn, only"
    ):
        run(bridged("gptj"), prompts("gptj"), [p.LogSumExp()])
    with pytest.raises(UnsupportedModelError, match="MPT's position biases count from the end of the batch"):
        run(bridged("mpt"), prompts("mpt"), [p.LogSumExp()])


def test_probes_of_missing_parts_are_refused_as_elsewhere():
    with pytest.raises(ProbeError, match=r"AttentionMap\(layers=\[7\]\)"):
        run(bridged("llama"), prompts("llama"), [p.AttentionMap(layers=[7], heads=[0])])


def gpt1():
    settings = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model("openai-gpt", **settings)).eval()
    randomise(network, 0)
    return network


def test_a_bridge_that_computes_a_padded_batch_otherwise_is_refused_there_and_right_alone():
    handle = load_model(gpt1())
    asked = [p.KeyMass(), p.Logits(positions="all")]
    pair = Prompts.from_ids([[1, 5, 9, 20, 7], [1, 6]], handle)
    told = r"OpenAIGPTLMHeadModel: TransformerLens computes a prompt in a padded batch otherwise than alone\. Use"
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match=told):
            run(handle, pair, asked, batch_size=2)
    found = run(handle, pair, asked, batch_size=1)
    for row, ids in enumerate([[1, 5, 9, 20, 7], [1, 6]]):
        wanted = logits_of(handle.model, ids).logits[0]
        np.testing.assert_allclose(found.logits[row, : len(ids)], wanted, atol=1e-5)
    even = Prompts.from_ids([[1, 5, 9], [1, 6, 8]], handle)
    together, apart = (run(handle, even, asked, batch_size=size) for size in (2, 1))
    np.testing.assert_allclose(together.logits, apart.logits, atol=1e-5)
