"""How each family of vision-language models lays an image out in tokens.

One function per family says which tokens an image becomes, in their order: the views (the whole image, its tiles), the
rows and columns of each, and the tokens that are no patch (row separators).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sinkscope.errors import PromptError
from sinkscope.prompts.geometry import Cells, PixelMap, blank, plain_picture, setting, target_size


@dataclass(frozen=True)
class Source:
    """What a family's layout needs to know about the model and about one image."""

    config: Any
    processor: Any
    size: tuple[float, float]
    tokens: int
    """Placeholders that stand for this image, as far as that can be counted beforehand; 0 if not."""
    inputs: Mapping[str, Any]
    index: int

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of one picture that the tower reads: those of the pixel values, else the processor's.

        Never ``vision_config.image_size``: for DINOv2 that is the size of its table of positions, which is
        interpolated to whatever the processor makes.

        Raises:
            PromptError: neither is there.
        """
        values = self.inputs.get("pixel_values")
        if values is not None and values.ndim >= 4:
            return int(values.shape[-2]), int(values.shape[-1])
        if self.processor is None:
            raise PromptError(
                "where visual tokens look cannot be known: there are no pixel values and no image processor. Pass the "
                "processor to load_model(..., processor=)."
            )
        picture = plain_picture(self.processor, *self.size)
        if math.isnan(picture.y.length):
            raise PromptError(
                "where visual tokens look cannot be known: there are no pixel values, and the size of the image "
                "decides how large the tower sees it. Use from_chat, or pass the processor's whole output."
            )
        return int(picture.y.length), int(picture.x.length)

    @property
    def view(self) -> tuple[int, int]:
        """Rows and columns of patches of one picture that the tower reads."""
        (height, width), (patch_y, patch_x) = self.pixels, patch_size(self.config.vision_config)
        return height // patch_y, width // patch_x

    @property
    def side(self) -> int:
        """Patches along one side of a square view."""
        return self.view[0]


def patch_size(config: Any) -> tuple[int, int]:
    """Height and width in pixels of a patch of a vision encoder."""
    patch: Any = config.patch_size
    height, width = (patch, patch) if isinstance(patch, int) else patch
    return int(height), int(width)


def llava(source: Source) -> Cells | None:
    """LLaVA: one square picture, row by row; with the "full" feature selection the class token comes first."""
    picture = plain_picture(source.processor, *source.size)
    cells = picture.cells(*source.view)
    # Registers are never left out, whatever the feature selection.
    extra = source.tokens - len(cells)
    prefix = 1 + int(getattr(source.config.vision_config, "num_register_tokens", 0))
    return np.concatenate([blank(extra), cells]) if 0 < extra <= prefix else cells


def pixtral(source: Source) -> Cells | None:
    """Pixtral and Mistral 3: the whole image at its own shape; the tokens that end a row are no placeholders."""
    sizes = source.inputs.get("image_sizes")
    if sizes is None or source.index >= len(sizes):
        return None
    return PixelMap.of(*source.size).cells(*pixtral_view(source.config, sizes[source.index]))


def pixtral_view(config: Any, size: Any) -> tuple[int, int]:
    """Rows and columns of tokens of an image that was resized to ``size`` (height, width)."""
    merge = int(getattr(config, "spatial_merge_size", 1))
    patch_y, patch_x = patch_size(config.vision_config)
    return int(size[0]) // (patch_y * merge), int(size[1]) // (patch_x * merge)


def anyres(source: Source) -> Cells | None:
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
    return canvas, source.pixels[0]


def onevision(source: Source) -> Cells | None:
    """LLaVA-OneVision: as LLaVA-Next, and several images of a turn each as one square."""
    several = source.inputs.get("batch_num_images")
    if several is None or all(int(n) == 1 for n in np.atleast_1d(np.asarray(several))):
        return anyres(source)
    # Several images in one turn are not tiled: each is padded to a square, and one separator closes it.
    picture = PixelMap.of(*source.size).squared().resized(*_square(source))
    return np.concatenate([picture.cells(source.side, source.side), blank(1)])


def _square(source: Source) -> tuple[int, int]:
    """Size of the view of the whole image, in pixels."""
    if source.processor is None:
        return source.pixels
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


def qwen(source: Source) -> Cells | None:
    """Qwen-VL: patches merged in blocks, at the shape that ``image_grid_thw`` gives; frames one after the other."""
    grid = source.inputs.get("image_grid_thw")
    if grid is None or source.index >= len(grid):
        return None
    frames, height, width = (int(n) for n in grid[source.index])
    merge = int(source.config.vision_config.spatial_merge_size)
    one = PixelMap.of(*source.size).cells(height // merge, width // merge)
    return np.concatenate([one] * frames)


def internvl(source: Source) -> Cells | None:
    """InternVL: tiles of equally many tokens, then the whole image."""
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


def idefics3(source: Source) -> Cells | None:
    """Idefics 3 and SmolVLM: tiles, then the whole image."""
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


def gemma3(source: Source) -> Cells | None:
    """Gemma 3: a fixed square of tokens."""
    side = math.isqrt(int(source.config.mm_tokens_per_image))
    return PixelMap.of(*source.size).cells(side, side)


def listed(source: Source) -> Cells | None:
    """LFM2-VL: an image at its own shape, patches joined in squares, row by row; where tiles lie is not known."""
    shapes = source.inputs.get("spatial_shapes")
    if shapes is None or source.index >= len(shapes):
        return None
    rows, columns = (int(n) // int(source.config.downsample_factor) for n in shapes[source.index])
    return PixelMap.of(*source.size).cells(rows, columns) if rows * columns == source.tokens else None


Layout = Callable[[Source], Cells | None]

LAYOUTS: dict[str, Layout] = {
    "llava": llava,
    "vipllava": llava,
    "llava_next": anyres,
    "llava_onevision": onevision,
    "qwen2_vl": qwen,
    "qwen2_5_vl": qwen,
    "qwen3_vl": qwen,
    "qwen3_vl_moe": qwen,
    "internvl": internvl,
    "idefics3": idefics3,
    "smolvlm": idefics3,
    "gemma3": gemma3,
    "lfm2_vl": listed,
    "paligemma": llava,
}
"""Layout by the config's model type. A family of your own is one function more."""


def layout_of(config: Any, inputs: Mapping[str, Any]) -> Layout | None:
    """Return the layout of a family, ``None`` where it is not known."""
    if own_shapes(config):
        return pixtral
    return LAYOUTS.get(getattr(config, "model_type", "")) or (qwen if "image_grid_thw" in inputs else None)


def own_shapes(config: Any) -> bool:
    """Say whether each picture keeps its own shape, given by ``image_sizes`` (Pixtral).

    Elsewhere ``image_sizes`` are those of the original images.
    """
    return getattr(getattr(config, "vision_config", None), "model_type", "") == "pixtral"
