"""Prompts of the vision tower inside a vision-language model."""

import numpy as np
import pytest
import torch
from vlm_models import FAMILIES, image, vlm

from sinkscope.errors import PromptError
from sinkscope.prompts import Prompts
from sinkscope.roles import ROLE_INDEX

ROOTS = ("vision_tower", "visual", "vision_model")


def tower_of(model):
    return next(m for path, m in model.model.named_modules() if path.split(".")[-1] in ROOTS)


def colours(model, inputs):
    """Mean colour of each patch, in the order of the pixel values."""
    processor = model.processor.image_processor
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    if "pixel_values" in inputs:
        seen = torch.nn.functional.avg_pool2d(inputs["pixel_values"][0], 4).flatten(1).T
    else:
        seen = inputs["hidden_states"].unflatten(1, (3, -1)).mean(-1)
    return (seen * std + mean).numpy()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_tower_prompts_run_and_lie_where_the_tower_looks(family):
    model = vlm(family)
    width, height = 100, 44
    items = [{"image": [image(width, height)], "text": "What?"}, {"image": image(64, 64), "text": "a"}]
    prompts = Prompts.from_chat(items, model)
    tower = tower_of(model)
    made = prompts.seen_by(tower, model)
    origin = np.stack(list(made.origin.values()), axis=1)
    assert origin.shape == (len(made), 3)
    assert set(origin[:, 0]) == {0, 1}
    states = []
    handle = _first_block(tower).register_forward_pre_hook(
        lambda _m, args, kwargs: states.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    for index, (prompt, picture, tile) in enumerate(origin):
        batch = made.batch([index])
        tower(**batch.inputs)
        assert states[-1].shape[-2] == made.lengths[index]
        assert picture == 0
        grid = made.grids[index]
        assert set(grid.tile[~np.isnan(grid.tile)]) == {tile}
        if prompt == 0 and family != "qwen2_5_vl":
            _check(grid, colours(model, batch.inputs), width, height)
    handle.remove()


def _first_block(tower):
    return max((m for m in tower.modules() if isinstance(m, torch.nn.ModuleList)), key=len)[0]


def _check(grid, colour, width, height):
    patches = ~np.isnan(grid.row)
    left, top, right, bottom = grid.box[patches].T
    inside = colour[:, 2] > 0.98
    x, y = colour[:, 0] * (width - 1) + 0.5, colour[:, 1] * (height - 1) + 0.5
    for seen, low, high in ((x, left, right), (y, top, bottom)):
        assert (np.abs(seen - (low + high) / 2) <= np.maximum(1.2, 0.15 * (high - low)))[inside].all()
    assert (colour[np.isnan(left), 2] < 0.3).all()


@torch.no_grad()
def test_window_order_is_the_one_the_blocks_see():
    model = vlm("qwen2_5_vl")
    prompts = Prompts.from_chat([{"image": image(100, 44), "text": "a"}], model)
    tower = tower_of(model)
    made = prompts.seen_by(tower, model)
    inputs = made.batch([0]).inputs
    embedded = tower.patch_embed(inputs["hidden_states"])
    seen = []
    handle = tower.blocks[0].register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    tower(**inputs)
    handle.remove()
    # Find each state that the first block got among the patches as the processor ordered them.
    order = torch.cdist(seen[0].double(), embedded.double()).argmin(1)
    assert sorted(order.tolist()) == list(range(len(order)))
    assert order.tolist() != sorted(order.tolist())
    _check(made.grids[0], colours(model, inputs)[order.numpy()], 100, 44)


def test_tiles_are_told_from_the_whole_image():
    model = vlm("internvl")
    prompts = Prompts.from_chat([{"image": [image(64, 32), image(16, 16)], "text": "a"}], model)
    made = prompts.seen_by(tower_of(model), model)
    origin = np.stack(list(made.origin.values()), axis=1)
    assert origin.tolist() == [[0, 0, 1], [0, 0, 2], [0, 0, 0], [0, 1, 0]]
    assert np.nanmax(made.grids[0].box[:, 2]) == pytest.approx(32)
    assert np.nanmin(made.grids[1].box[:, 0]) == pytest.approx(32)
    assert (made.roles[0] == ROLE_INDEX["bos"]).sum() == 1
    assert made.key0 == "class token '[CLS]'"


def test_pictures_of_a_processor_output_have_no_boxes():
    model = vlm("llava")
    asked = Prompts.from_chat([{"image": image(64, 48), "text": "a"}, {"image": image(9, 9), "text": "a"}], model)
    whole = Prompts.from_inputs(asked.batch([0, 1]).inputs, model)
    made = whole.seen_by(tower_of(model), model)
    origin = np.stack(list(made.origin.values()), axis=1)
    assert len(made) == 2
    assert len(origin) == 2
    assert np.isnan(made.grids[1].box).all()
    np.testing.assert_array_equal(made.grids[1].row[1:], np.repeat(np.arange(4), 4))


def test_the_own_tower_reads_the_prompts_themselves():
    prompts = Prompts.from_chat([{"text": "a"}], vlm("llava"))
    assert prompts.seen_by(None, vlm("llava")) is prompts
    assert prompts.origin == {}


def test_prompts_without_images():
    model = vlm("llava")
    with pytest.raises(PromptError, match="hold no images for the vision tower"):
        Prompts.from_chat([{"text": "a"}], model).seen_by(tower_of(model), model)


def test_packed_towers_take_one_image_a_call():
    model = vlm("qwen2_vl")
    prompts = Prompts.from_chat([{"image": [image(64, 48)] * 2, "text": "a"}], model)
    made = prompts.seen_by(tower_of(model), model)
    assert made.spans(8) == [range(0, 1), range(1, 2)]
    with pytest.raises(PromptError, match=r"joins all images of a call into one sequence\. Run it with batch_size=1"):
        made.batch([0, 1])
