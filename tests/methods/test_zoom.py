"""Zooming: a crop stands beside the whole picture, where the map says; heads for an aim are the planted ones."""

import numpy as np
import pytest

import sinkscope as sk
from sinkscope import testing
from sinkscope.errors import EditError, PromptError
from sinkscope.methods.head_hunter import head_hunter
from sinkscope.methods.zoom import (
    ZoomSettings,
    beside,
    contrast_layers,
    contrast_maps,
    masked,
    question_maps,
    zoom,
)
from sinkscope.prompts.labels import Image
from sinkscope.roles import ROLE_INDEX
from sinkscope.tasks import scenes


@pytest.fixture(scope="module")
def model():
    return sk.load_model("zoo:vlm-shapes")


def picture(red=(10, 10, 30, 30)):
    pixels = np.zeros((48, 48, 3), np.uint8)
    pixels[red[1] : red[3], red[0] : red[2]] = [255, 0, 0]
    return pixels


def test_a_crop_is_a_second_picture_with_the_pixels_of_its_box(model):
    items = [{"image": picture(), "text": "What colour is the square?"}]
    prompts = sk.Prompts.from_chat(items, model)
    both, alone = (prompts.crop([(10, 10, 30, 30)], model, beside=beside) for beside in (True, False))
    counts = [int((sk.label_tokens(p, {"whole": Image(0)}) == "whole").sum()) for p in (prompts, both, alone)]
    assert counts[0] == counts[1] == counts[2]
    assert int((sk.label_tokens(both, {"part": Image(1)}) == "part").sum()) == counts[0]
    red = sk.Prompts.from_chat(
        [{"image": np.full((20, 20, 3), [255, 0, 0], np.uint8), "text": items[0]["text"]}], model
    )
    assert alone.digest == red.digest
    assert prompts.crop([None], model).digest == prompts.digest
    assert both.subset([0]).made_of[0]["text"] == items[0]["text"]


def test_a_vision_encoder_sees_the_part():
    encoder = sk.load_model("dinov2-small")
    prompts = sk.Prompts.from_images([picture()], encoder)
    part = prompts.crop([(10, 10, 30, 30)], encoder)
    assert len(part) == 1
    assert part.digest != prompts.digest


def test_errors_of_crops(model):
    prompts = sk.Prompts.from_chat([{"image": picture(), "text": "Where?"}], model)
    with pytest.raises(PromptError, match=r"holds no pixel of its picture \(48 x 48\)"):
        prompts.crop([(60, 0, 70, 5)], model)
    with pytest.raises(PromptError, match=r"one box \(or None\) per prompt is needed: 1 prompts, 2 boxes"):
        prompts.crop([None, None], model)
    text = sk.Prompts.from_ids([[1, 5]], model)
    with pytest.raises(PromptError, match="these prompts do not know their pictures"):
        text.crop([None], model)
    bare = sk.Prompts.from_chat([{"text": "Where?"}], model)
    with pytest.raises(PromptError, match="prompt 0 has no picture of pixels to crop"):
        bare.crop([(0, 0, 5, 5)], model)
    with pytest.raises(PromptError, match="prompt 0 has no picture to look at"):
        question_maps(model, bare, [0])


@pytest.mark.parametrize("rule", ["window", "components", "funnel"])
def test_a_question_is_asked_again_with_the_crop(model, rule):
    items = [{"image": picture(), "text": "What colour is the square?"}]
    found = zoom(model, items, ZoomSettings(rule=rule, max_new_tokens=2))
    left, top, right, bottom = found.boxes[0]
    assert 0 <= left < right <= 48
    assert 0 <= top < bottom <= 48
    assert found.maps[0].shape == question_maps(model, sk.Prompts.from_chat(items, model), [0])[0].shape
    assert list(found.table().columns) == ["left", "top", "right", "bottom", "before", "after"]
    assert found.plot().get_xlabel() == "column"
    assert "zhang2025" in found.cite()


def test_a_funnel_shows_three_crops_from_the_closest_on(model):
    items = [{"image": picture(), "text": "What colour is the square?"}]
    found = zoom(model, items, ZoomSettings(rule="funnel", base=12, max_new_tokens=1))
    widths = [right - left for left, _, right, _ in found.crops[0]]
    assert len(widths) == 3
    assert widths == sorted(widths)
    assert found.boxes[0] == found.crops[0][0]
    prompts = sk.Prompts.from_chat(items, model)
    shown = beside(prompts, [found.crops[0]], model)
    parts = [prompts.crop([box], model).made_of[0]["image"][1] for box in found.crops[0]]
    assert [part.size for part in shown.made_of[0]["image"][1:]] == [part.size for part in parts]
    assert beside(prompts, [found.crops[0][:1]], model).digest == prompts.crop([found.crops[0][0]], model).digest


def test_an_unknown_rule(model):
    with pytest.raises(PromptError, match=r"zoom\(rule='guess'\): use 'window'"):
        zoom(model, [{"image": picture(), "text": "Where?"}], ZoomSettings(rule="guess"))


