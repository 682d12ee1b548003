"""Models whose blocks do not all make one attention call: layers and sites are the blocks' own, and so are edits."""

import copy

import numpy as np
import oracle
import pandas as pd
import pytest
import torch
import xarray as xr

import sinkscope as sk
from parity.common import TOLERANCE, assert_close, error, id_lists, model, network
from sinkscope import metrics, plot, testing
from sinkscope.errors import EditError, MetricError, ProbeError
from sinkscope.report.sinks import find_sinks

KINDS = {
    "qwen3_next": ["linear", "attention", "linear", "attention"],
    "lfm2": ["conv", "attention", "conv", "conv"],
    "jamba": ["ssm", "ssm", "attention", "ssm"],
    "nemotron_h": ["ssm", "mlp", "attention", "mlp", "attention"],
    "recurrent_gemma": ["recurrent", "sliding", "recurrent", "sliding"],
    "minimax": ["linear", "attention", "linear", "attention"],
    "falcon_h1": ["attention+ssm"] * 3,
    "zamba2": ["ssm", "attention+ssm", "ssm", "attention+ssm", "ssm"],
    "diffllama": ["attention"] * 3,
    "longcat_flash": ["attention"] * 2,
}
"""Kinds of the blocks of each tiny model, which the configuration fixes."""

TWICE = ("diffllama", "longcat_flash")
WITHOUT = [name for name in KINDS if name not in TWICE and not all("attention" in k for k in KINDS[name])]
PROBES = [
    sk.KeyMass(), sk.Entropy(), sk.ValueNorm(), sk.ResidualNorm(), sk.MassiveActivations(top=3),
    sk.SinkDims(dims=(3, 7)),
]  # fmt: skip


def blocks_of(net):
    return net.model.layers


def calls_by_layer(net, ids):
    """Attention calls of each block, in order, from the library's own queries and keys; and each block's ends."""
    captured = oracle.capture(net, input_ids=torch.tensor([ids]), use_cache=False)
    layers = [[] for _ in blocks_of(net)]
    for call in captured.calls:
        layers[int(call.path.split(".")[2])].append(call)
    return layers, captured


