"""Random inputs that fit a model: token ids, pixels, and both together with the right number of image placeholders."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from transformers import PreTrainedModel

from sinkscope.errors import ModelError

_GRID = 8
"""Side, in patches, of the square image given to Qwen-VL models (before their patches are merged)."""


def text_ids(model: PreTrainedModel, batch: int = 2, length: int = 12, seed: int = 0) -> Int[torch.Tensor, "batch key"]:
    """Draw random token ids without special tokens, the first of each row being the beginning-of-sequence token."""
    text = model.config.get_text_config()
    bos = getattr(text, "bos_token_id", None)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, min(text.vocab_size, 90), (batch, length), generator=generator)
    ids[:, 0] = 1 if bos is None else bos
    return ids


def pixels(model: PreTrainedModel, batch: int = 2, seed: int = 0) -> Float[torch.Tensor, "batch channel height width"]:
    """Draw standard normal pixel values of the size a vision encoder (or the tower of a larger model) takes."""
    config = vision_config(model)
    size = getattr(config, "image_size", None)
    if size is None:
        raise ModelError(f"pixels: {type(model).__name__} has no fixed image size. Use sinkscope.testing.inputs.")
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def vision_config(model: PreTrainedModel) -> Any:
    """Return the configuration of the vision part: of the tower if there is one, else the model's own."""
    return getattr(model.config, "vision_config", None) or model.config


def inputs(model: PreTrainedModel, batch: int = 2, length: int = 12, seed: int = 0) -> dict[str, torch.Tensor]:
    """Make keyword arguments for one forward pass of any tiny model.

    For an encoder-decoder these are a source and a target. For a vision-language model each row is: the first token,
    four text ids, one image, the remaining text ids.
    ``length`` counts text tokens only.
    """
    if model.config.is_encoder_decoder:
        return _pair(model, batch, length, seed)
    takes_text = hasattr(model.config.get_text_config(), "vocab_size")
    if not takes_text:
        return {"pixel_values": pixels(model, batch, seed)}
    ids = text_ids(model, batch, length, seed)
    if not hasattr(model.config, "vision_config"):
        return {"input_ids": ids}
    if not hasattr(model.config, "image_token_id"):
        return {"input_ids": ids, "pixel_values": pixels(model, batch, seed)}
    image = _image_inputs(model, batch, seed)
    count = _image_token_count(model, image) // batch
    placeholders = torch.full((batch, count), model.config.image_token_id)
    ids = torch.cat([ids[:, :5], placeholders, ids[:, 5:]], dim=1)
    given = {"input_ids": ids, **image}
    if model.config.model_type in {"gemma3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"}:
        name = "token_type_ids" if model.config.model_type == "gemma3" else "mm_token_type_ids"
        given[name] = (ids == model.config.image_token_id).long()
    return given


def _pair(model: PreTrainedModel, batch: int, length: int, seed: int) -> dict[str, torch.Tensor]:
    """Make source and target of an encoder-decoder, the target two tokens shorter than the source."""
    target = text_ids(model, batch, length - 2, seed + 1)
    target[:, 0] = model.config.decoder_start_token_id
    generator = torch.Generator().manual_seed(seed)
    if model.main_input_name == "input_features":
        shape = (batch, model.config.num_mel_bins, 2 * model.config.max_source_positions)
        return {"input_features": torch.randn(shape, generator=generator), "decoder_input_ids": target}
    if model.main_input_name == "input_values":
        return {"input_values": torch.randn(batch, 3000, generator=generator), "decoder_input_ids": target}
    return {"input_ids": text_ids(model, batch, length, seed), "decoder_input_ids": target}


def _image_inputs(model: PreTrainedModel, batch: int, seed: int) -> dict[str, torch.Tensor]:
    """Make the image part of a vision-language model's input, one image for each row."""
    kind = model.config.model_type
    generator = torch.Generator().manual_seed(seed)
    if kind.startswith("qwen"):
        vision = model.config.vision_config
        row = 3 * vision.temporal_patch_size * vision.patch_size**2
        patches = torch.randn(batch * _GRID * _GRID, row, generator=generator)
        return {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, _GRID, _GRID]] * batch)}
    plain = pixels(model, batch, seed)
    side = plain.shape[-1]
    if kind in {"llava_next", "llava_onevision"}:
        tiles = torch.randn(batch, 3, *plain.shape[1:], generator=generator)
        return {"pixel_values": tiles, "image_sizes": torch.tensor([[side, 2 * side]] * batch)}
    if kind == "idefics3":
        return {"pixel_values": plain[:, None]}
    return {"pixel_values": plain}


@torch.no_grad()
def _image_token_count(model: PreTrainedModel, image: dict[str, torch.Tensor]) -> int:
    """Count the visual tokens that the model makes of these images, by asking it."""
    found = model.get_image_features(**image)  # type: ignore[operator]
    features = getattr(found, "pooler_output", found)
    parts = features if isinstance(features, list | tuple) else [features]
    return sum(part.shape[:-1].numel() for part in parts)
