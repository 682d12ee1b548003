from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import xarray as xr
from vlm_models import image, vlm

import sinkscope as sk
from methods.results import check_result
from sinkscope import testing
from sinkscope.errors import EditError, PromptError
from sinkscope.methods.vhr import (
    VhrSettings,
    aware_heads,
    divergence,
    generate_reinforced,
    head_outputs,
    reinforced_layers,
    step_divergence,
    token_divergence,
    vhr,
    without_images,
)
from sinkscope.roles import ROLE_INDEX


@cache
def model_of(family):
    made = vlm(family)
    return sk.load_model(made.model, processor=made.processor)


@cache
def prompts_of(family):
    items = [{"image": image(32, 32), "text": "What color?"}, {"image": image(48, 20), "text": "the cat"}]
    return sk.Prompts.from_chat(items, model_of(family))


def labelled(array, dims):
    return xr.DataArray(array, dims=dims, coords={d: np.arange(n) for d, n in zip(dims, array.shape, strict=True)})


def test_the_published_vector():
    full = np.array([[1, 0], [0, 3], [2, 2], [0.5, 0.5]])
    bare = np.array([[1, 1], [0, 0], [2, 0], [0.5, 0.4]])
    distance = sk.metrics.head_divergence(full, bare)
    np.testing.assert_allclose(distance, [1, 3, 2, 0.1])
    energy = (bare**2).sum(-1)
    np.testing.assert_allclose(energy, [2, 0, 4, 0.41])
    edges = [values.mean() + values.std() for values in (distance, energy)]  # population deviation
    np.testing.assert_allclose(edges, [2.609839, 3.175401], atol=1e-6)
    found = xr.Dataset(
        {
            "divergence": labelled(distance[None, None], ("prompt", "layer", "head")),
            "without_image": labelled((bare**2).sum(-1)[None, None], ("prompt", "layer", "head")),
        }
    )
    assert aware_heads(found).values.tolist() == [[[False, True, True, False]]]
    assert token_divergence(found["divergence"], k=2).item() == pytest.approx(5.0)


def test_an_outlier_in_both_is_left_out():
    values = np.array([[[1.0, 2.0, 3.0, 50.0, 1.0, 1.0]]])
    energy = np.array([[[1.0, 1.0, 1.0, 50.0, 1.0, 1.0]]])
    dims = ("prompt", "layer", "head")
    found = xr.Dataset({"divergence": labelled(values, dims), "without_image": labelled(energy, dims)})
    assert aware_heads(found).values.tolist() == [[[False, True, True, False, False, False]]]


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen2_5_vl", "gemma3"])
def test_images_are_taken_away_with_what_wraps_them(family):
    model, prompts = model_of(family), prompts_of(family)
    bare = without_images(prompts, model)
    for before, after, roles, kept in zip(prompts.ids, bare.ids, prompts.roles, bare.roles, strict=True):
        assert not (kept == ROLE_INDEX["image"]).any()
        text = np.isin(roles, [ROLE_INDEX["text"], ROLE_INDEX["punctuation"], ROLE_INDEX["bos"], ROLE_INDEX["system"]])
        assert [i for i in before[text].tolist()] == [
            i for i, r in zip(after.tolist(), kept, strict=True)
            if r in (ROLE_INDEX["text"], ROLE_INDEX["punctuation"], ROLE_INDEX["bos"], ROLE_INDEX["system"])
        ]  # fmt: skip
        names = ("<img>", "</img>", "<boi>", "<eoi>", "<image>")
        assert not {int(model.tokenizer.convert_tokens_to_ids(n)) for n in names} & set(after.tolist())
    assert bare.extras == ({}, {})
    assert np.isfinite(sk.run(model, bare, [sk.Logits()])["logits"]).all()


def test_head_outputs_are_those_before_the_output_projection():
    model, prompts = model_of("llava"), prompts_of("llava")
    found = head_outputs(model, prompts)
    seen = []
    layer = model.model.model.language_model.layers[1]
    handle = layer.self_attn.o_proj.register_forward_pre_hook(lambda _m, args: seen.append(args[0][0, -1]))
    with torch.no_grad():
        for index in range(2):
            model.model(**prompts.batch([index]).inputs)
    handle.remove()
    wanted = torch.stack(seen).reshape(2, 4, -1).numpy()
    np.testing.assert_allclose(found.sel(layer=1).values, wanted, atol=1e-5)


def test_an_edit_of_an_earlier_layer_is_seen_and_its_own_is_not():
    model, prompts = model_of("llava"), prompts_of("llava")
    plain, gated = head_outputs(model, prompts), head_outputs(model, prompts, [sk.GateHeads(3.0, heads={1: [0]})])
    np.testing.assert_allclose(gated.sel(layer=[0, 1]), plain.sel(layer=[0, 1]), atol=1e-6)
    assert float(abs(gated - plain).sel(layer=2).max()) > 1e-3


def test_an_edit_that_selects_tokens_by_prompt_keeps_to_its_prompt():
    model, prompts = model_of("llava"), prompts_of("llava")
    first = np.zeros((2, max(map(len, prompts.ids))), bool)
    first[0, 0] = True
    plain = head_outputs(model, prompts)
    masked = head_outputs(model, prompts, [sk.MaskKeys(labelled(first, ("prompt", "key")))])
    assert abs(masked - plain).isel(prompt=0).max() > 0
    np.testing.assert_array_equal(masked.isel(prompt=slice(1, None)), plain.isel(prompt=slice(1, None)))


