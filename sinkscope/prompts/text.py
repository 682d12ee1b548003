"""Prompts of text: tokenising, checking ids, and saying what stands at key 0."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from sinkscope.arguments import RAW, is_iterable, is_truth
from sinkscope.errors import PromptError, SinkscopeWarning
from sinkscope.prompts.data import PromptFields
from sinkscope.prompts.model import PromptModel
from sinkscope.prompts.vocabulary import Vocabulary, number_of
from sinkscope.roles import ROLE_INDEX


def fields_of_texts(texts: Sequence[str], model: PromptModel, add_bos: bool | str = "auto") -> PromptFields:
    """Build prompts of texts; see ``Prompts.from_texts``."""
    listed = check_list(texts, "texts", "from_texts")
    if add_bos not in ("auto", True, False):
        raise PromptError(f"from_texts(add_bos={add_bos!r}): add_bos is 'auto', True or False.")
    _refuse_vision(model, "from_texts")
    vocabulary = Vocabulary.of(model)
    if vocabulary.tokenizer is None:
        raise PromptError(
            "from_texts: this model has no tokenizer. Pass one to load_model(..., tokenizer=), or use from_ids."
        )
    encoded = [encode_text(text, which, vocabulary.tokenizer, add_bos) for which, text in enumerate(listed)]
    return _label(encoded, model, vocabulary, "from_texts")


def fields_of_ids(ids: Sequence[Sequence[int]], model: PromptModel) -> PromptFields:
    """Build prompts of token ids; see ``Prompts.from_ids``."""
    listed = check_list(ids, "id lists", "from_ids")
    _refuse_vision(model, "from_ids")
    return _label(listed, model, Vocabulary.of(model), "from_ids")


def _refuse_vision(model: PromptModel, call: str) -> None:
    if model.kind == "vision":
        raise PromptError(f"{call}: this model is a vision encoder and reads no text. Use Prompts.from_images.")


def _label(ids: Sequence[Any], model: PromptModel, vocabulary: Vocabulary, call: str) -> PromptFields:
    arrays: list[np.ndarray] = []
    roles: list[np.ndarray] = []
    tokens: list[tuple[str, ...]] = []
    for which, row in enumerate(ids):
        array = check_ids(row, which, vocabulary, model.context_length)
        role, token = vocabulary.label(array)
        placeholders = int((role == ROLE_INDEX["image"]).sum())
        if placeholders:
            raise PromptError(
                f"{call}: prompt {which} holds {placeholders} image placeholder tokens but no image. "
                "Use from_chat, or from_inputs with the processor's whole output."
            )
        arrays.append(array)
        roles.append(role)
        tokens.append(token)
    warn_double_bos(arrays, vocabulary, call, stacklevel=5)
    return PromptFields(
        ids=tuple(arrays),
        roles=tuple(roles),
        tokens=tuple(tokens),
        extras=tuple({} for _ in arrays),
        grids=(None,) * len(arrays),
        key0=describe_key0(arrays, roles, vocabulary),
        pad_id=vocabulary.pad_id,
    )


def check_ids(ids: Any, which: int, vocabulary: Vocabulary, context_length: int | None) -> np.ndarray:
    """Return one prompt's ids as int64, or say what is wrong with them.

    Raises:
        PromptError: the prompt is empty, longer than the context, not made of whole numbers, or names an id that the
            vocabulary does not have.
    """
    try:
        array = np.asarray(ids.detach().cpu() if hasattr(ids, "detach") else ids)
    except RAW:  # lists of different lengths inside, tensors of a type that numpy has not
        array = np.empty((0, 0))
    listed = isinstance(ids, list | tuple) and any(map(is_truth, cast("list[Any]", ids)))
    if listed or array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise PromptError(
            f"prompt {which}: expected a flat list of token ids (whole numbers), got {_describe_value(ids)}. "
            "Use from_texts for text."
        )
    if array.size == 0:
        raise PromptError(f"prompt {which} is empty: it has no tokens. Leave it out or give it at least one token.")
    if array.max() > np.iinfo(np.int64).max:
        raise PromptError(f"prompt {which}: {array.max()} is no token id of any vocabulary.")
    if np.ma.is_masked(cast("Any", ids)):
        raise PromptError(f"prompt {which}: some of its ids are masked. Leave them out: ids.compressed().")
    array = array.astype(np.int64)
    if vocabulary.size is not None:
        bad = array[(array < 0) | (array >= vocabulary.size)]
        if bad.size:
            raise PromptError(
                f"prompt {which}: token id {bad[0]} is outside the vocabulary of {vocabulary.size} "
                f"(ids 0 to {vocabulary.size - 1}). Was it made with another model's tokenizer?"
            )
    if context_length is not None and array.size > context_length:
        raise PromptError(
            f"prompt {which} has {array.size} tokens, but this model's context length is {context_length}. "
            "Shorten the prompt or split it."
        )
    return array


def _describe_value(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:40]}{'...' if len(text) > 40 else ''}"


def check_list(items: Any, what: str, call: str) -> list[Any]:
    """Return ``items`` as a list, or say that one item must be wrapped, or that there are none.

    Raises:
        PromptError: ``items`` is a single text, mapping or array, or holds nothing.
    """
    if isinstance(items, Mapping) or not is_iterable(items):
        raise PromptError(
            f"{call}: expected a list of {what}, got one {type(cast(object, items)).__name__}. "
            "Wrap it in a list, even a single one."
        )
    listed = list(cast("Iterable[Any]", items))
    if not listed:
        raise PromptError(f"{call}: the list of {what} is empty. Give at least one.")
    return listed


def encode_text(text: Any, which: int, tokenizer: Any, add_bos: bool | str) -> list[int]:
    """Tokenise one text under the BOS policy ``add_bos`` (``"auto"``, ``True`` or ``False``).

    Raises:
        PromptError: not a string, empty, or a BOS is asked of a tokenizer that has none.
    """
    if not isinstance(text, str):
        raise PromptError(f"prompt {which}: expected a text, got {_describe_value(text)}. Use from_ids for token ids.")
    if not text:
        raise PromptError(f"prompt {which} is an empty text. Leave it out or give it at least one character.")
    check_text(text, which)
    ids = [int(i) for i in tokenizer(text, add_special_tokens=True)["input_ids"]]
    if add_bos == "auto":
        return ids
    first = number_of(tokenizer, "bos_token_id")
    if first is None:
        first = number_of(tokenizer, "cls_token_id")
    bare = [int(i) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
    if add_bos:
        if first is None:
            raise PromptError(
                "from_texts(add_bos=True): this tokenizer has no beginning-of-sequence token. "
                "Use add_bos='auto', or set tokenizer.bos_token."
            )
        return ids if ids[:1] == [first] else [first, *ids]
    added = len(ids) > len(bare) and ids[:1] == [first]
    return ids[1:] if added else ids


def check_text(text: str, which: int) -> None:
    """Refuse half a character.

    Raises:
        PromptError: the text holds a lone surrogate, which stands for no character and cannot be encoded.
    """
    place = next((i for i, character in enumerate(text) if "\ud800" <= character <= "\udfff"), None)
    if place is not None:
        raise PromptError(
            f"prompt {which}: character {place} is a lone surrogate (U+{ord(text[place]):04X}), half of a character; "
            "it has no encoding. Was the text cut or decoded wrongly? "
            "Replace it: text.encode('utf-8', 'replace').decode()."
        )


def warn_double_bos(ids: Sequence[np.ndarray], vocabulary: Vocabulary, call: str, stacklevel: int = 4) -> None:
    """Warn where prompts begin with two beginning-of-sequence tokens: the text has its own and the tokenizer adds one.

    The model then reads an ordinary position with the BOS embedding, and its sink may stand on either.
    """
    twice = [
        which
        for which, row in enumerate(ids)
        if len(row) > 1 and row[0] == row[1] and int(row[0]) in vocabulary.bos_ids
    ]
    if twice:
        warnings.warn(
            f"{call}: {len(twice)} of {len(ids)} prompts (the first is prompt {twice[0]}) begin with two "
            f"beginning-of-sequence tokens {vocabulary.show(int(ids[twice[0]][0]))[0]!r}. The text seems to hold one "
            "already, as chat templates write it: use add_bos=False, or take it out of the text.",
            SinkscopeWarning,
            stacklevel=stacklevel,
        )


def describe_key0(ids: Sequence[np.ndarray], roles: Sequence[np.ndarray], vocabulary: Vocabulary) -> str:
    """Say in words what key 0 of the prompts is: a BOS, or a content token, and why."""
    marked = [bool(r[0] == ROLE_INDEX["bos"]) for r in roles]
    names = list(dict.fromkeys(_quoted(vocabulary, int(i[0])) for i in ids))
    if all(marked):
        return f"bos {names[0]}" if len(names) == 1 else f"bos tokens {', '.join(names[:4])}"
    why = _why_no_bos(vocabulary)
    if any(marked):
        return f"bos in {sum(marked)} of {len(marked)} prompts, a content token in the others ({why})"
    if len(names) == 1:
        return f"content token {names[0]} ({why})"
    return f"content token, {len(names)} different ones ({why})"


def _quoted(vocabulary: Vocabulary, number: int) -> str:
    return vocabulary.show(number)[0] if vocabulary.tokenizer is None else f"'{vocabulary.show(number)[0]}'"


def _why_no_bos(vocabulary: Vocabulary) -> str:
    if vocabulary.bos_ids:
        named = _quoted(vocabulary, min(vocabulary.bos_ids))
        return f"no BOS, though the model knows {named}"
    return "the tokenizer adds no BOS" if vocabulary.tokenizer is not None else "no BOS: the config names none"
