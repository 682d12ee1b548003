"""Images and text together: questions about images, and whatever a model's own processor made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from sinkscope.errors import PromptError
from sinkscope.prompts import Prompts, grids
from sinkscope.prompts.batch import PER_TOKEN, find_real
from sinkscope.prompts.images import load_image
from sinkscope.prompts.text import Vocabulary, check_ids, check_list, describe_key0, image_token_ids
from sinkscope.roles import ROLE_INDEX

_KEYS = ("image", "text", "system")
_UNUSED = ("num_crops", "num_patches", "rows", "cols", "offset_mapping", "special_tokens_mask", "length")
"""What processors return beside the model's inputs."""
_RUNNING = np.array([ROLE_INDEX[name] for name in ("text", "punctuation", "newline")], dtype=np.int8)
_TYPED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
"""Families that need ``mm_token_type_ids``; Qwen2.5-VL would silently use text positions without it."""


def prompts_of_chat(items: Any, model: Any) -> Prompts:
    """Build prompts of questions about images; see ``Prompts.from_chat``."""
    items = check_list(items, "questions", "from_chat")
    if model.kind == "vision":
        raise PromptError("from_chat: this model is a vision encoder and reads no text. Use Prompts.from_images.")
    if model.kind != "vlm":
        raise PromptError(f"from_chat: this model is a text {model.kind} and takes no images. Use Prompts.from_texts.")
    processor = model.processor
    if processor is None or not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise PromptError(
            "from_chat: this model has no processor of text and images. Pass one to load_model(..., processor=), or "
            "use from_ids and from_inputs."
        )
    vocabulary = Vocabulary.of(model)
    made = [_one_chat(item, which, model, vocabulary) for which, item in enumerate(items)]
    ids, roles, tokens, extras, places = zip(*made, strict=True)
    return Prompts(ids, roles, tokens, extras, places, describe_key0(ids, roles, vocabulary), pad_id=vocabulary.pad_id)


def _one_chat(item: Any, which: int, model: Any, vocabulary: Vocabulary) -> tuple[Any, ...]:
    images, text, system = _read_item(item, which)
    processor = model.processor
    rendered = _render(processor, len(images), text, system)
    placeholder = getattr(processor, "image_token", None) or getattr(processor.tokenizer, "image_token", None)
    found = rendered.count(str(placeholder))
    if found != len(images):
        raise PromptError(
            f"prompt {which}: {len(images)} images but {found} placeholders {str(placeholder)!r} in its text. "
            "Leave placeholders out of the text: from_chat puts one for each image."
        )
    bos = getattr(processor.tokenizer, "bos_token", None)
    try:
        given = processor(
            images=[images] if images else None,
            text=rendered,
            return_tensors="pt",
            add_special_tokens=not (bos and rendered.startswith(bos)),
        )
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
        raise PromptError(
            f"prompt {which}: {type(processor).__name__} refuses this prompt ({error}). Check the images, and that the "
            "processor is the one of this model."
        ) from None
    inputs = {name: _tensor(value, name) for name, value in given.items() if name not in _UNUSED}
    row = check_ids(inputs.pop("input_ids")[0].tolist(), which, vocabulary, model.context_length)
    inputs.pop("attention_mask", None)
    roles, tokens = vocabulary.label(row)
    if images and model.config.model_type in _TYPED:
        inputs.setdefault("mm_token_type_ids", torch.from_numpy(_is_image(row, model.config)).long()[None])
    extras = {name: value[0] if name in PER_TOKEN else value for name, value in inputs.items()}
    sizes = [(float(image.height), float(image.width)) for image in images]
    visual = roles == ROLE_INDEX["image"]
    grid = grids.place(model.config, processor.image_processor, visual, sizes, extras)
    roles = mark_chat(roles, [vocabulary.bytes_of(int(i)) for i in row], text, system)
    return row, mark_separators(roles, grid), tokens, extras, grid


