"""Images as prompts: reading them safely, and the tokens of a vision encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError

from sinkscope.errors import PromptError, printable
from sinkscope.prompts import geometry, naflex
from sinkscope.prompts.data import PatchGrid, PromptFields
from sinkscope.prompts.identity import image_settings
from sinkscope.prompts.model import PromptModel
from sinkscope.prompts.placing import device_of, in_type_of
from sinkscope.prompts.text import check_list
from sinkscope.roles import ROLE_INDEX


def load_image(source: Any, where: str) -> Image.Image:
    """Read one image as 8-bit RGB, upright as its EXIF tag says.

    Transparency is laid on white; grey, palette, CMYK and 16-bit pixels are converted (16 bits scaled to 8).

    Args:
        source: a path, a PIL image, or a uint8 array of shape (height, width) or (height, width, 3).
        where: what the image is, for error messages.

    Raises:
        PromptError: the file is absent or no image, is cut short, has several frames, or has floating-point pixels.
    """
    image, name = _open(source, where)
    try:
        return _to_rgb(_upright(image, name), name)
    except PromptError:
        if image is not source:
            image.close()
        raise


def _upright(image: Image.Image, name: str) -> Image.Image:
    try:
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise PromptError(
                f"{name}: this file has {frames} frames, and which one is meant cannot be known. "
                "Choose one: image.seek(n), then pass image.convert('RGB')."
            )
        image.load()
        image = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise PromptError(f"{name}: the image cannot be read to its end ({error}). Is the file cut short?") from None
    if image.width == 0 or image.height == 0:
        raise PromptError(f"{name}: the image has no pixels (width {image.width}, height {image.height}).")
    return image


def _open(source: Any, where: str) -> tuple[Image.Image, str]:
    if isinstance(source, Image.Image):
        return source, where
    if isinstance(source, np.ndarray):
        source = cast("np.ndarray", source)
        if source.dtype == np.uint8 and (source.ndim == 2 or (source.ndim == 3 and source.shape[2] == 3)):
            return Image.fromarray(source), where
        raise PromptError(
            f"{where}: an array of an image has dtype uint8 and shape (height, width, 3); "
            f"got {source.dtype} of shape {source.shape}."
        )
    if not isinstance(source, str | Path):
        raise PromptError(f"{where}: expected a path or a PIL image, got {type(source).__name__}.")
    name = f"{where} ({printable(str(source))})"
    if not Path(source).is_file():
        raise PromptError(f"{name}: no such file.")
    try:
        return Image.open(source), name
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "not an image in a known format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise PromptError(f"{name}: the image cannot be opened ({reason}).") from None


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    mode = image.mode
    if mode == "F":
        raise PromptError(
            f"{name}: floating-point pixels have no agreed range. Scale them to 0..255 and pass an 8-bit image."
        )
    if mode.startswith("I"):
        return _from_deep(image, name)
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if mode == "RGB" else image.convert("RGB")


def _from_deep(image: Image.Image, name: str) -> Image.Image:
    """Scale a 16-bit grey image to 8 bits; Pillow's own conversion would cut everything above 255 to white."""
    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise PromptError(
            f"{name}: integer pixels run from {pixels.min()} to {pixels.max()}, more than 16 bits. "
            "Scale them to 0..255 and pass an 8-bit image."
        )
    return Image.fromarray((pixels / 257).round().astype(np.uint8)).convert("RGB")


def image_processor(model: PromptModel) -> Any:
    """Return the image processor of ``model``: its own, or that inside a processor of text and images."""
    processor = model.processor
    return getattr(processor, "image_processor", processor)


