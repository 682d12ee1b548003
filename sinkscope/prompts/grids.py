"""Patch grids: where on the original image each visual token looks.

One function per family of vision-language models says which tokens an image becomes, in their order: the views (the
whole image, its tiles), the rows and columns of each, and the tokens that are no patch (row separators).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Int

from sinkscope.prompts.data import PatchGrid
from sinkscope.prompts.geometry import COLUMNS, Cells, PixelMap, blank, plain_picture, setting, target_size

UNKNOWN = (math.nan, math.nan)
"""Height and width of an image that only the processor has seen; boxes are then NaN."""


@dataclass(frozen=True)
class Source:
    """What a family's layout needs to know about the model and about one image."""

    config: Any
    processor: Any
    size: tuple[float, float]
    tokens: int
    """Placeholders that stand for this image, as far as that can be counted beforehand; 0 if not."""
    inputs: dict[str, Any]
    index: int
    several: bool

    @property
    def side(self) -> int:
        """Patches along one side of a square view."""
        vision = self.config.vision_config
        return _first(vision.image_size) // _first(vision.patch_size)


def _first(value: Any) -> int:
    return int(cast("list[Any]", value)[0]) if isinstance(value, list | tuple) else int(value)


def place(
    config: Any,
    processor: Any,
    visual: Bool[np.ndarray, " token"],
    sizes: Sequence[tuple[float, float]],
    inputs: dict[str, Any],
) -> PatchGrid | None:
    """Place the visual tokens of one prompt.

    Args:
        config: the model's config.
        processor: its image processor, or ``None``.
        visual: which tokens are image placeholders.
        sizes: (height, width) of each original image, in order; ``UNKNOWN`` where it is not known.
        inputs: what the processor made of this prompt.

    Returns:
        ``None`` if the family is not known, or if its layout does not give the number of placeholders found.
    """
    layout = LAYOUTS.get(getattr(config, "model_type", ""))
    if layout is None or not sizes or not visual.any():
        return None
    lengths = runs(visual)
    blocks: list[Cells | None] = []
    for index, size in enumerate(sizes):
        tokens = int(lengths[index]) if len(lengths) == len(sizes) else 0
        blocks.append(layout(Source(config, processor, size, tokens, inputs, index, len(sizes) > 1)))
    known = [block for block in blocks if block is not None]
    if len(known) < len(blocks) or sum(map(len, known)) != int(visual.sum()):
        return None
    cells = np.full((len(visual), COLUMNS), np.nan)
    cells[visual] = np.concatenate(known)
    image = np.full(len(visual), np.nan)
    image[visual] = np.repeat(np.arange(len(known)), [len(block) for block in known])
    return PatchGrid(
        cells[:, 0], cells[:, 1], cells[:, 2], image, cells[:, 3:], tuple(sizes), layout in (_anyres, _onevision)
    )


def runs(visual: Bool[np.ndarray, " token"]) -> Int[np.ndarray, " run"]:
    """Give the length of each unbroken run of true entries."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], visual, [False]]).astype(np.int8)))
    return edges[1::2] - edges[::2]


def _llava(source: Source) -> Cells | None:
    picture = plain_picture(source.processor, *source.size)
    cells = picture.cells(source.side, source.side)
    # With the "full" feature selection the class token comes first.
    extra = source.tokens - len(cells)
    return np.concatenate([blank(extra), cells]) if extra == 1 else cells


def _anyres(source: Source) -> Cells | None:
    """LLaVA-Next and LLaVA-OneVision: the whole image, then its tiles as one grid, padding left out, row by row."""
    height, width = source.size
    if math.isnan(height):
        return None
    side = source.side
    base = PixelMap.of(height, width).resized(*_square(source)).cells(side, side)
    canvas, tile = anyres_canvas(source)
    tiles = int(canvas.y.length) // tile, int(canvas.x.length) // tile
    pad_y, pad_x = _unpadded(height, width, tiles[0] * side, tiles[1] * side)
    rows, columns = tiles[0] * side - 2 * pad_y, tiles[1] * side - 2 * pad_x
    step = tile / side
    region = (pad_x * step, pad_y * step, (pad_x + columns) * step, (pad_y + rows) * step)
    rows, columns = _shrunk(source, rows, columns)
    cells = canvas.cells(rows, columns, region=region)
    centre_y = region[1] + (cells[:, 0] + 0.5) * (region[3] - region[1]) / rows
    centre_x = region[0] + (cells[:, 1] + 0.5) * (region[2] - region[0]) / columns
    cells[:, 2] = 1 + (centre_y // tile) * tiles[1] + centre_x // tile
    with_separator = np.concatenate([cells.reshape(rows, columns, 7), blank(rows)[:, None]], axis=1)
    return np.concatenate([base, with_separator.reshape(-1, 7)])


def anyres_canvas(source: Source) -> tuple[PixelMap, int]:
    """Give the padded picture that LLaVA-Next and LLaVA-OneVision cut into tiles, and the side of a tile in pixels."""
    best = _best_resolution(source)
    new = _fitted(*source.size, best)
    canvas = PixelMap.of(*source.size).resized(*new)
    canvas = PixelMap(
        canvas.y.cut(-((best[0] - new[0]) // 2), best[0]), canvas.x.cut(-((best[1] - new[1]) // 2), best[1])
    )
    return canvas, setting(source.processor, "crop_size", "height") or _square(source)[0]


def _onevision(source: Source) -> Cells | None:
    several = source.inputs.get("batch_num_images")
    if several is None or all(int(n) == 1 for n in np.atleast_1d(np.asarray(several))):
        return _anyres(source)
    # Several images in one turn are not tiled: each is padded to a square, and one separator closes it.
    picture = PixelMap.of(*source.size).squared().resized(*_square(source))
    return np.concatenate([picture.cells(source.side, source.side), blank(1)])


def _square(source: Source) -> tuple[int, int]:
    """Size of the view of the whole image, in pixels."""
    if source.processor is None:
        size = _first(source.config.vision_config.image_size)
        return size, size
    fixed = setting(source.processor, "size", "height"), setting(source.processor, "size", "width")
    if fixed[0] and fixed[1]:
        return fixed[0], fixed[1]
    short = setting(source.processor, "size", "shortest_edge")
    assert short is not None
    return short, short


def _best_resolution(source: Source) -> tuple[int, int]:
    from transformers import image_processing_utils

    library: Any = image_processing_utils  # untyped
    pinpoints: Any = getattr(source.processor, "image_grid_pinpoints", None) or source.config.image_grid_pinpoints
    return library.select_best_resolution(source.size, pinpoints)


def _fitted(height: float, width: float, target: tuple[int, int]) -> tuple[int, int]:
    """Largest size of the image's shape within ``target``, rounded up."""
    scale_y, scale_x = target[0] / height, target[1] / width
    if scale_x < scale_y:
        return min(math.ceil(height * scale_x), target[0]), target[1]
    return target[0], min(math.ceil(width * scale_y), target[1])


