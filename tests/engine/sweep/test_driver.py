"""A sweep gives what the plain loop over ``run`` gives, on every architecture, and leaves the model as it was."""

import json
import logging

import numpy as np
import pytest

import sinkscope as sk
from sinkscope import testing
from sinkscope.engine.sweep import runner

TEXT_PROBES = [sk.KeyMass(), sk.Entropy(), sk.ResidualNorm(), sk.ValueNorm(), sk.RoleShare(queries="all")]


def prompts_of(name, model):
    if model.kind == "vision":
        return sk.Prompts.from_inputs(testing.inputs(model.model), model)
    if model.kind == "vlm" or name in testing.names("dual"):
        return sk.Prompts.from_inputs(testing.inputs(model.model, batch=1), model)
    rows = testing.text_ids(model.model, batch=3, length=9)
    return sk.Prompts.from_ids([row[:n].tolist() for row, n in zip(rows, (9, 6, 7), strict=True)], model)


def variants_of(model):
    tower = model.backend.towers[model.backend.default_tower]
    last = tower.depth - 1
    middle = [site.name for site in tower.residual if site.name == f"{last}.mid" and not site.post_norm]
    return {
        "none": [],
        "all layers": [sk.ScaleKeys(0.3)],
        "one head": [sk.ScaleKeys(3.0, layers=[last], heads=[1])],
        "another head": [sk.MaskKeys("first", layers=[last], heads=[0])],
        "head out": [sk.AblateHeads({last: [0]})],
        "stream": [sk.SetActivations(f"{last - 1}.post", dims=[3, 4], value=2.0)],
        "late stream": [sk.SetActivations(f"{last}.post", dims=[3], value=2.0)],
        "two": [sk.ZeroValues("first", layers=[last]), sk.NullKey(0.5, layers=[last])],
        "identity": [sk.ScaleKeys(1.0)],
        **{site: [sk.SetActivations(site, dims=[3], value=2.0)] for site in middle},
    }


def hooks_of(network):
    return [
        (name, "forward" in vars(module), list(module._forward_pre_hooks), list(module._forward_hooks))
        for name, module in network.named_modules()
    ]


def assert_same_as_loop(model, prompts, variants, probes, found, batch_size=1, tolerance=1e-5):
    assert found["edit"].values.tolist() == list(variants)
    for label, edits in variants.items():
        alone = sk.run(model, prompts, probes, edits, batch_size=batch_size)
        one = found.sel(edit=label, drop=True)
        assert set(one.data_vars) == set(alone.data_vars)
        for name in alone.data_vars:
            wanted = alone[name].values
            scale = max(1.0, np.nanmax(np.abs(wanted)))
            assert one[name].dims == alone[name].dims
            np.testing.assert_allclose(
                one[name].values, wanted, atol=tolerance * scale, rtol=0, err_msg=f"{label}: {name}"
            )


@pytest.mark.parametrize(
    "name", [*testing.names("decoder"), *testing.names("encoder"), *testing.names("vision"), *testing.names("vlm")]
)
def test_sweep_equals_the_loop_over_run(name):
    model = sk.load_model(testing.tiny(name))
    prompts = prompts_of(name, model)
    probes = [*TEXT_PROBES, sk.TokenLoss()] if model.kind == "decoder" else TEXT_PROBES
    variants = variants_of(model)
    before = hooks_of(model.model)
    found = sk.sweep(model, prompts, variants, probes, executor="serial")
    assert hooks_of(model.model) == before
    assert_same_as_loop(model, prompts, variants, probes, found)
    assert found.attrs["executor"] == "serial"


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_batches_with_padding(name):
    model = sk.load_model(testing.tiny(name))
    prompts = prompts_of(name, model)
    probes = [sk.KeyMass(), sk.MaxAttention(keys="all", queries="all"), sk.Contribution(), sk.Logits()]
    variants = variants_of(model)
    found = sk.sweep(model, prompts, variants, probes, executor="serial", batch_size=3)
    assert_same_as_loop(model, prompts, variants, probes, found, batch_size=3)