def fields_of_images(images: Any, model: PromptModel) -> PromptFields:
    """Build prompts for a vision encoder; see ``Prompts.from_images``."""
    images = check_list(images, "images", "from_images")
    if model.kind == "vlm":
        raise PromptError("from_images: this model reads images together with text. Use Prompts.from_chat.")
    if model.kind == "encoder" and hasattr(model.config, "vision_config"):
        raise PromptError(
            "from_images: this model is a text and a vision encoder side by side. Use from_inputs with its processor's "
            "whole output, or load the vision encoder alone."
        )
    if model.kind != "vision":
        raise PromptError(f"from_images: this model is a text {model.kind} and takes no images. Use from_texts.")
    if isinstance(getattr(model.config, "num_frames", None), int):
        raise PromptError(
            f"from_images: {type(model.model).__name__} takes videos. Give its processor's output, pixel_values of "
            "(video, frame, channel, height, width), to Prompts.from_inputs."
        )
    pixels, pictures, sizes = zip(*(_pixels(one, model, f"image {n}") for n, one in enumerate(images)), strict=True)
    layouts: dict[tuple[int, ...], Any] = {}
    fields: dict[str, list[Any]] = {name: [] for name in ("roles", "tokens", "grids")}
    for values, picture, size in zip(pixels, pictures, sizes, strict=True):
        shape = tuple(values.shape[-2:])
        if shape not in layouts:
            layouts[shape] = _layout(model, values)
        names, rows, columns = layouts[shape]
        roles, tokens, grid = _describe(names, rows, columns, picture, size)
        fields["roles"].append(roles)
        fields["tokens"].append(tokens)
        fields["grids"].append(grid)
    first = fields["tokens"][0][0]
    return PromptFields(
        ids=tuple(np.full(len(r), -1, dtype=np.int64) for r in fields["roles"]),
        roles=tuple(fields["roles"]),
        tokens=tuple(fields["tokens"]),
        extras=tuple(naflex.inputs_of(model.model, values) for values in pixels),
        images=image_settings(model, processed=all(_ready_made(one) is None for one in images)),
        grids=tuple(fields["grids"]),
        made_of=tuple(images),
        key0=f"class token '{first}'" if first == "[CLS]" else f"patch '{first}' (this encoder has no class token)",
    )


def _pixels(source: Any, model: PromptModel, where: str) -> tuple[torch.Tensor, geometry.PixelMap, tuple[float, float]]:
    """Give pixel values (1, channel, height, width), their picture, and (height, width) of the original image."""
    processor = image_processor(model)
    ready = _ready_made(source)
    if ready is not None:
        shape = tuple(ready.shape)
        if ready.ndim == 3:
            ready = ready[None]
        channels = int(getattr(model.config, "num_channels", 3))
        if ready.ndim != 4 or ready.shape[:2] != (1, channels):
            raise PromptError(f"{where}: pixel values have the shape ({channels}, height, width), got {shape}.")
        size = (float(ready.shape[2]), float(ready.shape[3]))
        return ready.float(), geometry.PixelMap.of(*size), size
    if processor is None:
        raise PromptError(
            "from_images: this model has no image processor. Pass one to load_model(..., processor=), or give float "
            "tensors of shape (3, height, width) that are already normalised."
        )
    if isinstance(source, torch.Tensor):
        source = source.numpy()
    image = load_image(source, where)
    given = processor(images=[image], return_tensors="pt")
    size = (float(image.height), float(image.width))
    if naflex.takes_patches(model.model):
        whole = naflex.as_pictures(given, int(model.config.patch_size))[0]
        return whole[None], geometry.PixelMap.of(*size).resized(*whole.shape[-2:]), size
    values = given["pixel_values"]
    picture = geometry.plain_picture(processor, *size)
    if (picture.y.length, picture.x.length) != tuple(values.shape[-2:]):
        # A processor that does more than resize, pad and crop: places in the grid are known, pixels are not.
        size = (float("nan"), float("nan"))
        picture = geometry.PixelMap.of(*size)
    return values, picture, size


def _ready_made(source: Any) -> torch.Tensor | None:
    """Give floating-point pixel values, which are taken as they are; ``None`` for an image to be processed."""
    values = torch.as_tensor(source) if isinstance(source, torch.Tensor | np.ndarray) else None
    return values if values is not None and values.is_floating_point() else None


class _FirstBlock(Exception):
    """Raised by the hook on the first block: the rest of the pass is not needed."""


