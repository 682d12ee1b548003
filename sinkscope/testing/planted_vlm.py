"""Vision-language models with visual sinks built in by hand: known patches, known dimension, known heads.

The mechanism is the one of :mod:`sinkscope.testing.planted`, started by a picture: one channel of the vision tower
carries the brightness of a patch untouched to the projector, which flags the white ones; block 0 writes a very large
entry into one residual dimension wherever the flag is set (white patches and the first token); later heads read it.
A constructed model is truth for detectors, never evidence about trained ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sinkscope.errors import ModelError
from sinkscope.testing.planted import FLAG, HEAD_DIM, HEADS, KV_HEADS, LAYERS, WIDTH, reserve, write_massive
from sinkscope.testing.tiny import BOS, IMAGE, VISION_END, VISION_START, tiny

if TYPE_CHECKING:
    from sinkscope.models.handle import Model
    from sinkscope.prompts import Prompts

SIDE, CELL, SINKS = 8, 8, 3
"""Visual tokens along one side of a picture, pixels along one side of a token, white cells in a picture."""
_CONSTANT, _STRONG, _MILD, _KEY, _BRIGHTNESS = 3.0, 1.5, 0.26, 1.0, 8.0
_SIGNAL = 0
"""Channel of the vision tower that carries brightness."""
_WRITERS = ("out_proj", "fc2", "proj", "down_proj")
_READERS = ("q_proj", "k_proj", "v_proj", "qkv", "fc1", "gate_proj", "up_proj")
_WORDS = (6, 4, 7, 5)
"""Text tokens after the image of each prompt; the last prompt's picture has no white cell."""


@dataclass(frozen=True)
class VisualTruth:
    """What was planted.

    Attributes:
        tokens: for each prompt the positions of its visual sinks; empty for the last prompt.
        boxes: for each prompt the (left, top, right, bottom) pixels of each of them.
        text_sink: position of the text sink, the first token.
        dims: residual dimensions that hold the massive activation, from the first block's output on.
        value: its size at the first token, exact up to float32 rounding.
        heads: (layer, head) of the heads that give the sinks, of text and image, nearly all their attention.
        image_heads: (layer, head) of the heads that give the sinks a part and the other patches most of the rest.
        images: the pictures, as PIL images.
    """

    tokens: tuple[tuple[int, ...], ...]
    boxes: tuple[tuple[tuple[int, int, int, int], ...], ...]
    text_sink: int
    dims: list[int]
    value: float
    heads: list[tuple[int, int]]
    image_heads: list[tuple[int, int]]
    images: tuple[Any, ...]