def _unpadded(height: float, width: float, rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of patches that the model drops at each end because they hold padding."""
    if width / height > columns / rows:
        return (rows - int(round(height * (columns / width), 7))) // 2, 0
    return 0, (columns - int(round(width * (rows / height), 7))) // 2


def _shrunk(source: Source, rows: int, columns: int) -> tuple[int, int]:
    """LLaVA-OneVision shrinks a grid that holds too many patches."""
    aspect = getattr(source.config, "vision_aspect_ratio", None)
    if not isinstance(aspect, str) or not aspect.startswith("anyres_max_"):
        return rows, columns
    most = int(aspect.removeprefix("anyres_max_"))
    ratio = math.sqrt(rows * columns / (most * source.side**2))
    return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)


def _qwen(source: Source) -> Cells | None:
    grid = source.inputs.get("image_grid_thw")
    if grid is None or source.index >= len(grid):
        return None
    frames, height, width = (int(n) for n in grid[source.index])
    merge = int(source.config.vision_config.spatial_merge_size)
    one = PixelMap.of(*source.size).cells(height // merge, width // merge)
    return np.concatenate([one] * frames)


def _internvl(source: Source) -> Cells | None:
    per_tile = int(source.config.image_seq_length)
    side = math.isqrt(per_tile)
    count = source.tokens // per_tile
    whole = PixelMap.of(*source.size)
    if side * side != per_tile or count == 0 or source.tokens % per_tile:
        return None
    if count == 1:
        return whole.cells(side, side)
    if math.isnan(source.size[0]) or source.processor is None:
        return None
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    tile = target_size(source.processor, *source.size)
    columns, rows = get_optimal_tiled_canvas(
        (int(source.size[0]), int(source.size[1])), tile, source.processor.min_patches, source.processor.max_patches
    )
    return _tiles(whole, rows, columns, side)


def _tiles(whole: PixelMap, rows: int, columns: int, side: int) -> Cells:
    """Tiles row by row, each ``side`` by ``side``, then the whole image."""
    cells = whole.cells(rows * side, columns * side)
    tile_row, tile_column = cells[:, 0] // side, cells[:, 1] // side
    cells[:, 2] = 1 + tile_row * columns + tile_column
    cells = cells[np.argsort(cells[:, 2], kind="stable")]
    return np.concatenate([cells, whole.cells(side, side)])


def _idefics3(source: Source) -> Cells | None:
    side = source.side // int(source.config.scale_factor)
    whole = PixelMap.of(*source.size)
    edge = setting(source.processor, "max_image_size", "longest_edge")
    if edge is None or not getattr(source.processor, "do_image_splitting", False):
        return whole.cells(side, side)
    if math.isnan(source.size[0]):
        return None
    rows, columns = _idefics3_tiles(source.processor, source.size, edge)
    return whole.cells(side, side) if rows * columns == 1 else _tiles(whole, rows, columns, side)


def _idefics3_tiles(processor: Any, size: tuple[float, float], edge: int) -> tuple[int, int]:
    """Tile rows and columns: the longest edge is brought to the limit, then both sides up to a multiple of ``edge``."""
    height, width = size
    if getattr(processor, "do_resize", True):
        longest = setting(processor, "size", "longest_edge")
        if longest is None:
            height, width = target_size(processor, height, width)
        else:
            from transformers.models.idefics3 import image_processing_pil_idefics3 as library

            image = np.broadcast_to(np.uint8(0), (3, int(height), int(width)))
            height, width = library.get_resize_output_image_size(image, resolution_max_side=longest)
    ratio = width / height
    if width >= height:
        columns = math.ceil(width / edge)
        return math.ceil(int(columns * edge / ratio) / edge), columns
    rows = math.ceil(height / edge)
    return rows, math.ceil(int(rows * edge * ratio) / edge)


def _gemma3(source: Source) -> Cells | None:
    side = math.isqrt(int(source.config.mm_tokens_per_image))
    return PixelMap.of(*source.size).cells(side, side)


LAYOUTS = {
    "llava": _llava,
    "vipllava": _llava,
    "llava_next": _anyres,
    "llava_onevision": _onevision,
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
    "qwen3_vl_moe": _qwen,
    "internvl": _internvl,
    "idefics3": _idefics3,
    "smolvlm": _idefics3,
    "gemma3": _gemma3,
}
"""Layout by the config's model type. A family of your own is one function more."""
