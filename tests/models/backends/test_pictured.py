"""Models that read no text without an image, and models that leave blocks out where there is none."""

import numpy as np
import pytest
import torch
from parity.ledger import inputs, trial
from parity.ledger.entries import entry

import sinkscope as sk


def small(model_type):
    return trial.built(entry(model_type))


@pytest.fixture(scope="module")
def mllama():
    network, _, rows = small("mllama")
    return sk.load_model(network), rows


def test_a_block_that_is_left_out_without_an_image_keeps_its_number(mllama):
    """Cross-attention in block 1 of 3: a text alone passes it by, and the last block is still block 2."""
    model, rows = mllama
    prompts = sk.Prompts.from_ids([rows[0]["input_ids"][0].tolist()], model)
    reading = sk.run(model, prompts, [sk.AttentionMap([0, 2], [0]), sk.KeyMass(), sk.ResidualNorm()])
    assert reading.block_kind.values.tolist() == ["attention", "cross", "attention"]
    assert np.isnan(reading.key_mass.sel(layer=1)).all()
    assert np.isfinite(reading.key_mass.sel(layer=[0, 2])).all()
    norms = reading.residual_norm
    np.testing.assert_array_equal(norms.sel(site="0.post"), norms.sel(site="1.post"))
    assert not np.allclose(norms.sel(site="1.post"), norms.sel(site="2.post"))


def test_with_an_image_the_stream_behind_that_block_is_read(mllama):
    model, _ = mllama
    given = inputs.with_image(model.model)
    reading = sk.run(model, sk.Prompts.from_inputs(given, model), [sk.ResidualNorm()])
    wanted = {}
    for layer, block in enumerate(model.model.model.language_model.layers):
        block.register_forward_hook(lambda _m, _a, out, n=layer: wanted.setdefault(n, out))
    with torch.no_grad():
        model.model(**given)
    for layer, states in wanted.items():
        states = states[0] if isinstance(states, tuple) else states
        found = reading.residual_norm.sel(site=f"{layer}.post")[0]
        np.testing.assert_allclose(found, states[0].norm(dim=-1), rtol=1e-5)


def test_an_edit_of_attention_in_a_block_without_it_is_refused_by_name(mllama):
    model, rows = mllama
    prompts = sk.Prompts.from_ids([rows[0]["input_ids"][0].tolist()], model)
    with pytest.raises(sk.errors.EditError, match="cross"):
        sk.run(model, prompts, [sk.KeyMass()], [sk.MaskKeys([1], layers=[1])])


def test_a_vision_part_that_takes_more_than_pictures_is_refused_by_what_it_takes(mllama):
    model, _ = mllama
    with pytest.raises(sk.errors.UnsupportedModelError, match="takes aspect_ratio_ids, aspect_ratio_mask beside its"):
        model.backend.towers["vision"]


@pytest.mark.parametrize("model_type", ["blip-2", "instructblip"])
def test_a_model_that_reads_no_text_without_an_image_is_tried_with_one(model_type):
    network, kind, rows = small(model_type)
    assert kind == "whole"
    model = sk.load_model(network)
    tower = model.backend.towers["text"]
    assert {site.path.split(".")[0] for site in tower.attention} == {"language_model"}  # not the Q-Former's
    reading = sk.run(model, sk.Prompts.from_inputs(rows[0], model), [sk.RoleShare()])
    assert "image" in reading.role.values
    assert "against eager" in model.capabilities(verify=True).verified


@pytest.mark.parametrize(("model_type", "own"), [("blip", "Blip"), ("vilt", "Vilt")])
def test_a_model_that_attends_by_itself_is_refused_for_that_and_not_for_the_missing_image(model_type, own):
    """What a user can do nothing about comes first: with an image it runs, and attention is its own code."""
    told = sk.load_model(small(model_type)[0]).capabilities().why_not
    assert "made no call to transformers' attention interface. The model computes it by itself" in told
    assert f"({own}" in told
    assert "missing 1 required" not in told.split("It returns no maps")[0]
    assert ("load_model(model.vision_model)" in told) == (model_type == "blip")
