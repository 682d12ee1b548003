"""Reliance on demonstrations: none where no row sees them, some on the query; shares are those of the roles."""

from dataclasses import replace

import numpy as np
import pytest

import sinkscope as sk
from sinkscope.errors import PromptError
from sinkscope.methods.demonstrations import ARMS, DEMONSTRATION, QUERY, demonstrations
from sinkscope.prompts.labels import Image
from sinkscope.tasks.examples import Examples
from sinkscope.tasks.scene_questions import scene_questions


@pytest.fixture(scope="module")
def case():
    model = sk.load_model("zoo:vlm-shapes")
    asked = scene_questions(model, 4, ("colour",), seed=3)
    images = [np.asarray(scene.image(asked.scale)) for scene in asked.scenes]
    items = [
        {"image": [images[(which + 1) % 4], images[which]], "text": question.text}
        for which, question in enumerate(asked.questions)
    ]
    return model, Examples(sk.Prompts.from_chat(items, model), asked.examples.answers)


def test_what_no_row_sees_is_relied_on_by_nothing(case):
    model, examples = case
    shown = sk.label_tokens(examples.prompts, {"shown": Image(0)}) == "shown"
    found = demonstrations(model, examples, [sk.MaskKeys(shown)])
    plain, blank, query = (found["log_probability"].sel(arm=arm).values for arm in ARMS)
    np.testing.assert_allclose(blank, plain, atol=1e-5)
    assert np.abs(query - plain).max() > 0.1
    assert float(found["group_share"].sel(group=DEMONSTRATION).max()) == 0
    assert np.abs(np.subtract(*demonstrations(model, examples)["log_probability"].values[:2])).max() > 1e-3


def test_shares_of_the_pictures_are_that_of_their_role(case):
    model, examples = case
    found = demonstrations(model, examples)["group_share"]
    image = sk.run(model, examples.prompts, [sk.RoleShare("last")])["role_share"].sel(role="image")
    both = found.sel(group=[DEMONSTRATION, QUERY]).sum("group")
    np.testing.assert_allclose(both, image, atol=1e-5)


def test_one_picture_shows_nothing(case):
    model, examples = case
    single = scene_questions(model, 2, ("colour",)).examples
    with pytest.raises(PromptError, match=r"demonstrations: \[1\] pictures in a prompt"):
        demonstrations(model, single)
    mixed = [examples.prompts.made_of[0], {**examples.prompts.made_of[1], "image": [np.zeros((8, 8, 3), np.uint8)] * 3}]
    uneven = replace(examples.subset([0, 1]), prompts=sk.Prompts.from_chat(mixed, model))
    with pytest.raises(PromptError, match=r"demonstrations: \[2, 3\] pictures in a prompt"):
        demonstrations(model, uneven)
