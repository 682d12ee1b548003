"""Explaining an answer about a picture: every family, the numbers it says, sinks that were planted, a real answer."""

from functools import cache

import numpy as np
import pytest
import torch
import xarray as xr
from vlm_models import FAMILIES, image, vlm

import sinkscope as sk
from methods.results import check_result
from sinkscope import testing
from sinkscope.errors import PromptError
from sinkscope.methods.explain_image import ExplainSettings, explain_image
from sinkscope.methods.explain_masking import Masking, mask_patches, probability
from sinkscope.methods.explain_result import _verdict
from sinkscope.methods.explain_sinks import find_visual_sinks
from sinkscope.tasks import scenes as data

FEW = ExplainSettings(draws=2)


@cache
def handle(family):
    made = vlm(family)
    return sk.load_model(made.model, tokenizer=made.tokenizer, processor=made.processor)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family):
    model = handle(family)
    found = explain_image(model, image(48, 36), "What color is the square?", FEW)
    prompts = sk.Prompts.from_chat([{"image": image(48, 36), "text": "What color is the square?"}], model)
    with torch.no_grad():
        inputs = prompts.batch([0]).inputs
        plain = torch.softmax(model.model(**inputs).logits[0, -1].double(), -1)
    assert found.probability == pytest.approx(float(plain.max()), abs=1e-5)
    assert found.answer == model.tokenizer.decode(int(plain.argmax()))
    assert found.looked.size == int((inputs["input_ids"] == model.config.image_token_id).sum()) or family in (
        "llava_next", "llava_onevision",
    ), "row separators are no patches"  # fmt: skip
    assert np.isfinite(found.boxes).all()
    assert set(found.masking) >= {"top"}
    assert f"probability {found.probability:.3f}" in found.verdict


def test_the_reading_is_that_of_the_eager_maps():
    model, picture = handle("llava"), image(16, 16)
    found = explain_image(model, picture, "the cat sat", FEW)
    prompts = sk.Prompts.from_chat([{"image": picture, "text": "the cat sat"}], model)
    model.model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model.model(**prompts.batch([0]).inputs, output_attentions=True).attentions
    model.model.set_attn_implementation("sdpa")
    shown = np.asarray(prompts.ids[0]) == model.config.image_token_id
    last = torch.stack(maps)[:, 0, :, -1].double().numpy()[..., shown]
    mass = last.sum(-1)
    chosen = mass >= 0.2 if (mass >= 0.2).any() else mass >= np.sort(mass.ravel())[-min(10, mass.size)]
    np.testing.assert_array_equal(found.heads.values, chosen)
    np.testing.assert_allclose(found.looked.values, last[chosen].mean(0), atol=1e-6)
    assert found.by_rule == bool((mass >= 0.2).any())


def test_masking_hides_the_patches_from_the_text_alone():
    model, picture = handle("llava"), image(16, 16)
    prompts = sk.Prompts.from_chat([{"image": picture, "text": "the cat sat"}], model)
    last, patches = prompts.lengths[0] - 1, np.array([1, 5])
    found = mask_patches(model, prompts, ([last], [7]), {"some": patches, "none": np.empty(0, int)}, draws=3)
    assert list(found) == ["some"]
    shown = np.flatnonzero(np.asarray(prompts.ids[0]) == model.config.image_token_id)
    keys = xr.DataArray(np.isin(np.arange(last + 1), shown[patches])[None], dims=("prompt", "key"))
    after = sk.run(model, prompts, [sk.Logits()], [sk.MaskKeys(keys, queries="after_image")])
    wanted = torch.softmax(torch.tensor(after["logits"].values[0, -1], dtype=torch.float64), -1)[7]
    assert found["some"].masked == pytest.approx(float(wanted), abs=1e-7)
    assert len(found["some"].random) == 3


def test_an_answer_of_several_tokens_is_explained_whole():
    model, picture = handle("llava"), image(16, 16)
    found = explain_image(model, picture, "the cat", ExplainSettings(answer="You are", draws=2))
    item = {"image": picture, "text": "the cat", "answer": "You are"}
    prompts = sk.Prompts.from_chat([item], model)
    reading = sk.run(model, prompts, [sk.TokenLoss()])
    next_role = reading["token_role"].shift(key=-1).values
    loss = reading["token_loss"].values[next_role == "answer"]
    assert found.probability == pytest.approx(float(np.exp(-loss.sum())), rel=1e-4)
    assert "the answer given is" in found.verdict