@torch.no_grad()
def sequence_length(module: torch.nn.Module, pixels: Float[torch.Tensor, "1 *frame channel height width"]) -> int:
    """Count the tokens that the first block of a vision encoder gets for one image, or one video.

    Raises:
        PromptError: the encoder refuses images of this size, or has no blocks.
    """
    lists = [m for m in module.modules() if isinstance(m, torch.nn.ModuleList) and len(m)]
    lists = lists or [m for m in module.modules() if isinstance(m, torch.nn.Sequential) and _alike(m)]  # MGP-STR
    if not lists:
        raise PromptError(f"{type(module).__name__} has no list of blocks; its tokens cannot be counted.")
    block = max(lists, key=len)[0]
    seen: list[int] = []

    def reached(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        seen.append(int(states.shape[1]))
        raise _FirstBlock

    handle = block.register_forward_pre_hook(reached, with_kwargs=True)
    try:
        module(**in_type_of(module, naflex.inputs_of(module, pixels.to(device_of(module)))))
    except _FirstBlock:
        pass
    except (ValueError, RuntimeError) as error:
        height, width = pixels.shape[-2:]
        raise PromptError(
            f"from_images: {type(module).__name__} refuses an image of {height} x {width} pixels ({error}). "
            "Use the model's own image processor."
        ) from None
    finally:
        handle.remove()
    return seen[0]


def _layout(model: PromptModel, values: torch.Tensor) -> tuple[list[tuple[str, str]], int, int]:
    """Give (token, role) of what precedes the patches, and the rows and columns of patches."""
    config = getattr(model.config, "vision_config", None) or model.config
    patch = getattr(config, "patch_size", None)
    if patch is None:
        raise PromptError(
            f"from_images: {type(model.model).__name__} names no patch size (it is a pyramid, or holds an encoder), so "
            f"which token is which patch cannot be told. {_encoder_inside(model.model)}"
        )
    patch_y, patch_x = (patch, patch) if isinstance(patch, int) else patch
    rows, columns = values.shape[-2] // patch_y, values.shape[-1] // patch_x
    prefix = sequence_length(model.model, values) - rows * columns
    if prefix < 0 and getattr(model.config, "mask_ratio", 0):
        raise PromptError(
            f"from_images: {type(model.model).__name__} leaves {model.config.mask_ratio:.0%} of the patches out at "
            "random, as in its training. Set model.model.config.mask_ratio = 0 to read it on whole images."
        )
    if prefix < 0:
        raise PromptError(
            f"from_images: the first block gets {prefix + rows * columns} tokens for {rows} x {columns} patches, "
            "so which token is which patch cannot be told. Encoders that merge patches are not supported."
        )
    return prefix_tokens(model.model, prefix), rows, columns


def _encoder_inside(module: torch.nn.Module) -> str:
    """What to do with a model whose tokens are no patches of one size."""
    whole: Any = module  # torch's annotation of named_modules has gaps
    for path, part in whole.named_modules():
        patch = getattr(getattr(part, "config", None), "patch_size", None)
        if path and patch is not None and hasattr(part, "main_input_name"):
            return f"Load the encoder inside it: load_model(model.{path})."
    return "Take its maps from the model itself (output_attentions=True)."


def prefix_tokens(module: torch.nn.Module, count: int) -> list[tuple[str, str]]:
    """Name the ``count`` tokens in front of the patches: class, distillation (DeiT), registers, in that order."""
    names = [name.rsplit(".", 1)[-1] for name, _ in module.named_parameters()]
    found: list[tuple[str, str]] = []
    if {"cls_token", "class_embedding", "class_token"} & set(names):
        found.append(("[CLS]", "bos"))
    if "distillation_token" in names:
        found.append(("[DIST]", "special"))
    found = found[:count]
    return found + [(f"[REG{n}]", "register") for n in range(count - len(found))]


def _describe(
    names: list[tuple[str, str]], rows: int, columns: int, picture: geometry.PixelMap, size: tuple[float, float]
) -> tuple[np.ndarray, tuple[str, ...], PatchGrid]:
    cells = np.concatenate([geometry.blank(len(names)), picture.cells(rows, columns)])
    roles = np.array([ROLE_INDEX[role] for _, role in names] + [ROLE_INDEX["image"]] * (rows * columns), dtype=np.int8)
    patches = [f"r{row}c{column}" for row in range(rows) for column in range(columns)]
    image = np.where(np.isnan(cells[:, 0]), np.nan, 0.0)
    grid = PatchGrid(cells[:, 0], cells[:, 1], cells[:, 2], image, cells[:, 3:], (size,))
    return roles, (*(name for name, _ in names), *patches), grid


def _alike(modules: torch.nn.Sequential) -> bool:
    return len(modules) > 0 and len({type(each) for each in modules}) == 1
