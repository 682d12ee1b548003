"""Where each visual token looks, checked against the models' own packing of a picture that encodes its coordinates."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from vlm_models import FAMILIES, image, vlm

from sinkscope.errors import PromptError
from sinkscope.prompts import Prompts, grids
from sinkscope.roles import ROLE_INDEX

SIZES = [(96, 96), (60, 100), (100, 44), (150, 40), (33, 120)]
"""Width and height of the pictures."""


class _Means(nn.Module):
    """Stands for a vision tower: a patch's feature is the mean colour of its pixels, then zeros."""

    def __init__(self, tower, class_token):
        super().__init__()
        self.tower, self.class_token = tower, class_token

    def forward(self, pixel_values, **_):
        means = nn.functional.avg_pool2d(pixel_values, 4).flatten(2).transpose(1, 2)
        features = nn.functional.pad(means, (0, 32 - 3))
        if self.class_token:
            features = torch.cat([torch.full_like(features[:, :1], math.nan), features], dim=1)
        return transformers_output(features)


def transformers_output(features):
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    return BaseModelOutputWithPooling(last_hidden_state=features, hidden_states=(features,) * 4)


class _Colours(nn.Module):
    """Stands for a projector: averages the feature vectors that the model has put side by side."""

    def forward(self, features):
        return features.unflatten(-1, (-1, 32)).mean(-2)


def _qwen_colours(pixel_values, merge=4):
    # (patch, channel x time x height x width); the merger takes each run of four patches for one token.
    return pixel_values.unflatten(1, (3, -1)).mean(-1).unflatten(0, (-1, merge)).mean(1)


def seen_colours(handle, extras):
    """Give the mean colour behind each visual token, as the model itself packs them; NaN for separators."""
    inner = handle.model.model
    kind = handle.config.model_type
    if kind.startswith("qwen"):
        return _qwen_colours(extras["pixel_values"])
    if kind == "idefics3":
        inner.vision_model.forward = _Means(None, False).forward
        inner.connector.modality_projection = _Colours()
    else:
        inner.vision_tower.forward = _Means(None, kind in ("llava", "llava_next", "internvl")).forward
        inner.multi_modal_projector = _Colours()
    if kind == "gemma3":
        inner.multi_modal_projector = _GemmaPool()
    if hasattr(inner, "image_newline"):
        inner.image_newline.data = torch.full_like(inner.image_newline, math.nan)
    names = ("pixel_values", "image_sizes", "batch_num_images", "pixel_attention_mask")
    found = inner.get_image_features(**{n: extras[n] for n in names if n in extras})
    found = getattr(found, "pooler_output", found)
    return torch.cat([f.flatten(0, -2) for f in found])[:, :3]


class _GemmaPool(nn.Module):
    def forward(self, features):
        square = features.transpose(1, 2).unflatten(2, (4, 4))
        return nn.functional.avg_pool2d(square, 2).flatten(2).transpose(1, 2)


