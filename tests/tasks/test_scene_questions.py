"""Questions about held-out pictures: the kind of picture, files of them, answers, and what each visual token shows."""

import json

import numpy as np
import pytest
from PIL import Image

import sinkscope as sk
from sinkscope.tasks import photo_scenes, scenes
from sinkscope.tasks.scene_questions import scene_questions, write_pictures


@pytest.fixture(scope="module")
def model():
    return sk.load_model("zoo:vlm-shapes")


@pytest.fixture
def photographs(monkeypatch):
    """Those of a package that is installed with the tests."""
    monkeypatch.setattr(photo_scenes, "HELD_OUT", ("sklearn/china.jpg",))


@pytest.mark.parametrize(("kind", "side"), [("shapes", scenes.SIDE), ("photographs", photo_scenes.SIDE)])
def test_pictures_are_written_with_questions(tmp_path, photographs, kind, side):
    paths = write_pictures(tmp_path / "pictures", 2, pictures=kind)
    for path in paths:
        with Image.open(path) as picture:
            assert picture.size == (side, side)
    rows = [json.loads(line) for line in (tmp_path / "pictures" / "questions.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * len(scenes.FAMILIES)
    assert rows[0]["image"] == paths[0].name == f"{kind}-00.png"
    assert set(rows[0]) == {"image", "text", "answer", "family", "about"}


def test_other_pictures_are_refused(model, tmp_path):
    with pytest.raises(sk.PromptError, match=r"scene_questions\(pictures='photos'\): there are 'shapes' and 'photo"):
        scene_questions(model, 2, pictures="photos")
    with pytest.raises(sk.PromptError, match=r"write_pictures\(pictures='photos'\)"):
        write_pictures(tmp_path / "new", 2, pictures="photos")
    assert not (tmp_path / "new").exists()


def test_a_model_of_shapes_can_be_asked_about_photographs(model, photographs):
    asked = scene_questions(model, 2, ("colour",), pictures="photographs")
    assert asked.scale == 1
    assert asked.scenes[0].pixels.shape == (224, 224, 3)
    assert asked.families == ["colour", "colour"]


def test_tokens_that_show_a_shape_lie_where_it_is(model):
    asked = scene_questions(model, 3, ("colour",))
    reading = sk.run(model, asked.prompts, [sk.KeyMass()])
    shown, about = asked.covered(reading), asked.covered(reading, "about")
    image = (reading["token_role"] == "image").values
    assert np.isnan(shown.values[~image]).all()
    for row, scene in enumerate(asked.scenes):
        assert float(shown[row].mean()) == pytest.approx((scene.owner >= 0).mean(), abs=1e-6)
        assert (about.values[row][image[row]] <= shown.values[row][image[row]] + 1e-12).all()
    assert (asked.background(reading).values[image] == (shown.values[image] < 0.5)).all()
    with pytest.raises(sk.PromptError, match="expected a reading of these 3 prompts"):
        asked.covered(reading.isel(prompt=[0]))


def test_families_whose_answers_begin_alike_are_left_out(model, monkeypatch):
    monkeypatch.setitem(scenes.FAMILIES, "colour", ("red", "red"))
    with pytest.raises(sk.PromptError, match="begins two answers of each of them with the same token"):
        scene_questions(model, 2, ("colour",))
