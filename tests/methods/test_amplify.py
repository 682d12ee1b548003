"""Gaze shifts and PAINT's patches of a model's own maps: by hand, with a planted sink, and where there is nothing."""

import numpy as np
import pytest
import xarray as xr

import sinkscope as sk
from sinkscope import metrics
from sinkscope.errors import PromptError
from sinkscope.methods.amplify import gaze_saliency, paint
from sinkscope.methods.compression import tower_attention
from sinkscope.roles import ROLE_INDEX
from sinkscope.tasks.scene_questions import scene_questions


@pytest.fixture(scope="module")
def case():
    model = sk.load_model("zoo:vlm-shapes")
    return model, scene_questions(model, 3, seed=3).prompts


def places(prompts, which):
    roles = np.asarray(prompts.roles[which])
    image = np.flatnonzero(roles == ROLE_INDEX["image"])
    words = np.flatnonzero((roles == ROLE_INDEX["text"]) & (np.arange(len(roles)) > image[-1]))
    return image, words


def test_the_saliency_is_the_gaze_shift_of_the_question_s_rows(case):
    model, prompts = case
    found = gaze_saliency(model, prompts, [3])
    assert found.dims == ("prompt", "key")
    assert found.attrs["layers"] == [3]
    for which in range(len(prompts)):
        image, words = places(prompts, which)
        maps = sk.run(model, prompts.subset([which]), [sk.AttentionMap([3], range(4))]).attention[0]
        rows = maps.values[:, :, words[0] - 1 : words[-1] + 1][..., image]
        counted = np.isin(np.arange(words[0], words[-1] + 1), words)
        np.testing.assert_allclose(found.values[which, image], metrics.gaze_shift(rows, counted), rtol=1e-5)
        assert not np.delete(found.values[which], image).any()


def test_the_layer_is_the_one_where_attention_rises_most(case):
    model, prompts = case
    rises = np.zeros(6)
    for which in range(len(prompts)):
        image, words = places(prompts, which)
        maps = sk.run(model, prompts.subset([which]), [sk.AttentionMap(range(6), range(4))]).attention[0].values
        for word in words:
            rises += np.maximum(maps[:, :, word][..., image] - maps[:, :, word - 1][..., image], 0).sum((1, 2))
    assert gaze_saliency(model, prompts).attrs["layers"] == [int(rises.argmax())]


def test_words_that_count_are_named(case):
    model, prompts = case
    mask = np.zeros((len(prompts), max(prompts.lengths)), dtype=bool)
    for which in range(len(prompts)):
        mask[which, places(prompts, which)[1][1]] = True
    words = xr.DataArray(mask, dims=("prompt", "key"))
    one = gaze_saliency(model, prompts, [3], words)
    image, named = places(prompts, 0)
    maps = sk.run(model, prompts.subset([0]), [sk.AttentionMap([3], range(4))]).attention[0]
    wanted = metrics.gaze_shift(maps.values[:, :, named[1] - 1 : named[1] + 1][..., image])
    np.testing.assert_allclose(one.values[0, image], wanted, rtol=1e-5)
    with pytest.raises(PromptError, match="prompt 0 has no picture, or no word that counts behind it"):
        gaze_saliency(model, prompts, [3], words & False)


def test_paint_raises_the_towers_patches_in_the_last_row(case):
    model, prompts = case
    edits = paint(model, prompts)
    early, late = (tower_attention(model, prompts, layer) for layer in (0, -2))
    local = edits[0].keys.array().values
    for which in range(len(prompts)):
        image, _ = places(prompts, which)
        wanted, _ = metrics.paint_tokens(early[which], late[which])
        np.testing.assert_array_equal(local[which, image], wanted)
    probe = sk.KeyMass("image", queries="last")
    plain, edited = (sk.run(model, prompts, [probe], own)["key_mass"].values for own in ([], edits[:1]))
    np.testing.assert_allclose(edited[:, :2], plain[:, :2], atol=1e-6)
    held = [np.nansum(np.where(local[:, None, None], one[:, 2:3], 0), (1, 2, 3)) for one in (plain, edited)]
    assert (held[1] > held[0]).all()


def test_paint_acts_on_local_and_on_summary_tokens_at_once(case):
    """The second edit once took the place of the first."""
    model, prompts = case
    local = sk.AmplifyLogits(0.7, keys=[1, 2], queries="last")
    summary = sk.AmplifyLogits(0.3, keys=[4], queries="last")
    probe = sk.KeyMass([1, 2], queries="last")
    alone, both = (sk.run(model, prompts, [probe], own)["key_mass"] for own in ([summary], [local, summary]))
    assert float(abs(both - alone).max()) > 1e-3


def test_paint_without_alpha_or_a_sink_of_the_tower_is_no_edit(case):
    model, prompts = case
    assert not [edit for edit in paint(model, prompts, alpha=0.0, beta=0.0)]
    with pytest.raises(PromptError, match="prompt 0 has no picture"):
        paint(model, sk.Prompts.from_chat([{"text": "Where?"}], model))
