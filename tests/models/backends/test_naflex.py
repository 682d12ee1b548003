"""Encoders of patch lists of any shape (SigLIP 2): by themselves, beside a text encoder, and inside LFM2-VL."""

from functools import cache

import numpy as np
import pytest
import torch
import transformers
from parity.ledger.reference import Eager
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from vlm_models import image, tokenizer

import sinkscope as sk
from sinkscope.errors import PromptError
from sinkscope.prompts import naflex
from sinkscope.testing.tiny import randomise

PATCH, MOST, HEADS = 4, 24, 4
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": HEADS,
    "patch_size": PATCH, "num_patches": 16,
}  # fmt: skip
IMAGES = [(40, 16), (12, 24), (20, 20)]
PROBES = [sk.AttentionMap(range(3), range(HEADS)), sk.KeyMass(), sk.ValueNorm(), sk.ResidualNorm()]


def processor():
    return Siglip2ImageProcessorPil(patch_size=PATCH, max_num_patches=MOST)


def pictures():
    return [image(width, height) for width, height in IMAGES]


def made(cls, config):
    torch.manual_seed(0)
    network = getattr(transformers, cls)(config)
    randomise(network, 0)
    return network.float().eval()


@cache
def alone():
    network = made("Siglip2VisionModel", transformers.Siglip2VisionConfig(**VISION))
    return sk.load_model(network, processor=processor())


def heard(module, given, **hidden):
    """The encoder's own eager maps, values and streams in float64, on the processor's filled-up lists."""
    blocks = [(f"encoder.layers.{n}", None, n) for n in range(3)]
    module.double()
    found = Eager(module, blocks).run(
        lambda: module(**{**given, "pixel_values": given["pixel_values"].double()}), **hidden
    )
    module.float()
    return found


def check(ds, own, shapes):
    calls = [call for call in own.calls if call.weights.shape[1] == HEADS and call.weights.shape[2] == MOST]
    assert len(calls) == 3
    for i, (rows, columns) in enumerate(shapes.tolist()):
        n = rows * columns
        for layer, call in enumerate(calls):
            at = ds.isel(prompt=i).sel(layer=layer)
            wanted = call.weights[i, :, :n, :n].numpy()
            np.testing.assert_allclose(wanted.sum(-1), 1, atol=1e-6)  # the filling gets nothing
            np.testing.assert_allclose(at.attention.values[:, :n, :n], wanted, atol=2e-5)
            np.testing.assert_allclose(at.key_mass.values[:, :n], wanted.mean(1), atol=2e-5)
            np.testing.assert_allclose(at.value_norm.values[:, :n], call.value[i, :, :n].norm(dim=-1), atol=2e-5)
            assert np.isnan(at.key_mass.values[:, n:]).all()
        for layer in range(3):
            wanted = own.streams[layer][1][i, :n].norm(dim=-1)
            np.testing.assert_allclose(ds.residual_norm.sel(site=f"{layer}.post")[i, :n], wanted, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_maps_of_pictures_of_unlike_shape_are_the_models_own(batch_size):
    model = alone()
    given = processor()(images=pictures(), return_tensors="pt")
    shapes = given["spatial_shapes"]
    assert len({tuple(shape) for shape in shapes.tolist()}) == 3
    assert int(shapes.prod(1).min()) < MOST
    own = heard(model.model, given)
    made_of = sk.Prompts.from_images(pictures(), model)
    assert made_of.lengths == tuple(int(n) for n in shapes.prod(1))
    ds = sk.run(model, made_of, PROBES, batch_size=batch_size)
    check(ds, own, shapes)
    taken = sk.run(model, sk.Prompts.from_inputs(given, model), PROBES, batch_size=batch_size)
    np.testing.assert_allclose(taken.key_mass, ds.key_mass, atol=1e-6)


def test_places_are_those_of_the_pictures_own_grid():
    model = alone()
    ds = sk.run(model, sk.Prompts.from_images(pictures(), model), [sk.KeyMass()], batch_size=3)
    shapes = processor()(images=pictures(), return_tensors="pt")["spatial_shapes"].tolist()
    for i, ((rows, columns), (width, height)) in enumerate(zip(shapes, IMAGES, strict=True)):
        at, n = ds.isel(prompt=i), rows * columns
        np.testing.assert_array_equal(at.grid_row.values[:n], np.repeat(np.arange(rows), columns))
        np.testing.assert_array_equal(at.grid_col.values[:n], np.tile(np.arange(columns), rows))
        last = [float(at[f"box_{side}"].values[n - 1]) for side in ("left", "top", "right", "bottom")]
        np.testing.assert_allclose(last, [width * (1 - 1 / columns), height * (1 - 1 / rows), width, height], rtol=1e-5)
        assert set(at.token_role.values[:n]) == {"image"}
        assert set(at.token_role.values[n:]) <= {"pad"}


def test_an_edit_equals_the_models_own_with_that_key_hidden():
    model = alone()
    given = processor()(images=pictures(), return_tensors="pt")
    sites = {id(model.model.get_submodule(f"encoder.layers.{n}.self_attn")) for n in range(3)}
    own = heard(model.model, given, hide=1, only=sites)
    ds = sk.run(model, sk.Prompts.from_images(pictures(), model), PROBES, [sk.MaskKeys([1])], batch_size=3)
    check(ds, own, given["spatial_shapes"])


def test_ready_made_pixels_are_cut_into_the_same_patches():
    model = alone()
    given = processor()(images=pictures()[:1], return_tensors="pt")
    rows, columns = given["spatial_shapes"][0].tolist()
    lists = given["pixel_values"][0, : rows * columns].reshape(rows, columns, PATCH, PATCH, 3)
    whole = lists.permute(4, 0, 2, 1, 3).reshape(3, rows * PATCH, columns * PATCH)
    found = sk.Prompts.from_images([whole], model)
    torch.testing.assert_close(found.extras[0]["pixel_values"], given["pixel_values"][:, : rows * columns])
    assert found.extras[0]["spatial_shapes"].tolist() == [[rows, columns]]


def test_what_a_processor_did_not_make_is_refused():
    model = alone()
    given = dict(processor()(images=pictures(), return_tensors="pt"))
    with pytest.raises(PromptError, match="'spatial_shapes' is not given"):
        sk.Prompts.from_inputs({name: t for name, t in given.items() if name != "spatial_shapes"}, model)
    short = given | {"spatial_shapes": given["spatial_shapes"] + 3}
    with pytest.raises(PromptError, match=r"name a grid of \d+ x \d+ patches, but pixel_values hold"):
        sk.Prompts.from_inputs(short, model)


@cache
def beside_text():
    text = {
        "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": HEADS, "projection_size": 32, "max_position_embeddings": 64,
    }  # fmt: skip
    config = transformers.Siglip2Config(vision_config=VISION, text_config=text)
    return sk.load_model(made("Siglip2Model", config), tokenizer=tokenizer())


@cache
def inside_lfm2(factor=1):
    place = tokenizer().convert_tokens_to_ids("<image>")
    text = {
        "vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": HEADS,
        "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"], "block_ff_dim": 64,
        "block_auto_adjust_ff_dim": False, "max_position_embeddings": 512,
    }  # fmt: skip
    vision = VISION | {"model_type": "siglip2_vision_model"}
    config = transformers.Lfm2VlConfig(
        vision_config=vision, text_config=text | {"model_type": "lfm2"}, image_token_id=place, downsample_factor=factor
    )
    return sk.load_model(made("Lfm2VlForConditionalGeneration", config), tokenizer=tokenizer())