def planted_visual_sink(seed: int = 0, family: str = "llava") -> tuple[Model, Prompts, VisualTruth]:
    """Build a small LLaVA or Qwen2.5-VL with planted visual sinks, four prompts with pictures, and say what is planted.

    Args:
        seed: chooses the weights, the heads, the dimension, its value and the pictures.
        family: ``"llava"`` or ``"qwen2_5_vl"``.

    Raises:
        ModelError: another family.
    """
    from sinkscope.models.handle import load_model

    if family not in ("llava", "qwen2_5_vl"):
        raise ModelError(f"planted_visual_sink(family={family!r}): families are 'llava' and 'qwen2_5_vl'.")
    generator = torch.Generator().manual_seed(seed)
    network = _random(family, seed, generator)
    flag, constant, massive = torch.randperm(WIDTH, generator=generator)[:3].tolist()
    value = float(torch.randint(1000, 3000, (), generator=generator))
    places = torch.randperm((LAYERS - 1) * HEADS, generator=generator)[:6].tolist()
    heads = [(1 + place // HEADS, place % HEADS) for place in places]
    with torch.no_grad():
        _plant_language(network, (flag, constant, massive), heads, value)
        _plant_vision(network, (flag, constant, massive), generator)
    network.name_or_path = f"planted-visual-sink-{family}-{seed}"
    model = load_model(network)
    images, cells = _pictures(seed)
    prompts = _prompts(model, images, seed)
    with torch.no_grad():
        _calibrate(network, prompts, flag)
    starts = [int(np.flatnonzero(row == IMAGE)[0]) for row in prompts.ids]
    tokens = tuple(tuple(start + cell for cell in row) for start, row in zip(starts, cells, strict=True))
    boxes = tuple(tuple(_box(cell) for cell in row) for row in cells)
    truth = VisualTruth(tokens, boxes, 0, [massive], value, sorted(heads[:3]), sorted(heads[3:]), images)
    return model, prompts, truth


def _random(family: str, seed: int, generator: torch.Generator) -> Any:
    text = {
        "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "head_dim": HEAD_DIM,
        "num_key_value_heads": KV_HEADS, "intermediate_size": 96,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }  # fmt: skip
    if family == "llava":
        network = tiny(family, seed, text_config=text, vision_config={"image_size": 32}, image_seq_length=SIDE * SIDE)
    else:
        text["rope_parameters"] |= {"mrope_section": [4, 2, 2]}
        network = tiny(family, seed, text_config=text, vision_config={"out_hidden_size": WIDTH})
    language = network.model.language_model
    with torch.no_grad():
        for parameter in [*language.parameters(), network.lm_head.weight]:
            noise = 0.1 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise if parameter.ndim == 2 else torch.zeros_like(parameter))
        for name, parameter in language.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
        for block in language.layers:
            block.self_attn.q_proj.weight.mul_(0.5)
        language.embed_tokens.weight.mul_(5.0)
    return network


def _plant_language(network: Any, dims: tuple[int, int, int], heads: list[tuple[int, int]], value: float) -> None:
    flag, constant, massive = dims
    language = SimpleNamespace(model=network.model.language_model)
    reserve(language, list(dims))
    embedding = language.model.embed_tokens.weight
    embedding[:, constant] = _CONSTANT
    embedding[BOS, flag] = FLAG
    row = HEAD_DIM // 2 - 1  # the slowest rotary pair, as in planted_sink
    for index, (layer, head) in enumerate(heads):
        attention = language.model.layers[layer].self_attn
        attention.q_proj.weight[head * HEAD_DIM + row, constant] = _STRONG if index < 3 else _MILD
        attention.k_proj.weight[head * KV_HEADS // HEADS * HEAD_DIM + row, massive] = _KEY
    write_massive(language, flag, massive, value)


def _plant_vision(network: Any, dims: tuple[int, int, int], generator: torch.Generator) -> None:
    """Carry brightness through the tower in one channel, and let the projector flag what is bright."""
    tower = getattr(network.model, "vision_tower", None)
    if tower is None:
        tower = network.model.visual
        patch, first, last = tower.patch_embed.proj, tower.merger.mlp[0], tower.merger.mlp[2]
    else:
        tower.embeddings.position_embedding.weight[:, _SIGNAL] = 0.0
        tower.embeddings.class_embedding[_SIGNAL] = 0.0
        tower.pre_layrnorm.weight[_SIGNAL], tower.pre_layrnorm.bias[_SIGNAL] = 1.0, 0.0
        projector = network.model.multi_modal_projector
        patch, first, last = tower.embeddings.patch_embedding, projector.linear_1, projector.linear_2
    patch.weight.mul_(0.2)
    patch.weight[_SIGNAL] = _BRIGHTNESS / patch.weight[_SIGNAL].numel()
    blocks = getattr(tower, "blocks", None) or tower.encoder.layers
    for name, module in blocks.named_modules():
        if name.split(".")[-1] in _READERS:
            module.weight[:, _SIGNAL] = 0.0
        elif name.split(".")[-1] in _WRITERS:
            module.weight[_SIGNAL], module.bias[_SIGNAL] = 0.0, 0.0
    width = patch.weight.shape[0]
    bright = torch.arange(first.in_features) % width == _SIGNAL
    first.weight[:, bright] = 0.0
    first.weight[0] = bright.float() / bright.sum()
    first.bias[0] = 0.0
    last.weight.copy_(0.1 * torch.randn(last.weight.shape, generator=generator))
    last.weight[:, 0] = last.weight[list(dims)] = 0.0  # type: ignore[assignment]
    last.bias.zero_()
    last.bias[dims[1]] = _CONSTANT


def _calibrate(network: Any, prompts: Prompts, flag: int) -> None:
    """Make the flag of a white cell as large as that of the first token."""
    projector = getattr(network.model, "multi_modal_projector", None)
    last = network.model.visual.merger.mlp[2] if projector is None else projector.linear_2
    seen: list[torch.Tensor] = []
    handle = last.register_forward_pre_hook(lambda _module, args: seen.append(args[0][..., 0].max()))
    network(**prompts.batch([0]).inputs)
    handle.remove()
    last.weight[flag, 0] = FLAG / seen[0]


def _pictures(seed: int) -> tuple[tuple[Any, ...], list[tuple[int, ...]]]:
    """Dark noise with some white cells, one picture a prompt; the last has none."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    images, cells = [], []
    for index in range(len(_WORDS)):
        pixels = rng.integers(0, 60, (SIDE * CELL, SIDE * CELL, 3), dtype=np.uint8)
        chosen = sorted(rng.choice(SIDE * SIDE, SINKS, replace=False).tolist()) if index < len(_WORDS) - 1 else []
        for left, top, right, bottom in map(_box, chosen):
            pixels[top:bottom, left:right] = 255
        images.append(Image.fromarray(pixels))
        cells.append(tuple(chosen))
    return tuple(images), cells


def _box(cell: int) -> tuple[int, int, int, int]:
    row, column = divmod(cell, SIDE)
    return (column * CELL, row * CELL, (column + 1) * CELL, (row + 1) * CELL)


def _image_processor(family: str) -> Any:
    plain: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    if family == "llava":
        from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

        return LlavaImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, **plain)
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    limits: Any = {"shortest_edge": 64, "longest_edge": 1 << 16}
    return Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, size=limits, **plain)


def _prompts(model: Model, images: tuple[Any, ...], seed: int) -> Prompts:
    from sinkscope.prompts import Prompts, grids
    from sinkscope.prompts.text import describe_key0
    from sinkscope.prompts.vocabulary import Vocabulary
    from sinkscope.roles import ROLE_INDEX

    config: Any = model.config
    qwen = config.model_type == "qwen2_5_vl"
    processor, vocabulary = _image_processor(config.model_type), Vocabulary.of(model)
    rng = np.random.default_rng(seed + 1)
    rows = []
    for picture, count in zip(images, _WORDS, strict=True):
        inside = [VISION_START, *[IMAGE] * SIDE * SIDE, VISION_END] if qwen else [IMAGE] * SIDE * SIDE
        ids = np.array([BOS, *rng.integers(3, 90, 2), *inside, *rng.integers(3, 90, count)], dtype=np.int64)
        extra = dict(processor(images=[picture], return_tensors="pt"))
        if qwen:
            extra["mm_token_type_ids"] = torch.from_numpy(ids == IMAGE).long()
        roles, tokens = vocabulary.label(ids)
        size = (float(picture.height), float(picture.width))
        rows.append(
            (ids, roles, tokens, extra, grids.place(config, processor, roles == ROLE_INDEX["image"], [size], extra))
        )
    ids, roles, tokens, extras, places = zip(*rows, strict=True)
    key0 = describe_key0(ids, roles, vocabulary)
    return Prompts(ids, roles, tokens, extras, places, key0, pad_id=vocabulary.pad_id)
