"""The vision part inside a larger model, read as a tower of its own."""

from functools import cache

import numpy as np
import oracle
import pytest
import torch
from parity.common import assert_close
from vlm_models import FAMILIES, image, vlm

import sinkscope as sk
from sinkscope import testing
from sinkscope.errors import PromptError, UnsupportedModelError
from sinkscope.models.backends.vision import trial_picture
from sinkscope.roles import MEASURED_ROLES

KINDS = len(MEASURED_ROLES)
KEYS = [0, 9, 13]
PROBES = [
    sk.KeyMass(), sk.RoleShare(queries="all"), sk.Entropy(), sk.MaxAttention(keys=KEYS, queries="all"), sk.RowSum(),
    sk.LogSumExp(), sk.ValueNorm(), sk.KeyNorm(), sk.Contribution(), sk.ResidualNorm(), sk.SinkDims(dims=(3, 7)),
    sk.AttentionMap(layers=[0], heads=[1]),
]  # fmt: skip


@cache
def model_of(family):
    made = vlm(family)
    return sk.load_model(made.model, processor=made.processor)


@cache
def prompts_of(family):
    items = [{"image": image(100, 44), "text": "What?"}, {"image": [image(40, 64), image(32, 32)], "text": "a"}]
    return sk.Prompts.from_chat(items, model_of(family))


def tower_module(family):
    return model_of(family).model.get_submodule(model_of(family).backend.vision_root())


def one_call(calls):
    """The calls of one layer as one: they follow one another along the tokens and see nothing of each other."""
    heads = calls[0].weights.shape[1]
    count = sum(call.weights.shape[-1] for call in calls)
    weights = torch.zeros(heads, count, count, dtype=torch.float64)
    visible = torch.zeros(count, count, dtype=torch.bool)
    start = 0
    for call in calls:
        span = slice(start, start + call.weights.shape[-1])
        weights[:, span, span], visible[span, span] = call.weights[0], call.visible[0]
        start = span.stop
    key, value, lse = (
        torch.cat(parts, dim) for parts, dim in (
            ([c.key[0] for c in calls], 1), ([c.value[0] for c in calls], 1), ([c.log_sum_exp[0] for c in calls], 1),
        )
    )  # fmt: skip
    return weights, visible, key, value, lse


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_of_the_tower_equal_those_of_the_dense_maps(family):
    model, module = model_of(family), tower_module(family)
    reading = sk.run(model, prompts_of(family), PROBES, tower="vision")
    made = prompts_of(family).seen_by(module, model)
    for name in ("source_prompt", "source_image", "source_tile"):
        np.testing.assert_array_equal(reading[name], made.origin[name])
    tower = model.backend.towers["vision"]
    assert not tower.causal
    root = model.backend.vision_root()
    for index in sorted({0, len(made) - 2, len(made) - 1}):
        captured = oracle.capture(module, **made.batch([index]).inputs)
        found, length = reading.isel(prompt=index), made.lengths[index]
        keys = np.isin(np.arange(length), KEYS)
        for layer, site in enumerate(tower.attention):
            path = site.path.removeprefix(f"{root}.")
            calls = [call for call in captured.calls if call.path == path]
            assert family == "qwen2_5_vl" or len(calls) == 1
            weights, visible, key, value, lse = one_call(calls)
            write = oracle.write_matrix(module, path, site.heads)
            wanted = {
                "key_mass": oracle.key_mass(weights, visible),
                "role_share": oracle.role_share(weights, made.roles[index], KINDS).mean(1),
                "entropy": oracle.entropy(weights),
                "max_attention": oracle.largest(weights, keys),
                "row_sum": oracle.row_sum(weights),
                "log_sum_exp": lse,
                "value_norm": value.norm(dim=-1),
                "key_norm": key.norm(dim=-1),
                "contribution": oracle.contribution(weights, value, write, made.roles[index], KINDS),
            }
            for name, expected in wanted.items():
                array = found[name].isel(layer=layer)
                array = array[..., :length] if {"key", "query"} & set(array.dims) else array
                assert_close(array, expected, f"{family} {name} picture {index} layer {layer}")
            if layer == 0:
                assert_close(found["attention"].sel(layer=0, head=1)[:length, :length], weights[1], f"{family} map")
            before, _ = captured.blocks[oracle.block_of(path)]
            states = before[0] if before.ndim == 3 else before
            at = found.sel(site="embed" if layer == 0 else f"{layer - 1}.post")
            assert_close(at["residual_norm"][:length], states.double().norm(dim=-1), f"{family} norm {layer}")
            assert_close(at["phi"][:length], oracle.phi(states, (3, 7)), f"{family} phi {layer}")


