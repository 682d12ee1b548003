"""Models that read no text without an image, and models that leave blocks out where there is none."""

import numpy as np
import pytest
import torch
import transformers
from parity.ledger import inputs, trial
from parity.ledger.entries import entry

import sinkscope as sk
from sinkscope.models.backends.vision import discover_vision
from sinkscope.testing.tiny import randomise


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


def test_a_vision_part_that_takes_more_than_pictures_is_refused_by_what_it_takes(mllama, monkeypatch):
    model, _ = mllama

    def forward(self, pixel_values, depth_values): ...

    monkeypatch.setattr(type(model.model.model.vision_model), "forward", forward)
    with pytest.raises(sk.errors.UnsupportedModelError, match="takes depth_values beside its pictures"):
        discover_vision(model.model, model.backend.vision_root())


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


def test_a_text_that_attends_to_an_image_by_itself_is_read_by_the_maps_of_its_modules():
    """BLIP calls nothing of the library's and returns the maps of its image encoder alone."""
    network, _, rows = small("blip")
    model, row = sk.load_model(network), rows[0]
    able = model.capabilities()
    assert (able.reading, able.edits, able.towers) == ("dense", False, "text, cross")
    assert "one layer at a time" in able.note
    prompts = sk.Prompts.from_inputs(row, model)
    probes = [sk.AttentionMap([0, 1], range(4)), sk.KeyMass(), sk.Entropy()]
    text = sk.run(model, prompts, [*probes, sk.ResidualNorm()])
    cross = sk.run(model, prompts, probes, tower="cross")
    heard, states = {}, {}
    for layer, block in enumerate(network.text_decoder.bert.encoder.layer):
        block.register_forward_hook(lambda _m, _a, out, n=layer: states.setdefault(n, out))
        for name in ("attention", "crossattention"):
            for part in ("query", "key"):
                projection = getattr(getattr(block, name).self, part)
                projection.register_forward_hook(lambda _m, _a, out, at=(layer, name, part): heard.setdefault(at, out))
    with torch.no_grad():
        network(**row)
    for layer in range(2):
        for ds, name in ((text, "attention"), (cross, "crossattention")):
            query, key = (
                heard[layer, name, part][0].unflatten(-1, (4, -1)).transpose(0, 1) for part in ("query", "key")
            )
            logits = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
            later = torch.ones(logits.shape[1:]).triu(1).bool() if name == "attention" else torch.zeros(1).bool()
            maps = logits.masked_fill(later, -torch.inf).softmax(-1)
            np.testing.assert_allclose(ds.attention.sel(layer=layer)[0], maps, atol=1e-6)
        np.testing.assert_allclose(cross.key_mass.sel(layer=layer)[0], maps.mean(1), atol=1e-6)
        norms = states[layer][0].norm(dim=-1)
        np.testing.assert_allclose(text.residual_norm.sel(site=f"{layer}.post")[0], norms, rtol=1e-5)
    with pytest.raises(sk.errors.UnsupportedModelError, match="can be read but not edited"):
        sk.run(model, prompts, [sk.KeyMass()], [sk.MaskKeys([1])])


def test_a_question_about_an_image_is_read_beside_the_answer():
    """BLIP for questions: its text encoder reads the question and attends to the image; the answer is no prompt."""
    like, _, rows = small("blip")
    network = transformers.BlipForQuestionAnswering(like.config).to(like.dtype).eval()
    randomise(network, 0, 0.15)
    network.set_attn_implementation("eager")
    model, given = sk.load_model(network), rows[0] | {"decoder_input_ids": rows[0]["input_ids"][:, :3]}
    prompts = sk.Prompts.from_inputs(given, model)
    own = {}
    for layer, block in enumerate(network.text_encoder.encoder.layer):
        for name in ("attention", "crossattention"):
            getattr(block, name).self.register_forward_hook(
                lambda _m, _a, out, at=(layer, name): own.update({at: out[1]})
            )
    with torch.no_grad():
        network(**given)
    for tower, name in (("text", "attention"), ("cross", "crossattention")):
        found = sk.run(model, prompts, [sk.AttentionMap([0, 1], range(4))], tower=tower)
        for layer in range(2):
            np.testing.assert_allclose(found.attention.sel(layer=layer)[0], own[layer, name][0], atol=1e-6)


def test_what_a_forward_asks_for_is_told():
    """BLIP for questions wants the answer's first tokens; the error is ours, and says where to put them."""
    like, _, rows = small("blip")
    model = sk.load_model(transformers.BlipForQuestionAnswering(like.config).to(like.dtype).eval())
    prompts = sk.Prompts.from_inputs(rows[0], model)
    wanted = (
        r"BlipForQuestionAnswering does not run on input_ids \(1, \d+\) of \d+ to \d+, "
        r"pixel_values \(1, 3, \d+, \d+\): Either `decoder_input_ids`.*from_inputs"
    )
    with pytest.raises(sk.errors.PromptError, match=wanted):
        sk.run(model, prompts, [sk.KeyMass()])


def test_an_image_in_an_order_drawn_at_random_is_refused_for_that():
    """ViLT draws patches by torch.multinomial in every pass: a row of its map is of no one patch."""
    told = sk.load_model(small("vilt")[0]).capabilities().why_not
    assert "On the same text and image ViltModel attends otherwise in every pass" in told
    assert "so which token is which patch is not known" in told