def test_planted_visual_sinks_are_found_and_no_others():
    model, prompts, truth = testing.planted_visual_sink(0)
    two = prompts.subset([0, 0])
    mass = sk.run(model, prompts.subset([0]), [sk.KeyMass(queries="last")])["key_mass"].isel(prompt=0)
    shown = np.flatnonzero(mass["token_role"].values == "image")
    attention = mass.isel(key=shown).reset_coords(drop=True).rename(key="patch")
    sinks = find_visual_sinks(model, two, (attention, attention))
    assert shown[sinks.patches].tolist() == sorted(truth.tokens[0])
    assert sinks.dims == tuple(truth.dims)
    assert "between" in sinks.note
    high = find_visual_sinks(model, two, (attention, attention), tau=1e3)
    assert not high.residual.any()
    assert "as asked" in high.note


def test_probability_is_that_of_all_tokens():
    logits = np.log(np.array([[0.5, 0.5], [0.25, 0.75]]))
    assert probability(logits, [0, 1]) == pytest.approx(0.375)


def test_a_mask_harms_when_nearly_no_random_one_harms_as_much():
    random = np.linspace(0.8, 0.9, 20)
    assert Masking(3, 0.9, 0.1, random).harms
    assert Masking(3, 0.9, 0.1, random).p == pytest.approx(1 / 21)
    assert not Masking(3, 0.9, 0.8, random).harms
    few = Masking(3, 0.9, 0.1, random[:10])
    assert not few.harms, "ten draws cannot say so"
    assert not few.judged
    assert Masking(3, 0.9, 0.1, random[:20]).judged
    said = _verdict(few, "needs them", "worth no more")
    assert said == "not judged, as 10 draws cannot tell it from chance (20 can)"


def test_a_loss_of_a_thousandth_is_no_need_though_chance_cannot_make_it():
    random = np.linspace(0.7303, 0.7309, 20)
    slight = Masking(3, 0.731, 0.730, random)
    assert slight.harms
    assert slight.share == pytest.approx((random.mean() - 0.730) / 0.731)
    said = _verdict(slight, "the answer needs them", "worth no more")
    assert said == "hardly needed, at 0.1% of the answer's probability beyond what random patches cost"
    assert _verdict(Masking(3, 0.731, 0.5, random), "the answer needs them", "worth no more") == "the answer needs them"


def test_what_the_answer_gains_by_is_not_needed():
    gained = Masking(3, 0.70, 0.72, np.linspace(0.74, 0.8, 20))
    assert gained.p < 0.05
    assert not gained.harms
    assert _verdict(gained, "the answer needs them", "worth no more") == "worth no more"
    both = Masking(3, 0.9, 0.40, np.linspace(0.41, 0.45, 20))
    assert both.share < 0.05, "random patches cost nearly as much"


@pytest.fixture(scope="module")
def toy():
    scene = data.held_out(1, first=9000)[0]
    question = data.ask(scene, "colour", np.random.default_rng(5))
    return scene, question, explain_image(sk.load_model("zoo:vlm-shapes"), scene.image(4), question.text)


def test_a_real_answer_rests_on_the_shape_that_is_asked_for(toy):
    scene, question, found = toy
    assert found.answer.strip() == question.answer
    assert (scene.patch_owner().ravel()[found.top] == question.about).all()
    assert found.masking["top"].harms
    assert found.place(found.top) == "bottom middle"
    words = ("rests on them", "No visual token is a sink", "whatever is asked", "20 draws, p = 0.048")
    assert all(word in found.verdict for word in words)
    steady = found.masking["steady"]
    assert f"changes the answer by {steady.masked - steady.plain:+.3f}" in found.verdict


def test_table_figure_and_citation(toy):
    found = toy[2]
    frame = check_result(found)
    assert frame.loc["top", "change"] == pytest.approx(found.masking["top"].masked - found.probability)
    assert (frame["draws"] == 20).all()
    figure = found.figure()
    left, _, right = figure.axes[:3]
    assert len(left.patches) == len(found.top) + len(found.sinks.steady)
    assert [bar.get_width() for bar in right.patches] == pytest.approx(frame["change"].tolist())


def test_what_cannot_be_explained_says_so():
    with pytest.raises(PromptError, match=r"ExplainSettings\(share=0, draws=20\): the share of top patches is between"):
        ExplainSettings(share=0)
    with pytest.raises(PromptError, match="takes two draws or more"):
        ExplainSettings(draws=1)


def test_settings_of_another_kind_are_refused():
    with pytest.raises(PromptError, match=r"explain_image\(settings=\{'draws': 3\}\): give ExplainSettings"):
        explain_image(sk.load_model("zoo:vlm-shapes"), image(16, 16), "What?", {"draws": 3})