def test_layers_are_measured_after_the_earlier_ones_were_reinforced():
    model, prompts = model_of("qwen2_5_vl"), prompts_of("qwen2_5_vl")
    chosen = vhr(model, prompts, VhrSettings(2.0, layers=[0, 1, 2]))
    once = vhr(model, prompts, VhrSettings(2.0, layers=[0, 1, 2], layerwise=False))
    np.testing.assert_allclose(chosen.found["divergence"].sel(layer=0), once.found["divergence"].sel(layer=0))
    assert float(abs(chosen.found["divergence"] - once.found["divergence"]).sel(layer=2).max()) > 1e-3
    for index in range(2):
        heads = sk.metrics.head_list(chosen.heads.isel(prompt=index).sel(layer=[0, 1]))
        one, none = prompts.subset([index]), without_images(prompts, model).subset([index])
        again = divergence(model, one, none, [sk.GateHeads(2.0, heads=heads)])["divergence"].sel(layer=2)
        np.testing.assert_allclose(chosen.found["divergence"].isel(prompt=index).sel(layer=2), again[0], rtol=1e-6)
        assert chosen.edits[index] == sk.GateHeads(2.0, heads=sk.metrics.head_list(chosen.heads.isel(prompt=index)))
    assert (chosen.heads.sum("head") == 2).all()
    assert chosen.note == ""
    assert len(check_result(chosen)) == int(chosen.heads.sum())


def test_each_prompt_is_continued_with_its_own_heads():
    model, prompts = model_of("qwen2_5_vl"), prompts_of("qwen2_5_vl")
    chosen = vhr(model, prompts, VhrSettings(2.0))
    found = generate_reinforced(model, prompts, chosen, 3, eos_token_id=-1)
    for index, one in enumerate(found):
        again = sk.run(model, one, [sk.Logits("all")], [chosen.edits[index]])["logits"].isel(prompt=0)
        start = prompts.lengths[index]
        assert again[start - 1 : start + 2].argmax("vocab").values.tolist() == one.ids[0][start:].tolist()
    assert chosen.note.startswith("layers [1, 2] of 3: the paper's choice for 32 layers, scaled")
    with pytest.raises(EditError, match=r"1 prompts but heads for 2\. Choose them anew"):
        generate_reinforced(model, prompts.subset([0]), chosen)


def test_layers_of_the_paper():
    assert reinforced_layers(32) == (1, *range(18, 32))
    assert reinforced_layers(4) == (1, 2, 3)
    assert reinforced_layers(1) == (0,)


def test_what_is_refused():
    model = model_of("llava")
    mixed = sk.Prompts.from_chat([{"image": image(9, 9), "text": "a"}, {"text": "b"}], model)
    with pytest.raises(PromptError, match=r"without_images: prompt 1 has no image to take away"):
        without_images(mixed, model)
    tiny = sk.load_model(testing.tiny("llava"))
    with pytest.raises(PromptError, match=r"one processor output that is run whole\. Build them with from_chat"):
        without_images(sk.Prompts.from_inputs(testing.inputs(tiny.model), tiny), tiny)
    with pytest.raises(EditError, match=r"token_divergence\(k=9\): this model has 4 heads"):
        token_divergence(labelled(np.ones((1, 2, 4)), ("prompt", "layer", "head")), k=9)


def test_every_step_is_measured_as_if_the_text_ended_there():
    model, prompts = model_of("qwen2_5_vl"), prompts_of("qwen2_5_vl")
    edit = sk.GateHeads(2.0, heads={0: [0]})
    written = sk.generate(model, prompts, [edit], 3, eos_token_id=-1)
    found = step_divergence(model, written, edits=[edit])
    assert dict(found.sizes) == {"prompt": 2, "step": 3, "layer": 3, "head": 4}
    first = divergence(model, prompts, edits=[edit])["divergence"]
    np.testing.assert_allclose(found.sel(step=0).values, first.values, rtol=1e-4)
    shorter = sk.generate(model, prompts, [edit], 2, eos_token_id=-1)
    then = divergence(model, shorter, edits=[edit])["divergence"]
    np.testing.assert_allclose(found.sel(step=2).values, then.values, rtol=1e-4)
    assert float(abs(found - step_divergence(model, written)).max()) > 1e-3
    with pytest.raises(PromptError, match=r"step_divergence: nothing was generated in prompt 0\. Give what sk\.gener"):
        step_divergence(model, prompts)


def test_steps_behind_the_end_of_a_shorter_text_are_nan():
    model, prompts = model_of("llava"), prompts_of("llava")
    one, two = (sk.generate(model, prompts.subset([i]), (), 1 + i, eos_token_id=-1) for i in range(2))
    fields = ("ids", "roles", "tokens", "extras", "grids")
    both = replace(prompts, **{name: (*getattr(one, name), *getattr(two, name)) for name in fields})
    found = step_divergence(model, both)
    assert np.isfinite(found.values).all((2, 3)).tolist() == [[True, False], [True, True]]


def test_a_control_reinforces_as_many_other_heads_of_each_layer():
    model, prompts = model_of("qwen2_5_vl"), prompts_of("qwen2_5_vl")
    chosen = vhr(model, prompts, VhrSettings(3.0, layers=[1, 2]))
    control = chosen.random_heads(4)
    assert not (chosen.heads & control.heads).any()
    np.testing.assert_array_equal(control.heads.sum("head"), chosen.heads.sum("head"))
    for index, edit in enumerate(control.edits):
        assert edit == sk.GateHeads(3.0, heads=sk.metrics.head_list(control.heads.isel(prompt=index)))
    again = chosen.with_heads(chosen.heads)
    assert again.edits == chosen.edits
    nothing = chosen.with_heads(chosen.heads & False)
    assert [text.ids[0].tolist() for text in generate_reinforced(model, prompts, nothing, 2)] == [
        sk.generate(model, prompts.subset([i]), (), 2).ids[0].tolist() for i in range(2)
    ]
