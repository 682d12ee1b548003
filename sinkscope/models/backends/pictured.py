"""Trial inputs with an image in them, for models that read no text without one, or leave blocks out without one.

BLIP-2 and its kin refuse a text alone; Mllama skips its blocks of cross-attention. How many places an image takes, and
what a model wants beside the pixels, is read off its configuration and the signature of its forward pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from sinkscope.prompts.placing import device_of

FILLER = 5
"""Tokens of text beside the image: of a number that the queries of no connector have."""


def takes_pictures(model: torch.nn.Module) -> bool:
    """Say whether the forward pass takes both text and pixels."""
    return {"input_ids", "pixel_values"} <= set(inspect.signature(model.forward).parameters)


def pictured_inputs(model: torch.nn.Module, text: Sequence[int]) -> Iterator[dict[str, torch.Tensor]]:
    """Give forms in which a model may take ``text`` (token ids) with one image, most likely first.

    The image's places, where the model marks them in the text, stand behind the first token.
    """
    config: Any = model.config
    vision = getattr(config, "vision_config", None) or config
    device = device_of(model)
    like = next(p for p in model.parameters() if p.is_floating_point())
    size = getattr(vision, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else size
    shape = (getattr(vision, "num_channels", 3), height, width)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, like.dtype)
    for places in dict.fromkeys((_places(model), 1, 0)):
        mark = _mark(config)
        if mark is None and "image_embeds_position_mask" in inspect.signature(model.forward).parameters:
            mark = text[0]  # Kosmos-2 is told the places by the mask alone
        if places and mark is None:
            continue
        ids = torch.tensor([[*text[:1], *[mark] * places, *text[1:]]], device=device)
        for pixels in _pixels(model, noise):
            yield {"input_ids": ids, "pixel_values": pixels, **_beside(model, ids, pixels, places)}


def _mark(config: Any) -> int | None:
    for name in ("image_token_id", "image_token_index", "video_token_id", "video_token_index"):
        found = getattr(config, name, None)
        if isinstance(found, int):
            return found
    return None


def _places(model: torch.nn.Module) -> int:
    """Tokens that an image takes: the queries of a connector."""
    config: Any = model.config
    for name in ("num_query_tokens", "latent_query_num"):
        found = getattr(config, name, None)
        if isinstance(found, int):
            return found
    return 0


def _pixels(model: torch.nn.Module, noise: torch.Tensor) -> Iterator[torch.Tensor]:
    tiles = getattr(getattr(model.config, "vision_config", None), "max_num_tiles", None)
    if isinstance(tiles, int):  # (prompt, image, tile, channel, height, width)
        yield noise.expand(1, 1, tiles, *noise.shape)
    yield noise[None]
    yield noise[None, None]


def _beside(model: torch.nn.Module, ids: torch.Tensor, pixels: torch.Tensor, places: int) -> dict[str, torch.Tensor]:
    """What else the forward pass takes of an image, by name."""
    takes = inspect.signature(model.forward).parameters
    device, length = ids.device, ids.shape[1]
    tiles = pixels.shape[2] if pixels.ndim == 6 else 1
    one = torch.ones(1, 1, dtype=torch.long, device=device)
    behind = torch.zeros_like(ids)
    behind[:, 1 : 1 + places] = 1
    made = {
        "qformer_input_ids": ids[:, :1].expand(1, 2),
        "image_attention_mask": torch.ones(1, length, 1, dtype=torch.long, device=device),
        "image_embeds_position_mask": behind,
        "decoder_input_ids": ids[:, :2],  # an answer beside the question (BLIP)
        "aspect_ratio_ids": one,
        "aspect_ratio_mask": torch.ones(1, 1, tiles, dtype=torch.long, device=device),
        "cross_attention_mask": torch.ones(1, length, 1, tiles, dtype=torch.long, device=device),
    }
    return {name: tensor for name, tensor in made.items() if name in takes}