def test_windows_are_several_calls_of_a_layer():
    family = "qwen2_5_vl"
    made = prompts_of(family).seen_by(tower_module(family), model_of(family))
    paths = [call.path for call in oracle.capture(tower_module(family), **made.batch([0]).inputs).calls]
    assert [paths.count(f"blocks.{layer}.attn") > 1 for layer in range(3)] == [True, False, True]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tower_alone_sees_what_it_sees_inside_the_model(family):
    model = model_of(family)
    reading = sk.run(model, prompts_of(family), [sk.AttentionMap(layers=[0, 1], heads=[0, 2])], tower="vision")
    root = model.backend.vision_root()
    for prompt in (0, 1):
        captured = oracle.capture(model.model, **prompts_of(family).batch([prompt]).inputs)
        for layer in (0, 1):
            path = model.backend.towers["vision"].attention[layer].path
            assert path.startswith(root)
            maps = [one[[0, 2]] for call in captured.calls if call.path == path for one in call.weights]
            own = reading["attention"].isel(prompt=reading["source_prompt"].values == prompt).sel(layer=layer)
            blocks = np.concatenate([np.asarray(m).ravel() for m in maps])
            inside = [np.asarray(m) for m in own.values]
            found = np.concatenate([_nonzero_blocks(m, [one.shape[-1] for one in maps], family) for m in inside])
            assert_close(np.sort(found), np.sort(blocks), f"{family} prompt {prompt} layer {layer}")


def _nonzero_blocks(whole, sizes, family):
    """Entries of one picture's map; of a packed tower only those within a window."""
    length = int(np.isfinite(whole[0, 0]).sum())
    whole = whole[:, :length, :length]
    return whole.ravel() if family != "qwen2_5_vl" or length in sizes else whole[whole > 0]


def test_edits_fall_on_the_right_tokens_of_every_window():
    model, prompts = model_of("qwen2_5_vl"), prompts_of("qwen2_5_vl")
    maps = sk.AttentionMap(layers=[0, 1, 2], heads=[0, 1, 2, 3])
    masked = [sk.MaskKeys([0, 21])]
    plain, edited = (
        sk.run(model, prompts, [maps], edits, tower="vision")["attention"].isel(prompt=0) for edits in ([], masked)
    )
    length = int(plain.notnull().isel(layer=0, head=0, query=0).sum())
    plain, edited = (array[..., :length, :length] for array in (plain, edited))
    assert (plain.sel(layer=0)[..., [0, 21]].sum("query") > 0).all()
    assert not edited[..., [0, 21]].any()
    assert (edited[..., [1, 20]].sum("query") > 0).all()
    np.testing.assert_allclose(edited.sum("key"), 1, atol=1e-5)
    first = plain.sel(layer=0).copy()
    first[..., [0, 21]] = 0
    assert_close(edited.sel(layer=0), first / first.sum("key"))


def test_the_tower_is_found_when_it_is_asked_for():
    model = sk.load_model(testing.tiny("llava"))
    towers = model.backend.towers
    assert list(towers) == ["text", "vision"]
    assert set(towers.found) == {"text"}
    assert towers["vision"].site_names[:3] == ("embed", "0.mid", "0.post")
    assert set(towers.found) == {"text", "vision"}
    assert model.backend.default_tower == "text"
    assert model.capabilities().attention_calls == 6


def test_two_encoders_side_by_side():
    model = sk.load_model(testing.tiny("clip"))
    given = testing.inputs(model.model)
    prompts = sk.Prompts.from_inputs(given, model)
    reading = sk.run(model, prompts, [sk.KeyMass(), sk.ResidualNorm()], tower="vision", batch_size=2)
    alone = oracle.capture(model.model.vision_model, pixel_values=given["pixel_values"])
    assert reading.sizes["prompt"] == 2
    assert reading.attrs["tower"] == "vision"
    for layer, call in enumerate(alone.calls):
        wanted = torch.stack([oracle.key_mass(w, v) for w, v in zip(call.weights, call.visible, strict=True)])
        assert_close(reading["key_mass"].isel(layer=layer), wanted)


