"""Visual tokens left out: which, and the dominance of text that is left where attention is even."""

import numpy as np
import pytest
import xarray as xr

import sinkscope as sk
from sinkscope import testing
from sinkscope.errors import PromptError
from sinkscope.methods.compression import compressed_dominance, left_out, visual_scores
from sinkscope.tasks.scene_questions import scene_questions


@pytest.fixture(scope="module")
def case():
    model = sk.load_model("zoo:vlm-shapes")
    return model, scene_questions(model, 4).prompts


def test_the_lowest_are_left_out_and_one_is_kept():
    scores = xr.DataArray([[np.nan, 0.4, 0.1, 0.3, 0.2], [0.5, np.nan, np.nan, np.nan, np.nan]], dims=("prompt", "key"))
    np.testing.assert_array_equal(left_out(scores, 0.5).values[0], [False, False, True, False, True])
    assert left_out(scores, 0.99).values.sum(1).tolist() == [3, 0]
    assert not left_out(scores, 0.0).any()
    with pytest.raises(PromptError, match=r"share=1\.0.*from 0 to below 1"):
        left_out(scores, 1.0)


def test_even_attention_dominates_nothing_whatever_is_left_out(case):
    model, prompts = case
    even = [sk.SwapNormaliser("temperature", parameters=[1e6])]
    for by in ("tower", "random"):
        found = compressed_dominance(model, prompts, (0.0, 0.5, 0.9), by=by, edits=even)
        np.testing.assert_allclose(found["mdi"], 1, atol=1e-3)
        np.testing.assert_allclose(found["aei_text"], 1, atol=1e-3)
        assert found["mdi"].dims == ("removed", "prompt", "layer")


def test_the_identity_of_both_numbers_holds_with_the_tokens_that_are_left(case):
    model, prompts = case
    found = compressed_dominance(model, prompts, (0.0, 0.75))
    visual = np.array([(np.asarray(roles) == sk.roles.ROLE_INDEX["image"]).sum() for roles in prompts.roles])
    for place, kept in enumerate((visual, visual - np.round(0.75 * visual))):
        text = np.array(prompts.lengths) - visual
        q = (text / (text + kept))[:, None]
        mdi = found["mdi"].values[place]
        np.testing.assert_allclose(found["aei_text"].values[place], mdi / (q * mdi + 1 - q), rtol=1e-5)
    plain = sk.metrics.modality_dominance(sk.run(model, prompts, [sk.RoleShare(queries="last")]))
    np.testing.assert_allclose(found["mdi"].values[0], plain["mdi"].values, rtol=1e-6)


def textured(side, cell=None):
    """A plain picture, with noise in one cell of the 8 by 8 grid."""
    pixels = np.full((side, side, 3), 90, np.uint8)
    if cell is not None:
        row, column = (int(part * side / 8) for part in cell)
        rng = np.random.default_rng(0)
        pixels[row : row + side // 8, column : column + side // 8] = rng.integers(0, 255, (side // 8, side // 8, 3))
    return pixels


def test_the_one_patch_with_something_to_see_is_kept_and_none_of_a_plain_picture(case):
    model, _ = case
    items = [{"image": textured(64, cell), "text": "What colour is it?"} for cell in ((2, 5), (7, 0), None)]
    prompts = sk.Prompts.from_chat(items, model)
    scores = visual_scores(model, prompts, "flow")
    for row, cell in enumerate([(2, 5), (7, 0)]):
        places = np.flatnonzero(np.isfinite(scores.values[row]))
        assert np.flatnonzero(scores.values[row, places] > 0).tolist() == [8 * cell[0] + cell[1]]
        assert not left_out(scores, 0.98).values[row, places[8 * cell[0] + cell[1]]]
    assert not np.nan_to_num(scores.values[2]).any()
    tower = visual_scores(model, prompts, "tower")
    assert np.isfinite(tower.values[2]).sum() == 64
    with pytest.raises(PromptError, match=r"visual_scores\(by='flow'\): these prompts do not know their pictures"):
        visual_scores(testing.planted_visual_sink(0)[0], testing.planted_visual_sink(0)[1], "flow")


def test_the_planted_token_leads_among_visual_tokens_and_none_where_none_is_planted():
    model, prompts, truth = testing.planted_visual_sink(0)
    scores = visual_scores(model, prompts, "visual").values
    for row, tokens in enumerate(truth.tokens[:3]):
        ranked = np.argsort(-np.nan_to_num(scores[row], nan=-1.0))
        assert set(ranked[: len(tokens)]) == set(tokens)
    spread = np.nanmax(scores, 1) / np.nanmedian(scores, 1)
    assert spread[:3].min() > 2 * spread[3]


def test_tokens_are_ranked_by_the_towers_own_attention(case):
    model, prompts = case
    tower = sk.run(model, prompts, [sk.AttentionMap([2], range(4))], tower="vision")["attention"]
    scores = visual_scores(model, prompts)
    for row, roles in enumerate(prompts.roles):
        image = np.asarray(roles) == sk.roles.ROLE_INDEX["image"]
        wanted = tower.isel(prompt=row, layer=0).mean("head").values[0, 1:]
        np.testing.assert_allclose(scores.values[row, : len(image)][image], wanted, rtol=1e-4)
        assert np.isnan(scores.values[row, : len(image)][~image]).all()
    reader = visual_scores(model, prompts, "reader")
    assert np.isfinite(reader.values).sum() == np.isfinite(scores.values).sum()


def test_errors(case):
    model, prompts = case
    with pytest.raises(PromptError, match="by='clip'"):
        visual_scores(model, prompts, "clip")
    words = sk.load_model("zoo:lm-python")
    with pytest.raises(PromptError, match="no image"):
        visual_scores(words, sk.Prompts.from_texts(["import os"], words))
