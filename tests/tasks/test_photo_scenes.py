"""Scenes on photographs: where the shapes are, which photographs are whose, what is said when one is absent."""

import numpy as np
import pytest

from sinkscope.errors import PromptError
from sinkscope.tasks import photo_scenes


def test_shapes_are_small_and_in_their_cells():
    for scene in photo_scenes.held_out(12):
        assert (scene.owner >= 0).mean() < 0.15
        for index, thing in enumerate(scene.things):
            rows, columns = np.nonzero(scene.owner == index)
            cell = int(rows.mean() * 3 // photo_scenes.SIDE), int(columns.mean() * 3 // photo_scenes.SIDE)
            assert cell == divmod(thing.cell, 3)


def test_no_photograph_is_both_trained_on_and_held_out(monkeypatch):
    assert not set(photo_scenes.TRAINING) & set(photo_scenes.HELD_OUT)
    monkeypatch.setattr(photo_scenes, "module_folder", lambda package: None)
    with pytest.raises(PromptError, match=r"skimage is not installed\. Run pip install scikit-image\."):
        photo_scenes.photograph("skimage/coins.png")


def test_every_photograph_is_carried_by_its_package():
    for name in (*photo_scenes.TRAINING, *photo_scenes.HELD_OUT):
        assert min(photo_scenes.photograph(name).size) >= photo_scenes.SIDE // 2


def test_pictures_are_the_same_each_time_and_no_held_out_one_is_trained_on():
    again = photo_scenes.held_out(2, first=3)
    for one, other in zip(photo_scenes.held_out(5)[3:], again, strict=True):
        assert np.array_equal(one.pixels, other.pixels)
    trained = photo_scenes.training_scene(3)
    assert not np.array_equal(trained.pixels, again[0].pixels)
    assert trained.background in photo_scenes.GROUNDS