def test_conditional_edits_are_counted_by_variant():
    model = sk.load_model(testing.tiny("llama"))
    prompts = prompts_of("llama", model)
    variants = {"calm": [sk.CalibrateSinks(threshold=0.2)], "never": [sk.CalibrateSinks(threshold=0.999)]}
    found = sk.sweep(model, prompts, variants, [sk.TokenLoss()], executor="serial")
    assert_same_as_loop(model, prompts, variants, [sk.TokenLoss()], found)
    counts = json.loads(found.attrs["edit_counts"])
    for label, edits in variants.items():
        alone = sk.run(model, prompts, [sk.TokenLoss()], edits)
        assert counts[label] == json.loads(alone.attrs["edit_counts"])


def test_maps_of_early_layers_are_taken_over():
    model = sk.load_model(testing.tiny("llama"))
    prompts = prompts_of("llama", model)
    probes = [sk.AttentionMap(layers=[0, 2], heads=[1, 3])]
    variants = {"none": [], "late": [sk.ScaleKeys(0.2, layers=[2])], "early": [sk.ScaleKeys(0.2, layers=[0])]}
    found = sk.sweep(model, prompts, variants, probes, executor="serial")
    assert_same_as_loop(model, prompts, variants, probes, found)
    early, late = found["attention"].sel(edit="early"), found["attention"].sel(edit="late")
    assert float(abs(early - late).sel(layer=0).max()) > 0.01
    np.testing.assert_array_equal(late.sel(layer=0).values, found["attention"].sel(edit="none", layer=0).values)


def test_number_of_variants_in_one_pass_changes_no_number(monkeypatch):
    model = sk.load_model(testing.tiny("llama"))
    prompts = prompts_of("llama", model)
    grid = sk.grid(sk.ScaleKeys, gamma=[0.2, 4.0], layers=range(3), heads=range(4))
    packed = sk.sweep(model, prompts, grid, [sk.TokenLoss(), sk.KeyMass()], executor="serial")
    monkeypatch.setitem(runner.TOKENS, "cpu", 1)
    single = sk.sweep(model, prompts, grid, [sk.TokenLoss(), sk.KeyMass()], executor="serial")
    for name in ("token_loss", "key_mass"):
        np.testing.assert_allclose(packed[name].values, single[name].values, atol=1e-5)


def test_grid_has_its_own_dimensions_and_a_baseline_without_them():
    model, _ = testing.planted_sink(0)
    prompts = sk.Prompts.from_ids([[1, 5, 9, 13, 21], [1, 8, 30]], model)
    grid = sk.grid(sk.ScaleKeys, gamma=[0.5, 2.0], layers=[1, 2, 3], heads=[0, 1])
    found = sk.sweep(model, prompts, grid, [sk.KeyMass()], executor="serial", baseline=True)
    assert found["key_mass"].dims == ("gamma", "edit_layer", "edit_head", "prompt", "layer", "head", "key")
    alone = sk.run(model, prompts, [sk.KeyMass()], [sk.ScaleKeys(2.0, layers=[3], heads=[1])])
    one = found["key_mass"].sel(gamma=2.0, edit_layer=3, edit_head=1)
    np.testing.assert_allclose(one.values, alone["key_mass"].values, atol=1e-5)
    plain = sk.run(model, prompts, [sk.KeyMass()])
    np.testing.assert_array_equal(found["key_mass_baseline"].values, plain["key_mass"].values)


def test_baseline_in_front_and_comparison():
    model, _ = testing.planted_sink(1)
    prompts = sk.Prompts.from_ids([[1, 5, 9, 13], [1, 8, 30, 4], [1, 40, 41, 42]], model)
    found = sk.sweep(model, prompts, {"mask": [sk.MaskKeys("first")]}, [sk.TokenLoss()], baseline=True)
    assert found["edit"].values.tolist() == ["baseline", "mask"]
    effect = sk.metrics.compare(found["token_loss"].mean("query"), to="baseline")
    assert effect["n"].values.tolist() == [3]
    direct = sk.run(model, prompts, [sk.TokenLoss()], [sk.MaskKeys("first")])["token_loss"].mean()
    plain = sk.run(model, prompts, [sk.TokenLoss()])["token_loss"].mean()
    assert float(effect["difference"][0]) == pytest.approx(float(direct - plain), abs=1e-5)


