"""Mllama's vision tower: all tiles of an image in one sequence, the empty ones and the filling with them."""

from functools import cache

import crossing_models as made
import numpy as np
import pytest
import torch
from parity.ledger.reference import Eager
from vlm_models import image

import sinkscope as sk
from sinkscope.errors import PromptError
from sinkscope.models.backends.trial import HEAD, KEPT, Record

HEADS, BLOCKS, FILLED = range(4), range(3), 24
SIZES = [(40, 16), (12, 12)]
PATHS = ("transformer.layers.0", "transformer.layers.1", "global_transformer.layers.0")


@cache
def handle():
    return made.mllama()


@cache
def prompts():
    items = [{"image": image(*size), "text": "What color is the square?"} for size in SIZES]
    return sk.Prompts.from_chat(items, handle())


def own(hide=None):
    """Eager maps, values and streams of the tower in float64, on what the processor made of both images."""
    given, tower = prompts(), handle().model.model.vision_model
    batch = given.batch(range(len(given))).inputs
    inputs = {name: batch[name] for name in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")}
    sites = {id(tower.get_submodule(path).self_attn) for path in PATHS}
    tower.double()
    try:
        return Eager(tower, [(path, None, layer) for layer, path in enumerate(PATHS)]).run(
            lambda: tower(**inputs | {"pixel_values": inputs["pixel_values"].double()}), hide, sites
        )
    finally:
        tower.float()


@pytest.mark.parametrize("hide", [None, 1])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_maps_values_and_streams_are_the_models_own(batch_size, hide):
    wanted = own(hide)
    probes = [sk.AttentionMap(BLOCKS, HEADS), sk.ValueNorm(), sk.ResidualNorm(), sk.Entropy()]
    edits = [] if hide is None else [sk.MaskKeys([hide])]
    ds = sk.run(handle(), prompts(), probes, edits, tower="vision", batch_size=batch_size)
    assert len(wanted.calls) == len(PATHS)
    for layer, call in enumerate(wanted.calls):
        at, maps = ds.sel(layer=layer), call.weights.numpy()
        np.testing.assert_allclose(at.attention, maps, atol=1e-5)
        np.testing.assert_allclose(at.value_norm, call.value.norm(dim=-1), rtol=1e-4)
        logs = np.log(np.where(maps > 0, maps, 1))
        np.testing.assert_allclose(at.entropy, -(maps * logs).sum(-1), atol=1e-4)
        # Behind a block is what the next one gets: a norm and an embedding stand between the encoder's two parts.
        before, after = "embed" if layer == 0 else f"{layer - 1}.post", wanted.streams[layer][1]
        np.testing.assert_allclose(ds.residual_norm.sel(site=before), wanted.streams[layer][0].norm(dim=-1), rtol=1e-4)
    np.testing.assert_allclose(ds.residual_norm.sel(site=f"{layer}.post"), after.norm(dim=-1), rtol=1e-4)


def test_tokens_are_named_and_placed_tile_by_tile():
    ds = sk.run(handle(), prompts(), [sk.KeyMass()], tower="vision", batch_size=2)
    wide = ds.isel(prompt=0)  # 40 x 16: three tiles side by side
    assert ds.source_prompt.values.tolist() == [0, 1]
    tokens, roles = (wide[name].values.reshape(4, FILLED) for name in ("token", "token_role"))
    assert tokens[:, 0].tolist() == ["[CLS]"] * 3 + ["[EMPTY]"]
    assert roles[:, 0].tolist() == ["bos"] * 3 + ["special"]
    assert (tokens[:, made.PER_TILE :] == "[FILL]").all()
    assert (roles[:, made.PER_TILE :] == "special").all()
    assert (roles[:3, 1 : made.PER_TILE] == "image").all()
    assert tokens[1, 1] == "r0c4"
    at = wide.isel(key=2 * FILLED + 1)  # the first patch of the third tile
    assert (float(at.grid_row), float(at.grid_col), float(at.grid_tile)) == (0, 8, 3)
    assert float(at.box_left) == 32  # the picture fits into three tiles as it is, and is filled up on the right


def test_rows_sum_to_one_over_roles():
    ds = sk.run(handle(), prompts(), [sk.RoleShare(queries="image")], tower="vision", batch_size=2)
    np.testing.assert_allclose(ds.role_share.sum("role"), 1, atol=1e-5)
    assert float(ds.role_share.sel(role="special").min()) > 0  # the model's own mask lets patches see the filling


def test_a_text_alone_has_nothing_for_the_tower():
    text = sk.Prompts.from_texts(["the cat sat"], handle())
    with pytest.raises(PromptError, match="hold no images for the vision tower"):
        sk.run(handle(), text, [sk.KeyMass()], tower="vision")


def test_a_stream_too_large_to_be_kept_is_kept_by_its_first_tokens():
    """Four tiles of Llama 3.2 Vision are 8 million numbers: without them the tower had no stream and was refused."""
    block = torch.nn.Identity()
    record = Record({id(block): "block"})
    states = torch.zeros(1, 2 * HEAD, KEPT // (2 * HEAD) + 1)
    record.enter(block, (states,), {})
    entry = record.leave(block, (), states)
    assert entry.tokens == 2 * HEAD
    assert entry.given.shape == entry.made.shape == (1, HEAD, states.shape[2])