@pytest.mark.parametrize("which", ["beside_text", "inside_lfm2"])
def test_the_tower_inside_a_larger_model(which):
    model = {"beside_text": beside_text, "inside_lfm2": inside_lfm2}[which]()
    given = processor()(images=pictures(), return_tensors="pt")
    if which == "beside_text":
        ids = torch.tensor([[0, 60, 61, 62]] * 3)
    else:
        place, count = model.config.image_token_id, int(given["spatial_shapes"].prod(1).sum())
        ids = torch.tensor([[0, 60, *[place] * count, 61, 62]])
    prompts = sk.Prompts.from_inputs({"input_ids": ids, **given}, model)
    ds = sk.run(model, prompts, PROBES, tower="vision", batch_size=3)
    assert ds.sizes["prompt"] == 3
    root = model.model.get_submodule(model.backend.vision_root())
    own = heard(root, given)
    check(ds, own, given["spatial_shapes"])
    text = sk.run(model, prompts, [sk.KeyMass()], batch_size=3)
    assert np.isfinite(text.key_mass).any()


def lfm2_inputs(model, gap):
    """Two images of 4 x 6 and 6 x 2 patches, joined in squares of four, with ``gap`` tokens between them."""
    parts = [naflex.as_patches(torch.randn(1, 3, PATCH * rows, PATCH * columns), PATCH) for rows, columns in SHAPES]
    parts = [naflex.filled_up(part, MOST) for part in parts]
    place = model.config.image_token_id
    ids = [0, 60, *[place] * 6, *range(61, 61 + gap), *[place] * 3, 70, 71]
    return {"input_ids": torch.tensor([ids])} | {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


SHAPES = ((4, 6), (6, 2))


def test_places_in_the_text_are_those_of_the_patches_that_a_token_joins():
    model = inside_lfm2(2)
    prompts = sk.Prompts.from_inputs(lfm2_inputs(model, 2), model)
    ds = sk.run(model, prompts, [sk.KeyMass()]).isel(prompt=0)
    start = 0
    for image_number, (rows, columns) in enumerate(SHAPES):
        numbers = torch.arange(rows * columns).reshape(1, rows, columns, 1)
        joined = model.model.model.multi_modal_projector.pixel_unshuffle(numbers).reshape(-1, 4)
        own = np.flatnonzero(ds.token_role.values == "image")[start : start + len(joined)]
        wanted = joined.min(1).values  # the patch in the upper left corner
        np.testing.assert_array_equal(ds.grid_row.values[own], wanted // columns // 2)
        np.testing.assert_array_equal(ds.grid_col.values[own], wanted % columns // 2)
        assert set(prompts.grids[0].image[own]) == {image_number}
        start += len(joined)


def test_places_of_tiles_are_not_made_up():
    """One token between two runs: tiles of one image, whose rows and columns nothing in the inputs says."""
    model = inside_lfm2(2)
    prompts = sk.Prompts.from_inputs(lfm2_inputs(model, 1), model)
    assert prompts.grids == (None,)
    assert np.isfinite(sk.run(model, prompts, [sk.KeyMass()]).key_mass).any()


def test_the_pooling_head_takes_its_mask_and_attention_stays_streaming():
    model = alone()
    able = model.capabilities(verify=True)
    assert "against eager" in able.verified
    assert (able.reading, able.note) == ("streaming", "")
