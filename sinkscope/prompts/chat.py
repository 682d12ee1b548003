"""Questions about images, written with the model's chat template."""

# pyright: reportUnknownMemberType=false
# (torch's own annotations of tolist and from_numpy have gaps)

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import jinja2
import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image

from sinkscope.errors import PromptError
from sinkscope.prompts import grids
from sinkscope.prompts.batch import PER_TOKEN
from sinkscope.prompts.data import PromptFields
from sinkscope.prompts.identity import image_settings
from sinkscope.prompts.images import load_image
from sinkscope.prompts.inputs import mark_separators, model_inputs
from sinkscope.prompts.model import PromptModel
from sinkscope.prompts.text import check_ids, check_list, check_text, describe_key0, warn_double_bos
from sinkscope.prompts.vocabulary import Vocabulary, image_token_ids
from sinkscope.roles import ROLE_INDEX

_KEYS = ("image", "text", "system", "answer")
_RUNNING = np.array([ROLE_INDEX[name] for name in ("text", "punctuation", "newline")], dtype=np.int8)
_TYPED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
"""Families that need ``mm_token_type_ids``; Qwen2.5-VL would silently use text positions without it."""


def fields_of_chat(items: Any, model: PromptModel) -> PromptFields:
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
    warn_double_bos(ids, vocabulary, "from_chat")
    return PromptFields(
        ids,
        roles,
        tokens,
        extras,
        places,
        key0=describe_key0(ids, roles, vocabulary),
        pad_id=vocabulary.pad_id,
        images=image_settings(model) if any("pixel_values" in extra for extra in extras) else None,
        made_of=tuple(items),
    )


def _one_chat(item: Any, which: int, model: PromptModel, vocabulary: Vocabulary) -> tuple[Any, ...]:
    images, turn = _read_item(item, which)
    processor = model.processor
    # The answer is tokenised where it stands: by itself many a tokenizer would put a space in front of it.
    rendered = _render(processor, len(images), turn)
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
    inputs = model_inputs(given)
    row = check_ids(inputs.pop("input_ids")[0].cpu().numpy(), which, vocabulary, model.context_length)
    inputs.pop("attention_mask", None)
    roles, tokens = vocabulary.label(row)
    if images and model.config.model_type in _TYPED:
        inputs.setdefault("mm_token_type_ids", torch.from_numpy(_is_image(row, model.config)).long()[None])
    extras = {name: value[0] if name in PER_TOKEN else value for name, value in inputs.items()}
    sizes = [(float(image.height), float(image.width)) for image in images]
    visual = roles == ROLE_INDEX["image"]
    grid = grids.place(model.config, processor.image_processor, visual, sizes, extras, which)
    pieces = [vocabulary.bytes_of(int(i)) for i in row]
    answered = _mark_answer(pieces, turn.answer, which)
    roles = np.where(answered, roles, mark_chat(roles, _without(pieces, answered), turn.text, turn.system))
    roles = np.where(answered, ROLE_INDEX["answer"], roles).astype(np.int8)
    return row, mark_separators(roles, grid), tokens, extras, grid


class Turn(NamedTuple):
    """What is said in one chat: a question, a system message if one is given, and the answer it is held to."""

    text: str
    system: str | None
    answer: str


def images_of(item: Any, which: int) -> list[Image.Image]:
    """Read the images of one item of a chat; see ``Prompts.from_chat``."""
    return _read_item(item, which)[0]