def test_coordinates_survive_a_file(tmp_path):
    reading = sk.run(model_of("llava_next"), prompts_of("llava_next"), [sk.ResidualNorm()], tower="vision")
    again = sk.open(sk.save(reading, tmp_path / "a.nc"))
    for name in ("source_prompt", "source_image", "source_tile", "grid_tile", "box_left", "box_bottom"):
        np.testing.assert_array_equal(again[name], reading[name])
    tile = reading.isel(prompt=1)
    assert int(tile["source_tile"]) == 1
    assert set(tile["grid_tile"].values[1:].tolist()) == {1.0}
    assert float(tile["box_right"].max()) <= 100


def test_boxes_of_visual_tokens_are_coordinates_of_a_reading():
    prompts = prompts_of("qwen2_5_vl")
    reading = sk.run(model_of("qwen2_5_vl"), prompts, [sk.ResidualNorm()])
    edges = [reading[f"box_{side}"].isel(prompt=0).values for side in ("left", "top", "right", "bottom")]
    np.testing.assert_allclose(np.stack(edges, 1)[: prompts.lengths[0]], prompts.grids[0].box, rtol=1e-6)
    assert set(reading["grid_image"].isel(prompt=1).dropna("key").values.tolist()) == {0.0, 1.0}
    assert {"box_left", "grid_tile"} <= set(reading["residual_norm"].coords)


def test_what_has_no_vision_tower_is_refused():
    text = sk.load_model(testing.tiny("llama"))
    with pytest.raises(UnsupportedModelError, match=r"tower='vision': this model has \['text'\]"):
        sk.run(text, sk.Prompts.from_ids([[1, 2]], text), [sk.KeyMass()], tower="vision")
    asked = sk.Prompts.from_chat([{"text": "a"}], model_of("llava"))
    with pytest.raises(PromptError, match="hold no images for the vision tower"):
        sk.run(model_of("llava"), asked, [sk.KeyMass()], tower="vision")


def _broken(*args, **kwargs):
    raise RuntimeError("no such layer")


def test_a_vision_part_that_cannot_run_alone_is_told():
    model = sk.load_model(testing.tiny("llava"))
    model.model.model.vision_tower.forward = lambda pixel_values, needed: None
    with pytest.raises(UnsupportedModelError, match="takes needed beside its pictures, so it cannot be read alone"):
        _ = model.backend.towers["vision"]
    other = sk.load_model(testing.tiny("llava"))
    other.model.model.vision_tower.encoder.layers[2].forward = _broken
    with pytest.raises(UnsupportedModelError, match=r"cannot be read alone \(RuntimeError: no such layer\)\. Read the"):
        _ = other.backend.towers["vision"]


def test_the_trial_picture_is_no_blank():
    for name in ("llava", "qwen3_vl"):
        model = testing.tiny(name)
        given = trial_picture(model.model.visual if name == "qwen3_vl" else model.model.vision_tower)
        assert all(float(tensor.float().std()) > 0 for tensor in given.values())


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_the_vision_part_alone_reads_what_it_reads_inside(family):
    """Patches of all pictures in one list: by the image processor's output, by its images, and inside the model."""
    whole, processor = model_of(family), vlm(family).processor.image_processor
    alone = sk.load_model(whole.model.get_submodule(whole.backend.vision_root()), processor=processor)
    assert alone.kind == "vision"
    pictures = [image(24, 16), image(16, 16)]
    probes = [sk.KeyMass(), sk.ValueNorm(), sk.ResidualNorm()]
    asked = sk.Prompts.from_chat([{"image": pictures, "text": "What color is the square?"}], whole)
    wanted = sk.run(whole, asked, probes, tower="vision")
    by_images = sk.run(alone, sk.Prompts.from_images(pictures, alone), probes)
    by_output = sk.run(alone, sk.Prompts.from_inputs(processor(images=pictures, return_tensors="pt"), alone), probes)
    for found in (by_images, by_output):
        for name in ("key_mass", "value_norm", "residual_norm", "grid_row", "grid_col"):
            np.testing.assert_allclose(found[name], wanted[name], atol=1e-5)
    np.testing.assert_allclose(by_images.box_right, wanted.box_right)
    masked = [sk.MaskKeys("first", layers=[0])]
    inside = sk.run(whole, asked, probes, masked, tower="vision")
    np.testing.assert_allclose(
        sk.run(alone, sk.Prompts.from_images(pictures, alone), probes, masked).residual_norm, inside.residual_norm,
        atol=1e-4,
    )  # fmt: skip
    with pytest.raises(sk.errors.PromptError, match=r"takes patches of pictures in one list, and image_grid_thw"):
        sk.Prompts.from_inputs({"pixel_values": torch.zeros(4, 96)}, alone)
