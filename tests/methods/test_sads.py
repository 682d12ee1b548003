from functools import cache

import numpy as np
import oracle
import pytest
import torch
import xarray as xr

import sinkscope as sk
from methods.results import check_result
from sinkscope import testing
from sinkscope.errors import EditError, MetricError, PromptError
from sinkscope.methods.sads import GAPS, SadsSettings, classify, measure, sads
from sinkscope.methods.sads_trigger import Trigger, find_trigger, measure_curves, trigger_layer
from sinkscope.roles import ROLE_INDEX

DIMS = ("prompt", "layer", "head")


@cache
def planted(family="llava"):
    return testing.planted_visual_sink(0, family)


def heads(values, layers=None):
    values = np.asarray(values, dtype=float)
    coords = {"prompt": np.arange(values.shape[0]), "layer": layers or np.arange(values.shape[1])}
    return xr.DataArray(values, dims=DIMS, coords=coords | {"head": np.arange(values.shape[2])})


@cache
def two_humps():
    """Two prompts, two layers, 20 heads: half look at the image; of the rest half have a low entropy."""
    rng = np.random.default_rng(0)
    largest, entropy = rng.normal(0.05, 0.01, (2, 2, 20)), rng.normal(2.5, 0.05, (2, 2, 20))
    largest[..., 10:] = rng.normal(0.5, 0.02, (2, 2, 10))
    entropy[..., :5] = rng.normal(0.4, 0.05, (2, 2, 5))
    return heads(largest), heads(entropy)


@pytest.mark.parametrize("scope", ["late_layers", "dataset"])
def test_heads_are_split_by_both_valleys_and_the_shared_head_stays(scope):
    split, kind = classify(*two_humps(), SadsSettings(scope=scope))
    assert split["bimodal"].all()
    wanted = ["shared"] + ["resink_isolated"] * 4 + ["resink_global"] * 5 + ["vision"] * 10
    for row in kind.values.reshape(-1, 20):
        assert row.tolist() == wanted


def test_a_fixed_fraction_keeps_the_highest_entropies():
    largest, entropy = two_humps()
    kind = classify(largest, entropy, SadsSettings(rule="top_fraction", fraction=0.25, scope="layer"))[1]
    assert (kind.isel(head=slice(10, None)) == "vision").all()
    for at in np.ndindex(2, 2):
        rest = np.arange(10)
        order = rest[np.argsort(-entropy.values[at][:10])]
        kept = [int(h) for h in order[: round(2.5)] if h != 0]
        assert sorted(kept) == np.flatnonzero(kind.values[at] == "resink_global").tolist()


def test_one_hump_is_not_split():
    rng = np.random.default_rng(1)
    largest = heads(rng.normal(0.2, 0.05, (1, 2, 20)))
    split, kind = classify(largest, heads(rng.normal(2, 0.1, (1, 2, 20))), SadsSettings())
    assert not split["bimodal"].any()
    assert set(kind.values.ravel().tolist()) == {"shared", "unsplit"}


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_what_heads_are_judged_by_is_what_the_dense_maps_say(family):
    model, prompts, _ = planted(family)
    found = measure(model, prompts.subset([1]), [2, 3])
    captured = oracle.capture(model.model, **prompts.batch([1]).inputs)
    calls = [call for call in captured.calls if "language_model" in call.path]
    roles = prompts.roles[1]
    visual = roles == ROLE_INDEX["image"]
    after = np.arange(len(roles)) > np.flatnonzero(visual)[-1]
    for layer in (2, 3):
        maps = calls[layer].weights[0].numpy()[:, after]
        np.testing.assert_allclose(
            found["max_visual_attention"].sel(layer=layer)[0], maps[..., visual].max(-1).mean(-1), atol=1e-5
        )
        rest = maps[..., ~visual]
        mean = (rest / rest.sum(-1, keepdims=True)).mean(1)
        wanted = -(mean * np.log(np.where(mean > 0, mean, 1))).sum(-1)
        np.testing.assert_allclose(found["non_vision_entropy"].sel(layer=layer)[0], wanted, atol=1e-5)


def test_the_procedure_gives_an_edit_for_each_prompt():
    model, prompts, truth = planted()
    result = sads(model, prompts, SadsSettings(start=1))
    assert result.kind.dims == DIMS
    assert result.kind["layer"].values.tolist() == [1, 2, 3]
    assert (result.kind.sel(head=0) == "shared").all()
    assert result.gaps == GAPS
    assert check_result(result).loc[1, "shared"] == 1
    for layer, head in truth.heads:
        if head:
            assert (result.kind.isel(prompt=[0, 1, 2]).sel(layer=layer, head=head) == "vision").all()
    for index, edit in enumerate(result.edits):
        heads = sk.metrics.head_list(result.dropped.isel(prompt=index))
        assert edit == sk.AblateHeads(heads, how="zero", allow_empty=not heads)
        sk.run(model, prompts.subset([index]), [sk.Logits()], [edit])


