"""What models are tried with, and what is refused because tokens and keys do not belong to each other."""

import pytest
import torch
from parity.ledger import trial
from parity.ledger.compare import Comparison
from parity.ledger.entries import entry

import sinkscope as sk
from sinkscope import testing
from sinkscope.errors import ModelError, UnsupportedModelError


def built(name):
    network, kind, rows = trial.built(entry(name))
    return sk.load_model(network), kind, rows


@pytest.mark.parametrize("name", ["glmasr_encoder", "idefics3_vision", "mobilebert"])
def test_inputs_of_other_forms_are_read_exactly(name):
    """Frames behind mel bands; pixels where the library's main input is called input_ids; neighbours in the stem."""
    model, kind, rows = built(name)
    found = Comparison(model.model, model, kind, rows).everything()
    assert found.off
    assert max(found.off.values()) < 1e-5


def test_an_encoder_that_mixes_neighbours_is_not_read_in_a_padded_batch():
    """MobileBERT puts the embeddings of three tokens together: the last real one would see padding."""
    model, _, _ = built("mobilebert")
    prompts = sk.Prompts.from_ids([[5, 6, 7, 8], [9, 10]], model)
    with pytest.raises(UnsupportedModelError, match=r"in a padded batch otherwise than alone\. Use batch_size=1"):
        sk.run(model, prompts, [sk.KeyMass()], batch_size=2)
    assert sk.run(model, prompts, [sk.KeyMass()]).sizes["prompt"] == 2


def test_keys_that_are_no_tokens_are_refused():
    model, _, rows = built("granite_speech5_encoder")
    with pytest.raises(UnsupportedModelError, match="attends to 128 keys, and its input has 16 tokens"):
        sk.run(model, sk.Prompts.from_inputs(rows[0], model), [sk.KeyMass()])


def test_windows_laid_out_as_a_batch_are_refused():
    model, _, _ = built("swin")
    assert "attends within 64 groups of one prompt's tokens" in model.capabilities().why_not


def test_a_model_of_parts_that_attend_by_themselves_names_the_parts():
    model, _, _ = built("flava")
    assert "load_model(model.text_model)" in model.capabilities().why_not
    part = sk.load_model(model.model.text_model)
    assert part.capabilities().reading == "dense"


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_texts_alone_are_read_as_the_text_part_reads_them(name):
    model = sk.load_model(testing.tiny(name))
    prompts = sk.Prompts.from_ids([[1, 5, 6, 7], [1, 9]], model)
    both = sk.run(model, prompts, [sk.KeyMass(), sk.AttentionMap([0], [0])], batch_size=2)
    network = testing.tiny(name).text_model
    network.set_attn_implementation("eager")
    for row, ids in enumerate([[1, 5, 6, 7], [1, 9]]):
        with torch.no_grad():
            maps = network(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), output_attentions=True)
        found = torch.tensor(both.attention.values[row, 0, 0, : len(ids), : len(ids)])
        torch.testing.assert_close(found, maps.attentions[0][0, 0], atol=1e-5, rtol=0)


def test_a_buffer_may_hold_infinities_and_no_nan():
    network = testing.tiny("llama")
    network.register_buffer("bound", torch.tensor(-float("inf")))
    assert sk.load_model(network).kind == "decoder"
    network.register_buffer("bound", torch.tensor(float("nan")))
    with pytest.raises(ModelError, match="bound holds 1 of 1 numbers that are not finite"):
        sk.load_model(network)


def test_codes_of_several_books_are_no_text(monkeypatch):
    model = sk.load_model(testing.tiny("llama"))
    monkeypatch.setattr(model.model, "generate", lambda **_: torch.zeros(1, 3, 8, dtype=torch.long))
    with pytest.raises(UnsupportedModelError, match=r"writes \(1, 3, 8\) \(codes of several books a step\)"):
        sk.generate(model, sk.Prompts.from_ids([[1, 2]], model), max_new_tokens=2)