def _denormalised(handle, colours):
    processor = handle.processor.image_processor
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    return (colours * std + mean).numpy()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_box_of_each_token_is_where_the_model_looks(family, size):
    width, height = size
    handle = vlm(family)
    prompts = Prompts.from_chat([{"image": image(width, height), "text": "What?"}], handle)
    grid, roles = prompts.grids[0], prompts.roles[0]
    colours = _denormalised(handle, seen_colours(handle, prompts.extras[0]))
    visual = np.isin(prompts.ids[0], [handle.config.image_token_id])
    assert len(colours) == visual.sum()
    colour = np.full((len(visual), 3), np.nan)
    colour[visual] = colours
    # Separators are exactly the tokens without a colour.
    np.testing.assert_array_equal(np.isnan(colour[:, 0]), np.isnan(grid.row))
    np.testing.assert_array_equal(roles == ROLE_INDEX["image"], ~np.isnan(grid.row))
    assert set(roles[visual & np.isnan(grid.row)]) <= {ROLE_INDEX["special"]}
    left, top, right, bottom = grid.box.T
    inside = colour[:, 2] > 0.98  # no padding in view
    assert inside.sum() > 3
    x, y = colour[:, 0] * (width - 1) + 0.5, colour[:, 1] * (height - 1) + 0.5
    # Resampling blurs across a patch border and eight bits round: a tenth of a patch, or a pixel.
    for seen, low, high in ((x, left, right), (y, top, bottom)):
        apart = np.abs(seen - (low + high) / 2)[inside]
        assert (apart <= np.maximum(1.0, 0.12 * (high - low))[inside]).all(), apart.max()
    blind = np.isnan(left) & ~np.isnan(grid.row)
    assert (colour[blind, 2] < 0.2).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_view_covers_the_image_once(family):
    grid = Prompts.from_chat([{"image": image(100, 60), "text": "What?"}], vlm(family)).grids[0]
    for tiles in (grid.tile == 0, grid.tile > 0):
        seen = tiles & ~np.isnan(grid.box[:, 0])
        if not seen.any():
            continue
        box = grid.box[seen]
        area = ((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])).sum()
        # LLaVA keeps the central square alone; LLaVA-Next drops rows that are partly padding.
        least = {"llava": 3600, "llava_next": 4800, "llava_onevision": 4800}.get(family, 6000)
        assert least - 1e-6 <= area <= 6000 + 1e-6
        places = list(zip(grid.row[seen], grid.col[seen], strict=True))
        assert len(set(places)) == len(places)
    assert 0 in grid.tile


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_two_images_are_told_apart_and_run(family):
    handle = vlm(family)
    prompts = Prompts.from_chat([{"image": [image(60, 100), image(90, 40)], "text": "What?"}], handle)
    grid = prompts.grids[0]
    assert grid.sizes == ((100.0, 60.0), (40.0, 90.0))
    first, second = grid.box[grid.image == 0], grid.box[grid.image == 1]
    assert np.nanmax(first[:, 3]) > 75
    assert np.nanmax(second[:, 2]) > 64
    assert np.nanmax(second[:, 3]) == pytest.approx(40)
    place = np.flatnonzero(~np.isnan(grid.image))
    assert (np.diff(grid.image[place]) >= 0).all()
    logits = handle.model(**prompts.batch([0]).inputs).logits
    assert logits.isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_batch_of_mixed_sizes_equals_one_by_one(family):
    handle = vlm(family)
    items = [
        {"image": image(60, 100), "text": "What color is the square?"},
        {"image": [image(150, 40), image(64, 64)], "text": "What?"},
        {"text": "the cat sat."},
    ]
    prompts = Prompts.from_chat(items, handle)
    batch = prompts.batch([0, 1, 2])
    together = handle.model(**batch.inputs).logits
    for row in range(3):
        alone = handle.model(**prompts.batch([row]).inputs).logits[0]
        torch.testing.assert_close(together[row][batch.real[row]], alone, rtol=1e-4, atol=1e-4)


def test_grid_unpacks_to_row_and_column():
    prompts = Prompts.from_chat([{"image": image(64, 64), "text": "What?"}], vlm("llava"))
    row, col = prompts.grids[0]
    patches = ~np.isnan(row)
    np.testing.assert_array_equal(row[patches], np.repeat(np.arange(4), 4))
    np.testing.assert_array_equal(col[patches], np.tile(np.arange(4), 4))
    np.testing.assert_allclose(prompts.grids[0].box[patches][5], [16, 16, 32, 32])


def test_anyres_rows_end_with_a_separator():
    prompts = Prompts.from_chat([{"image": image(96, 96), "text": "What?"}], vlm("llava_next"))
    grid = prompts.grids[0]
    tiled = grid.tile > 0
    columns = int(grid.col[tiled].max()) + 1
    rows = int(grid.row[tiled].max()) + 1
    assert (rows, columns) == (8, 8)
    assert grid.separator.sum() == rows
    first = np.flatnonzero(tiled)[0]
    np.testing.assert_array_equal(np.flatnonzero(grid.separator) - first, columns + (columns + 1) * np.arange(rows))
    assert sorted(set(grid.tile[tiled])) == [1, 2, 3, 4]