def test_controls_are_other_heads_of_the_same_layers():
    model, prompts, _ = planted()
    result = sads(model, prompts.subset([0, 1]), SadsSettings(start=2))
    dropped = xr.zeros_like(result.dropped)
    dropped.loc[{"layer": 2, "head": [2]}] = True
    changed = type(result)(**{**vars(result), "dropped": dropped})
    for edit in changed.controls(seed=3):
        drawn = dict(edit.heads)
        assert set(drawn) == {2}
        assert len(drawn[2]) == 1
        assert set(drawn[2]) <= {1, 3}
    dropped.loc[{"layer": 2, "head": [1, 2]}] = True
    with pytest.raises(MetricError, match=r"random_heads: layer 2 has 2 chosen heads and only 1 others"):
        changed.controls()


def test_sparsity_is_that_of_the_gradient_of_the_eager_maps():
    model, prompts, _ = planted()
    curves = measure_curves(model, prompts.subset([0]))
    network, inputs, roles = model.model, prompts.batch([0]).inputs, prompts.roles[0]
    visual = roles == ROLE_INDEX["image"]
    after = int(np.flatnonzero(visual)[-1]) + 1
    with oracle.implementation(network, "eager"):
        out = network(**inputs, output_attentions=True)
    loss = torch.nn.functional.cross_entropy(out.logits[0, after:-1], inputs["input_ids"][0, after + 1 :])
    gradients = torch.autograd.grad(loss, out.attentions)
    for layer, gradient in enumerate(gradients):
        block = gradient[0, :, after:][:, :, visual].numpy()
        assert float(curves["sparsity"][0, layer]) == pytest.approx(sk.metrics.hoyer_sparsity(block), rel=1e-4)
        size = np.abs(block)
        assert float(curves["small"][0, layer]) == pytest.approx((size < 1e-3 * size.max()).mean(), abs=2e-3)
    assert all(p.grad is None for p in network.parameters())


def test_key_variance_before_and_after_rotation():
    model, prompts, _ = planted()
    curves = measure_curves(model, prompts.subset([0]))
    captured = oracle.capture(model.model, **prompts.batch([0]).inputs)
    visual = prompts.roles[0] == ROLE_INDEX["image"]
    seen = []
    attention = model.model.model.language_model.layers[2].self_attn
    handle = attention.k_proj.register_forward_hook(lambda _m, _a, out: seen.append(out.detach()[0]))
    with torch.no_grad():
        model.model(**prompts.batch([0]).inputs)
    handle.remove()
    keys = seen[0].unflatten(-1, (2, -1)).numpy()[visual]
    np.testing.assert_allclose(curves["key_variance"][0, 2], keys.var(0).mean(-1), rtol=1e-4)
    calls = [call for call in captured.calls if "language_model" in call.path]
    rotated = calls[2].key[0].numpy()[:, visual].var(1).mean(-1)
    np.testing.assert_allclose(curves["key_variance_rotated"][0, 2], rotated, rtol=1e-4)


def test_the_trigger_is_the_first_late_jump_of_both_curves():
    flat = np.linspace(0, 0.1, 12)
    early, late, one = flat.copy(), flat.copy(), flat.copy()
    early[3:] += 1
    late[8:] += 1
    one[9:] += 1
    assert trigger_layer(late + early, late + early) == Trigger(8, True, "both curves jump at layer 8")
    found = trigger_layer(late, one)
    assert (found.layer, found.found) == (8, False)
    assert found.reason == "no layer where both curves jump; layer 8 is 0.625 of the depth"
    assert trigger_layer(early, early).found is False
    with pytest.raises(PromptError, match=r"trigger_layer: curves of 12 and 3 layers\. Give two of one length"):
        trigger_layer(flat, flat[:3])


def test_a_trigger_is_found_and_its_reason_told():
    model, prompts, _ = planted("qwen2_5_vl")
    trigger, curves = find_trigger(model, prompts.subset([0, 1]))
    assert curves["sparsity"].shape == (2, 4)
    assert ((curves["sparsity"] > 0) & (curves["sparsity"] < 1)).all()
    result = sads(model, prompts.subset([0]), SadsSettings(start=trigger))
    assert result.start_layer == trigger.layer
    assert result.gaps[-1] == trigger.reason


def test_what_is_refused():
    model, prompts, _ = planted()
    text = sk.Prompts.from_ids([[1, 5, 6]], model)
    with pytest.raises(EditError, match=r"SadsSettings\(start=9\): this model has layers 0\.\.3"):
        sads(model, prompts, SadsSettings(start=9))
    with pytest.raises(PromptError, match=r"sads: prompt 0 has no image"):
        sads(model, text, SadsSettings(start=1))
    with pytest.raises(PromptError, match=r"find_trigger: prompt 0 needs an image and at least two tokens after it"):
        find_trigger(model, text)
    with pytest.raises(EditError, match=r"scope='all', rule='valley'\): scopes are \['layer', 'late_layers'"):
        SadsSettings(scope="all")
    with pytest.raises(EditError, match=r"SadsSettings\(fraction=2\): the fraction is from 0 to 1"):
        SadsSettings(fraction=2)
