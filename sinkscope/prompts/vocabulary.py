"""Token ids as a model knows them: what each one is for, and how to show it without breaking a terminal or a page."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np

from sinkscope.errors import printable
from sinkscope.prompts.model import PromptModel
from sinkscope.roles import ROLE_INDEX

LINE_BREAKS = frozenset("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")
"""Characters that end a line (those at which ``str.splitlines`` splits)."""


@cache
def _byte_of_character() -> dict[str, int]:
    """Give the byte that each character of a byte-level vocabulary stands for (the GPT-2 convention)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in plain}
    shifted = (byte for byte in range(256) if byte not in set(plain))
    table.update({chr(256 + place): byte for place, byte in enumerate(shifted)})
    return table


def role_of_text(text: str) -> str:
    """Name the role of a token of running text: ``newline``, ``punctuation`` or ``text``."""
    if text.isspace():
        return "newline" if LINE_BREAKS & set(text) else "text"
    bare = "".join(text.split())
    return "punctuation" if bare and all(_is_punctuation(c) for c in bare) else "text"


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


_SHOWN: WeakKeyDictionary[Any, tuple[tuple[int, int], dict[int, tuple[str, str]]]] = WeakKeyDictionary()


def _shown_before(tokenizer: Any, added: int) -> dict[int, tuple[str, str]]:
    """Return how tokens of this tokenizer were shown so far: every run compares its prompts with them."""
    try:
        size = len(tokenizer), added  # tokens may be added later on
        if tokenizer not in _SHOWN or _SHOWN[tokenizer][0] != size:
            _SHOWN[tokenizer] = size, {}
        return _SHOWN[tokenizer][1]
    except TypeError:  # none, or one without a length or a hash
        return {}