def test_model_that_cannot_be_entered_runs_whole_passes(monkeypatch):
    model = sk.load_model(testing.tiny("llama"))
    prompts = prompts_of("llama", model)
    block = model.model.model.layers[1]
    whole = type(block).forward
    calls = []

    def counting(self, hidden_states, *args, **kwargs):
        calls.append(1)
        # A block that looks at how often blocks have run: relayed passes differ. An addition, since a factor on the
        # last block would be removed by the final norm.
        return whole(self, hidden_states, *args, **kwargs) + 0.01 * (len(calls) % 3)

    monkeypatch.setattr(type(block), "forward", counting)
    found = sk.sweep(model, prompts, {"none": [], "late": [sk.ScaleKeys(0.2, layers=[2])]}, [sk.TokenLoss()])
    assert found.attrs["sharing"].startswith("full passes: starting at block 2 gave another result")


def test_variant_without_effect_is_named():
    model = sk.load_model(testing.tiny("llama"))
    prompts = sk.Prompts.from_ids([[1, 5, 9]], model)
    with pytest.raises(sk.EditHasNoEffect, match=r"sweep: variant 'nothing': MaskKeys\('image'\) changes nothing"):
        sk.sweep(model, prompts, {"none": [], "nothing": [sk.MaskKeys("image")]}, [sk.TokenLoss()])


def test_head_that_writes_nothing_is_found_though_its_pass_is_shared():
    network = testing.tiny("llama")
    layer = network.model.layers[1].self_attn
    layer.o_proj.weight.data[:, 8:16] = 0.0
    model = sk.load_model(network)
    prompts = prompts_of("llama", model)
    alone = {f"head {h}": [sk.ScaleKeys(0.5, layers=[1], heads=[h])] for h in range(4)}
    with pytest.raises(sk.EditHasNoEffect, match="variant 'head 1'"):
        sk.sweep(model, prompts, alone, [sk.TokenLoss()])


def test_memory_is_stated_before_it_starts(caplog):
    model = sk.load_model(testing.tiny("llama"))
    prompts = sk.Prompts.from_ids([[1, 5, 9]], model)
    with caplog.at_level(logging.INFO, logger="sinkscope"):
        sk.sweep(model, prompts, {"none": [], "masked": [sk.MaskKeys("first", layers=[1])]}, [sk.TokenLoss()])
    assert "sweep: 2 variants on 1 prompts in 2 passes; 0.0 MiB for the inputs of 1 blocks" in caplog.text


@pytest.mark.parametrize(
    ("variants", "options", "message"),
    [
        ({}, {}, "sweep: variants are a mapping of labels to lists of edits, got dict without an entry"),
        ([sk.MaskKeys("first")], {}, "sweep: variants are a mapping of labels to lists of edits, got list"),
        ({"": []}, {}, "sweep: the label '' is no text"),
        ({"a": ["mask"]}, {}, "sweep: variant 'a' holds 'mask', which is no edit"),
        ({"a": [sk.ScaleKeys(0.5, layers=[9])]}, {}, r"ScaleKeys\(layers=9\): this model has layers 0..2"),
        ({"baseline": []}, {"baseline": True}, "there is a variant 'baseline' already"),
        ({"a": []}, {"executor": "cloud"}, r"sweep\(executor='cloud'\): use 'serial', 'processes', or an executor"),
    ],
)
def test_what_is_refused(variants, options, message):
    model = sk.load_model(testing.tiny("llama"))
    prompts = sk.Prompts.from_ids([[1, 5, 9]], model)
    with pytest.raises(sk.EditError, match=message):
        sk.sweep(model, prompts, variants, [sk.TokenLoss()], **options)