@pytest.fixture(scope="module")
def small(model):
    """Pictures of one shape in a sixteenth of the plane: too small to be read when the whole is scaled to 64 pixels."""
    rng = np.random.default_rng(0)
    items, answers, boxes = [], [], []
    for scene in scenes.held_out(120, first=5000):
        if len(scene.things) != 1 or len(items) == 6:
            continue
        part, asked = scene.pixels, scenes.ask(scene, "shape", rng)
        whole = np.broadcast_to(part[0, 0], (4 * len(part), 4 * len(part), 3)).copy()
        top, left = (rng.integers(0, 4, 2) * len(part)).tolist()
        whole[top : top + len(part), left : left + len(part)] = part
        items.append({"image": whole, "text": asked.text})
        answers.append(asked.answer)
        boxes.append((left, top, left + len(part), top + len(part)))
    return items, answers, boxes


def right(model, prompts, answers):
    written = sk.generate(model, prompts, max_new_tokens=1)
    words = [model.tokenizer.decode(ids[-1:]).strip() for ids in written.ids]
    return np.mean([word == answer for word, answer in zip(words, answers, strict=True)])


def test_a_shape_is_readable_only_in_the_crop_and_the_gradient_finds_it(model, small):
    items, answers, boxes = small
    prompts = sk.Prompts.from_chat(items, model)
    side = 256
    away = [((left + 64) % side, top, (left + 64) % side + 64, top + 64) for left, top, _, _ in boxes]
    assert right(model, prompts, answers) < 0.6
    assert right(model, prompts.crop(away, model), answers) < 0.6
    assert right(model, prompts.crop(boxes, model), answers) == 1
    found = zoom(model, items, ZoomSettings(by="gradient", layers=[4], base=64, max_new_tokens=1))
    after, before = (
        np.mean([w == a for w, a in zip(said, answers, strict=True)]) for said in (found.after, found.before)
    )
    assert after >= before + 0.2


def test_the_map_of_the_gradient_is_that_of_its_definition(model):
    prompts = sk.Prompts.from_chat([{"image": picture(), "text": "What colour is the square?"}], model)
    (found,) = question_maps(model, prompts, [2], by="gradient")
    heads = range(model.backend.towers["text"].attention[0].heads)
    parts = [
        sk.run(model, prompts, [sk.AttentionGradient([2], heads, weighted=False)]).attention_gradient,
        sk.run(model, prompts, [sk.AttentionMap([2], heads)]).attention,
    ]
    gradient, weight = (part[0, 0, :, -1].values for part in parts)
    image = np.flatnonzero(prompts.roles[0] == ROLE_INDEX["image"])
    wanted = (weight * np.maximum(gradient, 0)).mean(0)[image]
    np.testing.assert_allclose(np.sort(found.ravel()), np.sort(wanted), rtol=1e-4, atol=1e-9)
    with pytest.raises(PromptError, match=r"question_maps\(by='guess'\): use 'attention' or 'gradient'"):
        question_maps(model, prompts, [2], by="guess")


def test_the_heads_found_for_an_aim_are_the_planted_ones():
    planted, truth = testing.planted_sink(0)
    prompts = sk.Prompts.from_ids([[planted.config.bos_token_id, *range(5, 40)]], planted)

    def less_sink(ds):
        return -ds.key_mass.isel(key=0).sum(["layer", "head"]).mean("prompt")

    found = head_hunter(
        planted, prompts, lambda heads: sk.MaskKeys("first", heads=heads), less_sink, [sk.KeyMass()], count=2
    )
    assert set(zip(found.layer.values.tolist(), found["head"].values.tolist(), strict=True)) <= set(truth.heads)
    assert np.all(np.diff(found.value) > 0)
    with pytest.raises(EditError, match=r"head_hunter\(count=0\): at least one head"):
        head_hunter(planted, prompts, lambda heads: sk.MaskKeys("first", heads=heads), less_sink, [], count=0)


def test_what_lies_outside_of_a_region_is_black_and_cut_off():
    region = np.zeros((48, 48), bool)
    region[4:8, 10:20] = True
    region[8, 12] = True
    pixels = np.full((48, 48, 3), 200, np.uint8)
    cut, whole = np.asarray(masked(pixels, region)), np.asarray(masked(pixels, region, crop=False))
    assert cut.shape == (5, 10, 3)
    assert (cut[:4] == 200).all()
    assert cut[4].sum() == 3 * 200
    assert whole.shape == (48, 48, 3)
    assert ((whole > 0).all(-1) == region).all()
    for odd in (region[:5], region & False, region.astype(float)):
        with pytest.raises(PromptError, match=r"masked: a region of .* Give a bool map of the picture's size"):
            masked(pixels, odd)


def test_the_contrast_is_the_map_that_zoom_crops_by(model):
    items = [{"image": picture(), "text": "What colour is the square?"}]
    layers = contrast_layers(model)
    assert layers == [4, 5]
    (one,) = contrast_maps(model, items, layers)
    (other,) = zoom(model, items, ZoomSettings(layers=layers, max_new_tokens=1)).maps
    np.testing.assert_array_equal(one, other)
    (plain,) = question_maps(model, sk.Prompts.from_chat(items, model), layers)
    assert not np.allclose(one / one.sum(), plain / plain.sum(), rtol=1e-2)