def _read_item(item: Any, which: int) -> tuple[list[Image.Image], Turn]:
    given = cast("Mapping[Any, Any]", item) if isinstance(item, Mapping) else None
    if given is None or set(given) - set(_KEYS) or "text" not in given:
        raise PromptError(
            f"prompt {which}: expected a mapping with 'text' and, if wanted, 'image' (one or a list), 'system' and "
            f"'answer', got {type(cast(object, item)).__name__ if given is None else sorted(map(str, given))}."
        )
    text, system, image, answer = given["text"], given.get("system"), given.get("image"), given.get("answer")
    if not isinstance(text, str) or not text:
        raise PromptError(f"prompt {which}: 'text' must be a text of at least one character.")
    if system is not None and not isinstance(system, str):
        raise PromptError(f"prompt {which}: 'system' must be a text, got {type(system).__name__}.")
    if answer is not None and (not isinstance(answer, str) or not answer.strip()):
        raise PromptError(
            f"prompt {which}: 'answer' must be a text that is not blank. Leave it out to ask without one."
        )
    turn = Turn(text, system or None, answer or "")
    for part in (text, system or "", turn.answer):
        check_text(part, which)
    if image is None:
        listed: list[Any] = []
    else:
        listed = list(cast("list[Any]", image)) if isinstance(image, list | tuple) else [image]
    names = [f"prompt {which}, image {n}" if len(listed) > 1 else f"prompt {which}, image" for n in range(len(listed))]
    return [load_image(one, name) for one, name in zip(listed, names, strict=True)], turn


def _render(processor: Any, images: int, turn: Turn) -> str:
    """Write the conversation as the model's chat template does, with the answer begun; without a template, plainly."""
    if not getattr(processor, "chat_template", None):
        placeholder = str(getattr(processor, "image_token", None) or processor.tokenizer.image_token)
        parts = [turn.system, *[placeholder] * images, turn.text, turn.answer]
        return "\n".join(part for part in parts if part)
    content = [{"type": "image"}] * images + [{"type": "text", "text": turn.text}]
    turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if turn.system:
        turns.insert(0, {"role": "system", "content": [{"type": "text", "text": turn.system}]})
    asked = str(processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    return asked + _gap(processor, turns, asked, turn.answer) + turn.answer if turn.answer else asked


def _gap(processor: Any, turns: list[dict[str, Any]], asked: str, answer: str) -> str:
    """Give what the template itself writes between its opening of the model's turn and an answer: often a space."""
    said = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    try:
        whole = str(processor.apply_chat_template([*turns, said], tokenize=False))
    except (jinja2.TemplateError, TypeError, ValueError, KeyError):  # a template of one question only
        whole = ""
    before = whole[: max(whole.rfind(answer), 0)]
    if before.startswith(asked):
        return before[len(asked) :]
    return "" if asked[-1:].isspace() else " "


def _mark_answer(pieces: list[bytes], answer: str, which: int) -> Bool[np.ndarray, " token"]:
    """Say which tokens spell the answer: the last ones of the prompt, white space in front of it aside."""
    marked = np.zeros(len(pieces), dtype=bool)
    if answer:
        found = _find(pieces, answer, last=True)
        if found is None or found[-1] != len(pieces) - 1 - _blank_end(pieces):
            raise PromptError(
                f"prompt {which}: the tokenizer rewrites the answer {answer[:40]!r}, so its tokens cannot be told from "
                "the question's. Write it as the tokenizer does (lower case, composed characters)."
            )
        marked[found[0] :] = True
    return marked


def _blank_end(pieces: list[bytes]) -> int:
    """Count the blank tokens at the end: an answer may end in white space, which is not compared."""
    count = 0
    while count < len(pieces) and not pieces[-1 - count].strip():
        count += 1
    return count


def _without(pieces: list[bytes], answered: Bool[np.ndarray, " token"]) -> list[bytes]:
    return [b"" if gone else piece for piece, gone in zip(pieces, answered, strict=True)]


def mark_chat(roles: np.ndarray, pieces: list[bytes], text: str, system: str | None) -> np.ndarray:
    """Mark each running token of a chat with its role: the question keeps its own, a system message is ``system``.

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
    first, final = int(owner[start]), int(owner[start + len(wanted) - 1])
    return np.arange(first, final + 1)


def _default_system(pieces: list[bytes], running: np.ndarray) -> np.ndarray | None:
    """Find a system message that the template put in by itself, in the ChatML form (a turn headed ``system``)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], running.astype(np.int8), [0]])))
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        head, body = b"", int(start)
        while body < stop and not head.endswith(b"\n"):
            head += pieces[body]
            body += 1
        if head.strip() == b"system" and body < stop:
            return np.arange(body, int(stop))
    return None


def _is_image(row: np.ndarray, config: Any) -> np.ndarray:
    return np.isin(row, image_token_ids(config)[:1])