@dataclass
class Vocabulary:
    """What a model's tokenizer and config say about token ids; works without a tokenizer too."""

    tokenizer: Any
    config: Any
    size: int | None
    bos_ids: frozenset[int] = frozenset()
    special_ids: frozenset[int] = frozenset()
    image_ids: frozenset[int] = frozenset()
    _added: dict[int, str] = field(default_factory=dict[int, str])
    _byte_level: bool = False
    _shown: dict[int, tuple[str, str]] = field(default_factory=dict[int, tuple[str, str]])

    @classmethod
    def of(cls, model: PromptModel) -> Vocabulary:
        """Read the vocabulary of ``model`` (a ``sinkscope.models.handle.Model``)."""
        tokenizer = model.tokenizer
        if tokenizer is None and model.processor is not None:
            tokenizer = getattr(model.processor, "tokenizer", None)
        config = model.config
        vocabulary = cls(tokenizer, config, _vocabulary_size(model, tokenizer))
        vocabulary.image_ids = frozenset(image_token_ids(config))
        named = (number_of(tokenizer, "bos_token_id"), number_of(tokenizer, "cls_token_id"))
        if named == (None, None):
            named = (config_number(config, "bos_token_id"), config_number(config, "cls_token_id"))
        vocabulary.bos_ids = frozenset(number for number in named if number is not None)
        vocabulary.special_ids = frozenset(_special_ids(tokenizer, config)) - vocabulary.image_ids
        added: dict[Any, Any] = getattr(tokenizer, "added_tokens_decoder", None) or {}
        vocabulary._added = {int(number): str(token) for number, token in added.items()}
        vocabulary._byte_level = _is_byte_level(tokenizer)
        vocabulary._shown = _shown_before(tokenizer, len(added))
        return vocabulary

    @property
    def pad_id(self) -> int:
        """Id to fill a batch with: the tokenizer's padding, else its end of sequence, else 0."""
        for holder in (self.tokenizer, self.config, _text_config(self.config)):
            for name in ("pad_token_id", "eos_token_id"):
                number = number_of(holder, name)
                if number is not None and (self.size is None or 0 <= number < self.size):
                    return number
        return 0

    def bytes_of(self, number: int) -> bytes:
        """Return the bytes of text that a token id stands for (white space in front included)."""
        piece = self._piece(number)
        if number in self._added:
            return piece.encode("utf-8", "surrogatepass")
        if self._byte_level:
            table = _byte_of_character()
            if all(c in table for c in piece):
                return bytes(table[c] for c in piece)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("\u2581", " ").encode("utf-8", "surrogatepass")

    def show(self, number: int) -> tuple[str, str]:
        """Return ``(printable token, role as running text)`` of one id."""
        known = self._shown.get(number)
        if known is None:
            known = self._shown[number] = self._describe(number)
        return known

    def _describe(self, number: int) -> tuple[str, str]:
        if self.tokenizer is None:
            return f"#{number}", "text"
        raw = self.bytes_of(number)
        shown = printable(raw.decode("utf-8", "backslashreplace"))
        try:
            return shown, role_of_text(raw.decode("utf-8"))
        except UnicodeDecodeError:  # one byte of a longer character
            return shown, "text"

    def _piece(self, number: int) -> str:
        if self.tokenizer is None:
            return f"#{number}"
        piece = self._added.get(number)
        if piece is None and number < len(self.tokenizer):
            piece = self.tokenizer.convert_ids_to_tokens(number)
        # An embedding table is often padded beyond the tokenizer's last entry.
        return f"#{number}" if piece is None else str(piece)

    def label(self, ids: Sequence[int] | np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return the role index (int8) and the printable string of every token of one prompt."""
        roles = np.empty(len(ids), dtype=np.int8)
        tokens: list[str] = []
        for place, number in enumerate(int(i) for i in ids):
            shown, role = self.show(number)
            if place == 0 and number in self.bos_ids:
                role = "bos"
            elif number in self.image_ids:
                role = "image"
            elif number in self.special_ids or number in self.bos_ids:
                role = "special"
            roles[place] = ROLE_INDEX[role]
            tokens.append(shown)
        return roles, tuple(tokens)


def config_number(config: Any, name: str) -> int | None:
    """Read an integer from a config or from its text part; ``None`` where it is absent or a list."""
    for part in (config, _text_config(config)):
        value = number_of(part, name)
        if value is not None:
            return value
    return None


def image_token_ids(config: Any) -> list[int]:
    """Return the placeholder ids of images and videos that ``config`` names (none for a text model)."""
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    found = (number_of(config, name) for name in names)
    return [number for number in dict.fromkeys(found) if number is not None]


def _text_config(config: Any) -> Any:
    getter = getattr(config, "get_text_config", None)
    return getter() if callable(getter) else None


def number_of(holder: Any, name: str) -> int | None:
    """Read a whole number from an attribute; ``None`` where it is absent or something else."""
    value: Any = getattr(holder, name, None)
    return int(cast(int, value)) if isinstance(value, int | np.integer) and not isinstance(value, bool) else None


def _vocabulary_size(model: PromptModel, tokenizer: Any) -> int | None:
    getter = getattr(model.model, "get_input_embeddings", None)
    try:
        table = getter() if callable(getter) else None
    except (NotImplementedError, AttributeError):
        table = None
    size = number_of(table, "num_embeddings") or config_number(model.config, "vocab_size")
    return size or (len(tokenizer) if tokenizer is not None else None)


def _special_ids(tokenizer: Any, config: Any) -> Iterable[int]:
    yield from getattr(tokenizer, "all_special_ids", None) or ()
    added: dict[Any, Any] = getattr(tokenizer, "added_tokens_decoder", None) or {}
    for number, token in added.items():
        if getattr(token, "special", False):
            yield int(number)
    if tokenizer is None:
        for name in ("eos_token_id", "pad_token_id", "sep_token_id"):
            number = config_number(config, name)
            if number is not None:
                yield number


def _is_byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return "ByteLevel" in f"{backend.decoder!r} {backend.pre_tokenizer!r}"
    return tokenizer is not None and "\u0120" in tokenizer.get_vocab()
