"""Pictures of coloured shapes: drawn anew from their shapes, in a mosaic, and what is not in them."""

import hashlib

import numpy as np

from sinkscope.tasks import scenes


def test_held_out_pictures_stay_those_that_models_were_measured_on():
    pixels = np.stack([scene.pixels for scene in scenes.held_out(8)])
    # Float rounding differs between processors by a unit at most: means over blocks tell pictures apart and hold.
    blocks = pixels.reshape(8, 4, 16, 4, 16, 3).mean((2, 4, 5)).round().astype(np.uint8)
    assert hashlib.sha256(blocks.tobytes()).hexdigest()[:12] == "5c53235c6443"


def test_a_scene_is_drawn_anew_from_some_of_its_shapes():
    rng = np.random.default_rng(3)
    scene = scenes.make_scene(rng, 5)
    one = scenes.render(scene.things[2:3], "plain", rng)
    assert one.things == scene.things[2:3]
    np.testing.assert_array_equal(one.owner == 0, scene.owner == 2)
    assert one.background == "plain"


def test_one_ground_of_a_mosaic_has_the_shape_asked_about():
    pixels, question, (left, top, right, bottom) = scenes.mosaic(np.random.default_rng(1))
    assert pixels.shape == (256, 256, 3)
    assert (right - left, bottom - top) == (64, 64)
    colour = scenes.COLOURS[question.text.split()[-1].rstrip("?")]
    near = (np.abs(pixels.astype(int) - colour).max(-1) < 40).astype(float)
    inside = near[top:bottom, left:right].mean()
    assert question.answer in scenes.SHAPES
    assert inside > 0.05
    assert near.sum() - near[top:bottom, left:right].sum() < 0.02 * near.size


def test_what_is_not_there_by_how_much_of_it_is():
    thing = scenes.Thing("red", "circle", 0, 10, 10, 8), scenes.Thing("blue", "square", 4, 30, 30, 8)
    scene = scenes.render(thing, "plain", np.random.default_rng(0))
    assert scenes.absent(scene, 2) == [("red", "square"), ("blue", "circle")]
    assert len(scenes.absent(scene, 0)) == 4 * 2
    assert ("red", "cross") in scenes.absent(scene, 1)
    assert sum(len(scenes.absent(scene, parts)) for parts in range(3)) == 24 - 2
