"""Pixtral: images at their own shapes, several prompts in a batch, rows ended by tokens that are no placeholders."""

import numpy as np
import pytest
import torch
from vlm_models import image

import sinkscope as sk
from prompts.pixtral import PATCH, pixtral
from sinkscope.errors import PromptError
from sinkscope.prompts import Prompts
from sinkscope.roles import ROLE_INDEX

ITEMS = [{"image": image(32, 20), "text": "What?"}, {"image": image(24, 24), "text": "What color?"}]


@torch.no_grad()
def test_two_prompts_one_by_one_and_together_give_the_same():
    model = pixtral()
    prompts = Prompts.from_chat(ITEMS, model)
    alone = sk.run(model, prompts, [sk.KeyMass(), sk.Logits()])
    together = sk.run(model, prompts, [sk.KeyMass(), sk.Logits()], batch_size=2)
    np.testing.assert_allclose(together["key_mass"], alone["key_mass"], atol=1e-5)
    for which, prompt in enumerate(ITEMS):
        inputs = model.processor(images=[[prompt["image"]]], text=[_written(model, prompt["text"])])
        expected = model.model(**inputs).logits[0, -1]
        np.testing.assert_allclose(alone["logits"][which, 0], expected, atol=1e-5)
        np.testing.assert_allclose(together["logits"][which, 0], expected, atol=1e-5)


def _written(model, text):
    content = [{"type": "image"}, {"type": "text", "text": text}]
    return model.processor.apply_chat_template([{"role": "user", "content": content}])


def test_tokens_lie_where_the_tower_looks():
    prompts = Prompts.from_chat(ITEMS, pixtral())
    for (rows, columns), grid, roles in zip([(5, 8), (6, 6)], prompts.grids, prompts.roles, strict=True):
        patches = ~np.isnan(grid.row)
        np.testing.assert_array_equal(grid.row[patches], np.repeat(np.arange(rows), columns))
        np.testing.assert_array_equal(grid.col[patches], np.tile(np.arange(columns), rows))
        np.testing.assert_allclose(grid.box[patches][-1], [4 * (columns - 1), 4 * (rows - 1), 4 * columns, 4 * rows])
        assert (patches == (roles == ROLE_INDEX["image"])).all()
    larger = Prompts.from_chat([{"image": image(64, 40), "text": "a"}], pixtral()).grids[0]
    np.testing.assert_allclose(np.nanmax(larger.box, axis=0)[2:], [64, 40])


def test_processor_output_of_several_images():
    model = pixtral()
    texts = ["<image><image>What?", "<image>What color?"]
    given = model.processor(images=[[image(32, 20), image(24, 24)], [image(8, 12)]], text=texts)
    prompts = Prompts.from_inputs(given, model)
    assert [int(np.nanmax(grid.image)) + 1 for grid in prompts.grids] == [2, 1]
    assert [int((~np.isnan(grid.row)).sum()) for grid in prompts.grids] == [5 * 8 + 6 * 6, 3 * 2]
    assert np.isnan(prompts.grids[0].box).all()
    assert sk.run(model, prompts, [sk.KeyMass()]).sizes["prompt"] == 2
    lost = given | {"image_sizes": given["image_sizes"][:2]}
    assert Prompts.from_inputs(lost, model).grids == (None, None)


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_tower_reads_each_image_alone(batch_size):
    model = pixtral()
    prompts = Prompts.from_chat([*ITEMS, {"image": image(24, 24), "text": "a"}], model)
    found = sk.run(model, prompts, [sk.ResidualNorm()], tower="vision", batch_size=batch_size)
    assert found.sizes["prompt"] == 3
    tower = model.model.get_submodule(model.backend.vision_root())
    for which, size in enumerate([(20, 32), (24, 24)]):
        values = prompts.extras[which]["pixel_values"]
        states = tower(values, output_hidden_states=True).hidden_states
        expected = states[1][0].norm(dim=-1)
        assert len(expected) == size[0] * size[1] // PATCH**2
        np.testing.assert_allclose(
            found["residual_norm"].sel(site="0.post")[which, : len(expected)], expected, rtol=1e-5
        )


def test_shapes_that_the_model_is_not_told_do_not_share_a_batch():
    prompts = Prompts.from_chat(ITEMS, pixtral())
    bare = Prompts(**{**vars(prompts), "extras": tuple({"pixel_values": e["pixel_values"]} for e in prompts.extras)})
    with pytest.raises(PromptError, match=r"'pixel_values' has shapes .* Run them with batch_size=1"):
        bare.batch([0, 1])