def _read_item(item: Any, which: int) -> tuple[list[Image.Image], str, str | None]:
    if not isinstance(item, Mapping) or set(item) - set(_KEYS) or "text" not in item:
        raise PromptError(
            f"prompt {which}: expected a mapping with 'text' and, if wanted, 'image' (one or a list) and 'system', "
            f"got {sorted(map(str, item)) if isinstance(item, Mapping) else type(item).__name__}."
        )
    text, system, image = item["text"], item.get("system"), item.get("image")
    if not isinstance(text, str) or not text:
        raise PromptError(f"prompt {which}: 'text' must be a text of at least one character.")
    if system is not None and not isinstance(system, str):
        raise PromptError(f"prompt {which}: 'system' must be a text, got {type(system).__name__}.")
    listed = [] if image is None else list(image) if isinstance(image, list | tuple) else [image]
    names = [f"prompt {which}, image {n}" if len(listed) > 1 else f"prompt {which}, image" for n in range(len(listed))]
    return [load_image(one, name) for one, name in zip(listed, names, strict=True)], text, system


def _render(processor: Any, images: int, text: str, system: str | None) -> str:
    """Write the conversation as the model's chat template does; without a template, plainly."""
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
        turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if system:
            turns.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
        return processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    placeholder = str(getattr(processor, "image_token", None) or processor.tokenizer.image_token)
    return "\n".join([*([system] if system else []), *[placeholder] * images, text])


def _tensor(value: Any, name: str) -> torch.Tensor:
    try:
        return value if isinstance(value, torch.Tensor) else torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError):
        raise PromptError(
            f"{name!r} is no rectangular tensor. Call the processor with return_tensors='pt' and padding=True."
        ) from None


def mark_chat(roles: np.ndarray, pieces: list[bytes], text: str, system: str | None) -> np.ndarray:
    """Give each running token of a chat its role: the question keeps its own, a system message is ``system``.

    Everything else that the template wrote is ``special``. Where the question cannot be found again in the tokens (a
    tokenizer that rewrites it), running tokens keep their roles.

    Args:
        roles: roles of the tokens as running text, ``bos``, ``special`` or ``image``.
        pieces: the text of each token, as bytes.
        text: the question.
        system: the system message, if one was given.
    """
    running = np.isin(roles, _RUNNING)
    pieces = [piece if run else b"" for piece, run in zip(pieces, running, strict=True)]
    asked = _find(pieces, text, last=True)
    if asked is None:
        return roles
    marked = np.where(running, ROLE_INDEX["special"], roles).astype(np.int8)
    marked[asked] = roles[asked]
    told = _find(pieces, system, last=False) if system else _default_system(pieces, running)
    if told is not None:
        marked[told] = np.where(roles[told] == ROLE_INDEX["text"], ROLE_INDEX["system"], roles[told])
    return marked


def _find(pieces: list[bytes], text: str, *, last: bool) -> np.ndarray | None:
    """Find the tokens that spell ``text``, white space aside (tokenizers differ in where they put it)."""
    bare = [b"".join(piece.split()) for piece in pieces]
    joined, wanted = b"".join(bare), b"".join(text.encode().split())
    start = joined.rfind(wanted) if last else joined.find(wanted)
    if start < 0 or not wanted:
        return None
    owner = np.repeat(np.arange(len(bare)), [len(piece) for piece in bare])
    first, final = owner[start], owner[start + len(wanted) - 1]
    return np.arange(first, final + 1)