def streams(net, ids):
    """The residual stream before and after every block, from hooks of this test."""
    found, handles = {}, []
    for layer, block in enumerate(blocks_of(net)):

        def before(_module, args, kwargs, layer=layer):
            found["embed" if layer == 0 else f"{layer - 1}.post"] = (args[0] if args else kwargs["hidden_states"])[0]

        def after(_module, _args, output, layer=layer):
            found[f"{layer}.post"] = (output[0] if isinstance(output, tuple) else output)[0]

        handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(block.register_forward_hook(after))
    with torch.no_grad():
        net(input_ids=torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def test_every_tiny_model_of_the_kind_is_tested():
    assert set(KINDS) == set(testing.names("hybrid"))


@pytest.mark.parametrize("name", KINDS)
def test_layers_are_the_blocks_own_numbers(name):
    lists = id_lists(name)
    reading = sk.run(model(name), sk.Prompts.from_ids(lists, model(name)), PROBES, batch_size=2)
    assert reading.layer.values.tolist() == list(range(len(KINDS[name])))
    assert reading.block_kind.values.tolist() == KINDS[name]
    assert model(name).capabilities().layers == len(KINDS[name])
    for index, ids in enumerate(lists):
        layers, _ = calls_by_layer(network(name), ids)
        for layer, calls in enumerate(layers):
            at = reading.isel(prompt=index).sel(layer=layer)
            if not calls:
                assert "attention" not in KINDS[name][layer]
                assert bool(at.key_mass.isnull().all())
                assert bool(at.entropy.isnull().all())
                assert bool(at.value_norm.isnull().all())
            for turn, call in enumerate(calls):
                own = at.isel(call=turn) if name in TWICE else at
                n, weights, seen = len(ids), call.weights[0], call.visible[0]
                assert_close(own.key_mass[:, :n], oracle.key_mass(weights, seen), f"{name} {layer} key_mass")
                assert_close(own.entropy[:, :n], oracle.entropy(weights), f"{name} {layer} entropy")
                assert_close(own.value_norm[:, :n], call.value[0].norm(dim=-1), f"{name} {layer} value_norm")
    assert ("call" in reading.key_mass.dims) == (name in TWICE)


@pytest.mark.parametrize("name", KINDS)
def test_sites_run_over_all_blocks(name):
    ids = id_lists(name)[0]
    reading = sk.run(model(name), sk.Prompts.from_ids([ids], model(name)), PROBES)
    found = streams(network(name), ids)
    sites = [site for site in reading.site.values.tolist() if not site.endswith("mid")]
    assert sites == ["embed", *(f"{layer}.post" for layer in range(len(KINDS[name])))]
    for site, state in found.items():
        at = reading.isel(prompt=0).sel(site=site)
        assert_close(at.residual_norm, state.norm(dim=-1), f"{name} {site}")
        assert_close(at.phi, oracle.phi(state, (3, 7)), f"{name} {site}")
        assert_close(at.top_value, oracle.massive(state, 3)[0], f"{name} {site}")
        kind = "embed" if site == "embed" else KINDS[name][int(site.split(".")[0])]
        assert str(at.site_kind.values) == kind


def doubled(net):
    """A copy in float64; experts run one by one, since the grouped product has no such type."""
    copied = copy.deepcopy(net).double()
    for config in {id(m.config): m.config for m in copied.modules() if hasattr(m, "config")}.values():
        config._experts_implementation = "eager"
    return copied


MASKED = {}


def masking(module, query, key, value, attention_mask=None, scaling=None, **kwargs):
    """Attention whose first key is hidden in one block, by the definition."""
    own, _ = oracle_call(module, query, key, value, attention_mask, scaling, kwargs)
    return own, None


def oracle_call(module, query, key, value, attention_mask, scaling, kwargs):
    rows = query.shape[2]
    visible = oracle.causal(rows).expand(query.shape[0], -1, -1).clone()
    if attention_mask is not None:
        visible = (attention_mask == 0)[:, 0].expand(query.shape[0], -1, -1).clone()
    if id(module) in MASKED["modules"]:
        visible[:, 1:, 0] = False  # row 0 sees nothing else and is left alone
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    found = oracle.attention(query, key, value, visible, scale, kwargs.get("softcap"))
    return found.output.transpose(1, 2).to(query.dtype).contiguous(), found


oracle.AttentionInterface.register("masking", masking)
oracle.AttentionMaskInterface.register("masking", oracle.eager_mask)


@pytest.mark.parametrize("name", KINDS)
def test_an_edit_of_a_layer_is_made_in_that_block(name):
    """Against dense attention in float64 whose key is hidden in the modules of that block alone."""
    ids = id_lists(name)[0]
    layers, _ = calls_by_layer(network(name), ids)
    layer = max(i for i, calls in enumerate(layers) if calls)
    edited = sk.run(
        model(name), sk.Prompts.from_ids([ids], model(name)), [sk.Logits(positions="all")],
        [sk.MaskKeys("first", layers=[layer])],
    )  # fmt: skip
    paths = {call.path for call in layers[layer]}
    wanted, plain = (masked_logits(net, paths, ids) for net in (doubled(network(name)), copy.deepcopy(network(name))))
    # On some processors float32 itself is farther from float64 than the bound, in MiniMax's linear layers.
    assert_close(edited.logits[0], wanted, name, max(TOLERANCE, 2 * error(plain, wanted)))


def masked_logits(net, paths, ids):
    """Logits with the first key hidden in the modules at ``paths``, by the definition, in the type of the model."""
    MASKED["modules"] = {id(net.get_submodule(path)) for path in paths}
    with oracle.implementation(net, "masking"), torch.no_grad():
        return net(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


@pytest.mark.parametrize("name", WITHOUT)
def test_an_edit_of_a_block_without_attention_is_refused_by_name(name):
    layer = next(i for i, kind in enumerate(KINDS[name]) if "attention" not in kind and kind != "sliding")
    prompts = sk.Prompts.from_ids(id_lists(name)[:1], model(name))
    told = rf"MaskKeys\(layers={layer}\): block {layer} has no attention, it is of kind '{KINDS[name][layer]}'"
    with pytest.raises(EditError, match=told):
        sk.run(model(name), prompts, [sk.KeyMass()], [sk.MaskKeys("first", layers=[layer])])
    told = rf"heads=.*block {layer} has no attention"
    with pytest.raises(EditError, match=told):
        sk.run(model(name), prompts, [sk.KeyMass()], [sk.MaskKeys("first", heads={layer: [0]})])
    with pytest.raises(ProbeError, match=rf"block {layer} has no attention"):
        sk.run(model(name), prompts, [sk.AttentionMap(layers=[layer], heads=[0])])


@pytest.mark.parametrize("name", WITHOUT)
def test_the_stream_of_a_block_without_attention_can_be_edited(name):
    layer = next(i for i, kind in enumerate(KINDS[name]) if "attention" not in kind and kind != "sliding")
    ids = id_lists(name)[0]
    edit = sk.SetActivations(f"{layer}.post", dims=[5], value=3.0, keys="first")
    found = sk.run(
        model(name), sk.Prompts.from_ids([ids], model(name)), [sk.Logits(positions="all"), sk.ResidualNorm()], [edit]
    )
    double = doubled(network(name))

    def change(_module, _args, output):
        state = (output[0] if isinstance(output, tuple) else output).clone()
        state[0, 0, 5] = 3.0
        return (state, *output[1:]) if isinstance(output, tuple) else state

    handle = blocks_of(double)[layer].register_forward_hook(change)
    with torch.no_grad(), oracle.implementation(double, "eager"):
        wanted = double(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    handle.remove()
    assert_close(found.logits[0], wanted, name)


@pytest.mark.parametrize("name", ["lfm2", "nemotron_h"])
def test_metrics_leave_the_blocks_without_attention_out(name):
    """Every mean over layers is that of the blocks that attend, and a profile has a gap where there is none."""
    reading = sk.run(model(name), sk.Prompts.from_ids(id_lists(name, (16, 13, 14)), model(name)), PROBES)
    attend = [i for i, kind in enumerate(KINDS[name]) if kind == "attention"]
    only = reading.sel(layer=attend)
    for metric in (metrics.sink_rate, metrics.row_entropy, metrics.value_drain):
        xr.testing.assert_allclose(
            metric(reading).mean("layer") if "layer" in metric(reading).dims else metric(reading),
            metric(only).mean("layer") if "layer" in metric(only).dims else metric(only),
        )
    profile = metrics.sink_rate(reading, over=("prompt", "head"))
    assert np.isnan(profile.values).tolist() == [i not in attend for i in range(len(KINDS[name]))]
    assert profile.n.values.tolist() == [4 * 3 if i in attend else 0 for i in range(len(KINDS[name]))]
    sinks = find_sinks(reading)
    assert (sinks.n, sinks.any_sink) == (find_sinks(only).n, find_sinks(only).any_sink)
    assert [kind.heads for kind in sinks.kinds] == [kind.heads for kind in find_sinks(only).kinds]
    assert not metrics.sink_mask(reading).drop_sel(layer=attend).any()
    pd.testing.assert_frame_equal(metrics.sink_tokens(reading), metrics.sink_tokens(only))


def test_a_report_of_a_model_that_attends_twice_asks_for_one_call():
    reading = sk.run(model("diffllama"), sk.Prompts.from_ids(id_lists("diffllama"), model("diffllama")), PROBES)
    assert reading.key_mass.dims == ("prompt", "layer", "call", "head", "key")
    assert reading.call.values.tolist() == [0, 1]
    with pytest.raises(MetricError, match=r"find_sinks: this reading has the dimension 'call'\. Select one"):
        find_sinks(reading)
    assert find_sinks(reading.sel(call=1)).n == 3 * 3 * 4


def test_figures_show_a_gap_where_a_block_has_no_attention():
    prompts = sk.Prompts.from_ids(id_lists("lfm2", (16, 13, 14)), model("lfm2"))
    reading = sk.run(model("lfm2"), prompts, [*PROBES, sk.RoleShare()])
    line = plot.layer_profile(metrics.sink_rate(reading, over=("prompt", "head"))).lines[0]
    assert np.isnan(line.get_ydata()).tolist() == [True, False, True, True]
    assert line.get_xdata().tolist() == [0, 1, 2, 3]
    image = plot.sink_map(reading.key_mass.isel(key=0).mean("prompt")).images[0].get_array()
    assert image.mask[:, 0].tolist() == [True, False, True, True]
    image = plot.entropy_map(reading.entropy.mean(["prompt", "query"])).images[0].get_array()
    assert image.mask[:, 0].tolist() == [True, False, True, True]
    bars = plot.role_share_by_layer(reading.role_share.mean(["prompt", "head"])).patches
    assert {bar.get_x() + bar.get_width() / 2 for bar in bars if bar.get_height() > 0} == {1.0}