@torch.no_grad()
def test_onevision_shrinks_a_large_grid():
    handle = vlm("llava_onevision", vision_aspect_ratio="anyres_max_2")
    prompts = Prompts.from_chat([{"image": image(200, 190), "text": "What?"}], handle)
    grid = prompts.grids[0]
    tiled = grid.tile > 0
    assert int(tiled.sum()) <= 2 * 16 * 1.21
    assert np.nanmax(grid.box[tiled], axis=0).tolist() == pytest.approx([200, 190, 200, 190], abs=60)
    assert handle.model(**prompts.batch([0]).inputs).logits.isfinite().all()


def test_llava_that_pads_to_a_square_marks_blind_tokens():
    handle = vlm("llava", do_pad=True)
    grid = Prompts.from_chat([{"image": image(80, 40), "text": "What?"}], handle).grids[0]
    patches = ~np.isnan(grid.row)
    blind = np.isnan(grid.box[patches, 0]).reshape(4, 4)
    np.testing.assert_array_equal(blind, [[True] * 4, [False] * 4, [False] * 4, [True] * 4])
    np.testing.assert_allclose(grid.box[patches][4], [0, 0, 20, 20])


def test_an_unknown_family_has_no_grid():
    handle = vlm("llava")
    visual = np.array([False, True, True, False])
    assert grids.place(handle.model.config.text_config, None, visual, [(8.0, 8.0)], {}) is None
    # Sixteen tokens are promised by the processor, two are there.
    with pytest.raises(PromptError, match=r"prompt 0: 2 image placeholders, but its 1 images give 16 tokens \(llava\)"):
        grids.place(handle.config, handle.processor.image_processor, visual, [(8.0, 8.0)], {})


@pytest.mark.parametrize("side", [112, 56, 224])
def test_the_grid_follows_the_pixels_and_not_the_table_of_positions(side):
    """DINOv2's ``image_size`` (518) is its table of positions, interpolated to whatever the processor makes."""
    vision = SimpleNamespace(model_type="dinov2", image_size=518, patch_size=14)
    config = SimpleNamespace(model_type="llava", vision_config=vision)
    size = {"height": side, "width": side}
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=size)
    patches = side // 14
    visual = np.array([False, *[True] * patches**2, False])
    pixels = {"pixel_values": torch.zeros(1, 3, side, side)}
    for given, inputs in ((processor, pixels), (processor, {}), (None, pixels)):
        grid = grids.place(config, given, visual, [(300.0, 300.0)], inputs)
        np.testing.assert_array_equal(grid.row[1:-1], np.repeat(np.arange(patches), patches))
        np.testing.assert_allclose(grid.box[1], [0, 0, 300 / patches, 300 / patches])
    with pytest.raises(PromptError, match=r"cannot be known: there are no pixel values and no image processor\. Pass"):
        grids.place(config, None, visual, [(300.0, 300.0)], {})
    with pytest.raises(PromptError, match=rf"prompt 3: {patches**2 + 2} image placeholders, but its 1 images give"):
        grids.place(config, processor, np.ones(patches**2 + 2, dtype=bool), [(300.0, 300.0)], pixels, 3)


def test_class_token_and_registers_among_the_features_come_first():
    vision = SimpleNamespace(model_type="dinov2_with_registers", image_size=518, patch_size=14, num_register_tokens=4)
    config = SimpleNamespace(model_type="llava", vision_config=vision)
    pixels = {"pixel_values": torch.zeros(1, 3, 28, 28)}
    for extra in (1, 4, 5):
        grid = grids.place(config, None, np.ones(extra + 4, dtype=bool), [(28.0, 28.0)], pixels)
        assert np.isnan(grid.row[:extra]).all()
        np.testing.assert_array_equal(grid.col[extra:], [0, 1, 0, 1])


def test_an_image_whose_size_decides_is_not_guessed():
    vision = SimpleNamespace(model_type="clip_vision_model", image_size=16, patch_size=4)
    config = SimpleNamespace(model_type="llava", vision_config=vision)
    processor = SiglipImageProcessorPil(size={"longest_edge": 16})
    with pytest.raises(PromptError, match="the size of the image decides how large the tower sees it"):
        grids.place(config, processor, np.ones(16, dtype=bool), [grids.UNKNOWN], {})