def _default_system(pieces: list[bytes], running: np.ndarray) -> np.ndarray | None:
    """Find a system message that the template put in by itself, in the ChatML form (a turn headed ``system``)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], running.astype(np.int8), [0]])))
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        head, body = b"", start
        while body < stop and not head.endswith(b"\n"):
            head += pieces[body]
            body += 1
        if head.strip() == b"system" and body < stop:
            return np.arange(body, stop)
    return None


def mark_separators(roles: np.ndarray, grid: grids.Grid | None) -> np.ndarray:
    """Give placeholders that only end a row of patches the role ``special``."""
    if grid is None:
        return roles
    return np.where(grid.separator, ROLE_INDEX["special"], roles).astype(np.int8)


def _is_image(row: np.ndarray, config: Any) -> np.ndarray:
    return np.isin(row, image_token_ids(config)[:1])


def prompts_of_inputs(given: Any, model: Any) -> Prompts:
    """Build prompts from a processor's output; see ``Prompts.from_inputs``."""
    if not isinstance(given, Mapping):
        raise PromptError(
            f"from_inputs: expected what the model's processor or tokenizer returns, got {type(given).__name__}."
        )
    inputs = {str(name): _tensor(value, str(name)) for name, value in given.items() if name not in _UNUSED}
    if model.kind == "vision":
        if set(inputs) != {"pixel_values"}:
            raise PromptError(f"from_inputs: a vision encoder takes 'pixel_values' alone, got {sorted(inputs)}.")
        return Prompts.from_images(list(inputs["pixel_values"].float()), model)
    real = _check_mask(inputs)
    vocabulary = Vocabulary.of(model)
    labelled = []
    for which, (row, keep) in enumerate(zip(inputs["input_ids"].cpu(), real, strict=True)):
        if not keep.any():
            raise PromptError(f"from_inputs: row {which} is all padding: its attention_mask is 0 everywhere.")
        array = check_ids(row[keep].tolist(), which, vocabulary, model.context_length)
        labelled.append((array, *vocabulary.label(array)))
    ids, roles, tokens = zip(*labelled, strict=True)
    key0 = describe_key0(ids, roles, vocabulary)
    apart = set(inputs) <= {"input_ids", "attention_mask", *PER_TOKEN}
    if apart:
        extras = tuple(
            {n: inputs[n].cpu()[i][real[i]] for n in sorted(PER_TOKEN & set(inputs))} for i in range(len(ids))
        )
        _refuse_lone_placeholders(roles)
        return Prompts(ids, roles, tokens, extras, (None,) * len(ids), key0, pad_id=vocabulary.pad_id)
    places = _place_whole(model, roles, inputs)
    roles = tuple(mark_separators(role, grid) for role, grid in zip(roles, places, strict=True))
    return Prompts(ids, roles, tokens, ({},) * len(ids), places, key0, inputs, vocabulary.pad_id)


def _check_mask(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if ids is None:
        raise PromptError(f"from_inputs: 'input_ids' are missing, got {sorted(inputs)}.")
    if ids.ndim != 2 or ids.shape[0] == 0 or ids.is_floating_point():
        raise PromptError(
            f"from_inputs: input_ids have the shape (prompt, token), got {ids.dtype} of shape {tuple(ids.shape)}. "
            "Call the processor with return_tensors='pt'."
        )
    for name in ("attention_mask", *sorted(PER_TOKEN)):
        if name in inputs and inputs[name].shape != ids.shape:
            raise PromptError(
                f"from_inputs: {name} has shape {tuple(inputs[name].shape)}, but input_ids have {tuple(ids.shape)}. "
                "They must agree."
            )
    if mask is not None and not bool(((mask == 0) | (mask == 1)).all()):
        raise PromptError("from_inputs: attention_mask must hold only 0 (padding) and 1 (token).")
    return find_real(inputs)


def _refuse_lone_placeholders(roles: tuple[np.ndarray, ...]) -> None:
    for which, role in enumerate(roles):
        count = int((role == ROLE_INDEX["image"]).sum())
        if count:
            raise PromptError(
                f"from_inputs: prompt {which} holds {count} image placeholder tokens but there are no pixel_values. "
                "Pass the processor's whole output."
            )


def _place_whole(model: Any, roles: tuple[np.ndarray, ...], inputs: dict[str, torch.Tensor]) -> tuple[Any, ...]:
    """Place visual tokens of a batch, images in order, each unbroken run of placeholders being one image."""
    masks = [role == ROLE_INDEX["image"] for role in roles]
    counts = [len(grids.runs(mask)) for mask in masks]
    known = next((inputs[n] for n in ("image_sizes", "image_grid_thw") if n in inputs), None)
    if known is not None and len(known) != sum(counts):
        return (None,) * len(roles)
    processor = getattr(model.processor, "image_processor", None)
    places, start = [], 0
    for mask, count in zip(masks, counts, strict=True):
        own = {n: inputs[n][start : start + count] for n in ("image_grid_thw", "batch_num_images") if n in inputs}
        sizes = inputs.get("image_sizes")
        here = (
            [(math.nan, math.nan)] * count
            if sizes is None
            else [(float(h), float(w)) for h, w in sizes[start : start + count].tolist()]
        )
        places.append(grids.place(model.config, processor, mask, here, own))
        start += count
    return tuple(places)
