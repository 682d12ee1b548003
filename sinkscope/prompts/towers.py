"""What the vision tower inside a larger model reads: one prompt for each picture (an image, or one of its tiles)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sinkscope.errors import PromptError
from sinkscope.prompts import grids, naflex
from sinkscope.prompts.data import PatchGrid, PromptFields
from sinkscope.prompts.geometry import Cells, PixelMap, blank, plain_picture
from sinkscope.prompts.identity import image_settings
from sinkscope.prompts.images import image_processor, load_image, prefix_tokens, sequence_length
from sinkscope.prompts.layouts import Source, anyres_canvas, own_shapes, patch_size
from sinkscope.prompts.model import PromptModel
from sinkscope.prompts.text import check_list
from sinkscope.roles import ROLE_INDEX

ORIGIN = ("source_prompt", "source_image", "source_tile")
"""Coordinates over ``prompt`` of a reading of the tower."""

Seen = tuple[dict[str, torch.Tensor], np.ndarray, int, int]
"""Inputs of the tower, its tokens, and which image of the prompt and which tile of the image they are."""


def fields_of_tower(prompts: PromptFields, model: PromptModel, tower: torch.nn.Module) -> PromptFields:
    """Turn prompts of a vision-language model into prompts of its vision tower.

    The tower is called as ``tower(**batch.inputs)``. Tokens are in the order in which its blocks see them (Qwen2.5-VL
    sorts patches by window), so statistics of its attention need no reordering. Qwen towers join the images of a call
    into one sequence; their prompts are run one at a time.

    Args:
        prompts: made by ``from_chat`` (boxes in original pixels) or ``from_inputs`` (boxes NaN where the size of the
            image is not known).
        model: a ``sinkscope.models.handle.Model`` of the vision-language model.
        tower: its vision tower.

    Returns:
        The prompts; their ``origin`` says which prompt, image and tile each was taken from (tile 0: the whole image).

    Raises:
        PromptError: the prompts hold no images.
    """
    seen: list[tuple[Seen, tuple[float, float]]] = []
    origin: list[tuple[int, int, int]] = []
    for which, (inputs, grid) in enumerate(_parts(prompts)):
        for part in _pictures(inputs, grid, model, tower):
            sizes = grid.sizes if grid is not None else ()
            seen.append((part, sizes[part[2]] if part[2] < len(sizes) else grids.UNKNOWN))
            origin.append((which, part[2], part[3]))
    if not seen:
        raise PromptError(
            "these prompts hold no images for the vision tower. Give images with from_chat or from_inputs."
        )
    shapes = own_shapes(model.config)
    return replace(_fields(seen, tower, shapes), origin=dict(zip(ORIGIN, np.array(origin).T, strict=True)))


def takes_grid(module: torch.nn.Module) -> bool:
    """Say whether a vision encoder takes the patches of all pictures in one list, with their grids (Qwen-VL's)."""
    return "grid_thw" in inspect.signature(module.forward).parameters


def fields_of_packed(given: Mapping[str, torch.Tensor], model: PromptModel, sizes: Any = ()) -> PromptFields:
    """Build prompts of a vision encoder that takes patches with their grids; see ``Prompts.from_images``.

    Args:
        given: patches (``pixel_values`` or ``hidden_states``) and grids (``image_grid_thw`` or ``grid_thw``).
        model: the encoder.
        sizes: (height, width) of each original image, where they are known.

    Raises:
        PromptError: one of them is missing, or they do not fit.
    """
    patches, grid = (
        next((given[name] for name in names if name in given), None)
        for names in (("pixel_values", "hidden_states"), ("image_grid_thw", "grid_thw"))
    )
    if patches is None or grid is None or int(grid.prod(-1).sum()) != len(patches):
        shapes = {str(name): tuple(tensor.shape) for name, tensor in given.items()}
        raise PromptError(
            f"{type(model.model).__name__} takes patches of pictures in one list, and image_grid_thw: frames, rows and "
            f"columns of each. Got {shapes}; pass the image processor's whole output."
        )
    name = "pixel_values" if "pixel_values" in inspect.signature(model.model.forward).parameters else "hidden_states"
    whole = {"pixel_values": patches, "image_grid_thw": grid}
    if "merge_sizes" in inspect.signature(model.model.forward).parameters:  # VideoLLaMA 3 merges by what it is told
        whole["merge_sizes"] = (
            given["merge_sizes"] if "merge_sizes" in given else torch.ones(len(grid), dtype=torch.long)
        )
    parts = _packed(whole, sizes or (grids.UNKNOWN,) * len(grid), model.config, name)
    return _fields(
        [(part, size) for part, size in zip(parts, sizes or (grids.UNKNOWN,) * len(parts), strict=True)],
        model.model,
        False,
    )


def fields_of_packed_images(images: Any, model: PromptModel) -> PromptFields:
    """Build prompts of images for such an encoder; see ``Prompts.from_images``."""
    processor = image_processor(model)
    if processor is None:
        raise PromptError(
            "from_images: this model has no image processor. Pass one to load_model(..., processor=), or give its "
            "output to from_inputs."
        )
    listed = [load_image(one, f"image {n}") for n, one in enumerate(check_list(images, "images", "from_images"))]
    sizes = [(float(image.height), float(image.width)) for image in listed]
    found = fields_of_packed(processor(images=listed, return_tensors="pt"), model, sizes)
    return replace(found, images=image_settings(model), made_of=tuple(images))


def _fields(seen: list[tuple[Seen, tuple[float, float]]], tower: torch.nn.Module, shapes: bool) -> PromptFields:
    names = _names(tower, seen)
    fields = [_describe(names, part[1], size) for part, size in seen]
    first = fields[0][1][0]
    return PromptFields(
        ids=tuple(np.full(len(f[0]), -1, dtype=np.int64) for f in fields),
        roles=tuple(f[0] for f in fields),
        tokens=tuple(f[1] for f in fields),
        extras=tuple(part[0] for part, _ in seen),
        grids=tuple(f[2] for f in fields),
        key0=f"class token '{first}'" if first == "[CLS]" else f"patch '{first}' (this tower has no class token)",
        one_by_one=shapes or any("grid_thw" in part[0] for part, _ in seen),
    )


def _parts(prompts: PromptFields) -> list[tuple[dict[str, Any], Any]]:
    if prompts.whole is not None:
        grid = prompts.grids[0] if len(prompts) == 1 else None
        return [(dict(prompts.whole), grid)]
    return list(zip(prompts.extras, prompts.grids, strict=True))


def _pictures(inputs: dict[str, Any], grid: PatchGrid | None, model: PromptModel, tower: torch.nn.Module) -> list[Seen]:
    if "pixel_values" not in inputs:
        return []
    if "image_grid_thw" in inputs:
        own = "pixel_values" in inspect.signature(tower.forward).parameters
        name = "pixel_values" if own else "hidden_states"
        sizes = grid.sizes if grid is not None else (grids.UNKNOWN,) * len(inputs["image_grid_thw"])
        return _packed(inputs, sizes, model.config.vision_config, name)
    if naflex.takes_patches(tower):
        return _listed(inputs, grid)
    values = inputs["pixel_values"]
    nested = values.ndim == 5
    if nested and model.config.model_type.startswith(("idefics3", "smolvlm")):
        values, nested = values[0], False  # one row for the prompt: all tiles of all its images
    found: list[Seen] = []
    places = _places(values, grid, model, nested)
    flat = values.flatten(0, 1) if nested else values
    patch_y, patch_x = patch_size(model.config.vision_config)
    for row, image, tile, picture in places:
        one = flat[row : row + 1]
        if own_shapes(model.config):  # Pixtral: what lies beyond the image's own size is padding
            height, width = (int(n) for n in inputs["image_sizes"][row])
            one = one[..., :height, :width]
        cells = picture.cells(one.shape[-2] // patch_y, one.shape[-1] // patch_x, tile=tile)
        found.append(({"pixel_values": one}, cells, image, tile))
    return found


def _places(
    values: torch.Tensor, grid: PatchGrid | None, model: PromptModel, nested: bool
) -> list[tuple[int, int, int, PixelMap]]:
    """Say for each picture which row of the (flattened) pixel values it is, its image, its tile, and its geometry."""
    if grid is None:
        unknown = PixelMap.of(*grids.UNKNOWN)
        filled = values.flatten(0, 1) if nested else values
        # A tile of zeros is padding: the image had fewer tiles than its neighbour.
        return [(row, row, 0, unknown) for row in range(len(filled)) if bool(filled[row].any())]
    places: list[tuple[int, int, int, PixelMap]] = []
    start = 0
    for image, size in enumerate(grid.sizes):
        own = grid.image == image
        tiles = sorted({int(t) for t in grid.tile[own] if t > 0})
        whole_first = nested
        if model.config.model_type in ("llava_next", "llava_onevision"):
            cut = [_anyres_tile(_source(model, size, values), tile) for tile in tiles]
        else:
            cut = [_covered_tile(grid, own, tile, size) for tile in tiles]
        views = [(0, _whole_view(model, size)), *zip(tiles, cut, strict=True)]
        if not whole_first:
            views = [*views[1:], views[0]]
        base = image * values.shape[1] if nested else start
        places += [(base + n, image, tile, picture) for n, (tile, picture) in enumerate(views)]
        start += len(views)
    return places


def _source(model: PromptModel, size: tuple[float, float], values: torch.Tensor) -> Source:
    processor = getattr(model.processor, "image_processor", None)
    return Source(model.config, processor, size, 0, {"pixel_values": values}, 0)


def _whole_view(model: PromptModel, size: tuple[float, float]) -> PixelMap:
    if model.config.model_type in ("llava", "vipllava", "paligemma") and not own_shapes(model.config):
        return plain_picture(getattr(model.processor, "image_processor", None), *size)
    return PixelMap.of(*size)


def _anyres_tile(source: Source, tile: int) -> PixelMap:
    canvas, side = anyres_canvas(source)
    row, column = divmod(tile - 1, int(canvas.x.length) // side)
    return PixelMap(canvas.y.cut(row * side, side), canvas.x.cut(column * side, side))


def _covered_tile(grid: PatchGrid, own: np.ndarray, tile: int, size: tuple[float, float]) -> PixelMap:
    # Elsewhere nothing is padded: the tile is what its tokens cover.
    box = grid.box[own & (grid.tile == tile)]
    whole = PixelMap.of(*size)
    top, bottom, left, right = box[:, 1].min(), box[:, 3].max(), box[:, 0].min(), box[:, 2].max()
    return PixelMap(whole.y.cut(top, bottom - top), whole.x.cut(left, right - left))


def _packed(inputs: dict[str, Any], sizes: Sequence[tuple[float, float]], config: Any, name: str) -> list[Seen]:
    """Qwen-VL: patches of all images in one list, in blocks that will be merged; the tower takes them as ``name``."""
    found: list[Seen] = []
    merges, start = inputs.get("merge_sizes"), 0
    for image, thw in enumerate(inputs["image_grid_thw"]):
        frames, height, width = (int(n) for n in thw)
        merge = int(config.spatial_merge_size if merges is None else merges[image])
        count = frames * height * width
        cells = PixelMap.of(*sizes[image]).cells(height, width)
        order = np.arange(height * width).reshape(height // merge, merge, width // merge, merge)
        order = order.transpose(0, 2, 1, 3).reshape(-1, merge * merge)
        cells = np.concatenate([cells[order.ravel()]] * frames)
        if getattr(config, "window_size", None):
            cells = cells.reshape(-1, merge * merge, cells.shape[1])[_window_order(thw, config)].reshape(count, -1)
        part = {name: inputs["pixel_values"][start : start + count], "grid_thw": thw[None]}
        part |= {} if merges is None else {"merge_sizes": merges[image : image + 1]}
        found.append((part, cells, image, 0))
        start += count
    return found


def _listed(inputs: dict[str, Any], grid: PatchGrid | None) -> list[Seen]:
    """SigLIP 2: each picture a list of patches of its own shape, row by row, and what fills it up left out.

    Which tile of which image a picture is, is known where there is one for each image.
    """
    parts = naflex.cut_out(inputs)
    sizes = grid.sizes if grid is not None and len(grid.sizes) == len(parts) else (grids.UNKNOWN,) * len(parts)
    found: list[Seen] = []
    for which, (part, size) in enumerate(zip(parts, sizes, strict=True)):
        rows, columns = (int(n) for n in part["spatial_shapes"][0])
        found.append((part, PixelMap.of(*size).cells(rows, columns), which, 0))
    return found


def _window_order(thw: torch.Tensor, config: Any) -> np.ndarray:
    from transformers import vision_utils

    library: Any = vision_utils  # untyped
    order, _ = library.get_vision_window_index(
        thw[None], config.spatial_merge_size, config.window_size, config.patch_size
    )
    return order.numpy()


def _names(tower: torch.nn.Module, seen: list[tuple[Seen, tuple[float, float]]]) -> list[tuple[str, str]]:
    inputs, cells = seen[0][0][:2]
    if "grid_thw" in inputs or "spatial_shapes" in inputs:
        return []
    return prefix_tokens(tower, sequence_length(tower, inputs["pixel_values"]) - len(cells))


def _describe(
    names: list[tuple[str, str]], cells: Cells, size: tuple[float, float]
) -> tuple[np.ndarray, tuple[str, ...], PatchGrid]:
    tokens = (*(name for name, _ in names), *(f"r{int(row)}c{int(column)}" for row, column in cells[:, :2]))
    roles = np.array([ROLE_INDEX[role] for _, role in names] + [ROLE_INDEX["image"]] * len(cells), dtype=np.int8)
    cells = np.concatenate([blank(len(names)), cells])
    image = np.where(np.isnan(cells[:, 0]), np.nan, 0.0)
    return roles, tokens, PatchGrid(cells[:, 0], cells[:, 1], cells[:, 2], image, cells[:, 3:], (size,))
