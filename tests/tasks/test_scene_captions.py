"""Descriptions of pictures: which tokens name what, and how they are scored."""

import numpy as np
import pytest

import sinkscope as sk
from sinkscope.engine.generation import written_texts
from sinkscope.roles import ROLE_INDEX
from sinkscope.tasks import scenes
from sinkscope.tasks.scene_captions import scene_captions


@pytest.fixture(scope="module")
def model():
    return sk.load_model("zoo:vlm-shapes")


@pytest.fixture(scope="module")
def asked(model):
    return scene_captions(model, 3, seed=5)


@pytest.fixture(scope="module")
def written(model, asked):
    return sk.generate(model, asked.prompts, max_new_tokens=40)


def test_clean_pictures_are_described_and_nothing_else_is_named(model, asked, written):
    texts = written_texts(model, written)
    assert texts == [scenes.describe(scene)[1] for scene in asked.scenes]
    score = asked.score(texts)
    assert (float(score["chair_i"]), float(score["recall"])) == (0.0, 1.0)
    assert score["objects"].values.tolist() == [len(scene.things) for scene in asked.scenes]
    assert score["length"].values.tolist() == [3 * len(scene.things) for scene in asked.scenes]
    other = asked.score([*texts[1:], texts[0]])
    assert float(other["chair_i"]) > 0.5
    with pytest.raises(sk.PromptError, match=r"SceneCaptions.score: 1 descriptions of 3 pictures\. Give one each"):
        asked.score(texts[:1])


def test_each_token_belongs_to_the_phrase_that_it_is_part_of(model, asked, written):
    words = asked.words(model, written)
    generated = [int((roles == ROLE_INDEX["generated"]).sum()) for roles in written.roles]
    assert words.sizes == {"prompt": 3, "step": max(generated)}
    for which, scene in enumerate(asked.scenes):
        own = words.isel(prompt=which)
        assert "".join(own["text"].values).strip() == written_texts(model, written)[which]
        for number, thing in enumerate(scene.things):
            part = own["text"].values[own["mention"].values == number]
            assert "".join(part).split() == [thing.colour, thing.shape]
        assert own["starts"].values.sum() == 2 * len(scene.things)
        assert own["there"].values[own["mention"].values >= 0].all()
        outside = own["text"].values[own["mention"].values < 0]
        assert not set("".join(outside).replace(",", " ").split()) & {*scenes.COLOURS, *scenes.SHAPES}


def test_a_thing_that_is_not_there_is_told_from_one_that_is(model, asked):
    thing = asked.scenes[0].things[0]
    (colour, shape), *_ = scenes.absent(asked.scenes[0], 1)
    ids = model.tokenizer(f" {thing.colour} {thing.shape}, {colour} {shape}.", add_special_tokens=False)["input_ids"]
    one = asked.prompts.subset([0])
    both = sk.Prompts(**{
        **vars(one), "ids": (np.concatenate([one.ids[0], ids]),),
        "roles": (np.concatenate([one.roles[0], np.full(len(ids), ROLE_INDEX["generated"])]),),
    })  # fmt: skip
    first = type(asked)(one, asked.scenes[:1])
    words = first.words(model, both)
    pairs = zip(words["mention"].values[0].tolist(), words["there"].values[0].tolist(), strict=True)
    named = {number: there for number, there in pairs if number >= 0}
    assert named == {0: True, 1: False}


def test_grain_lies_on_the_pictures_alone(model, asked):
    noisy = scene_captions(model, 3, seed=5, grain=20.0)
    assert noisy.present == asked.present
    gap = [a.pixels.astype(float) - b.pixels for a, b in zip(noisy.scenes, asked.scenes, strict=True)]
    assert 15 < float(np.std(gap)) < 21
    with pytest.raises(sk.PromptError, match=r"scene_captions\(pictures='x'\): there are 'shapes' and 'photographs'"):
        scene_captions(model, 1, pictures="x")
