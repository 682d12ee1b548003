"""Prompts: real tokens with roles, and for images the patch grid, ready to be batched for any model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int8

from sinkscope.errors import PromptError
from sinkscope.prompts import show, text
from sinkscope.prompts.text import Vocabulary
from sinkscope.roles import ROLE_INDEX, ROLES

PAD = ROLE_INDEX["pad"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Some prompts as one batch of model inputs."""

    inputs: dict[str, torch.Tensor]
    """Keyword arguments of the model's forward pass."""
    real: Bool[torch.Tensor, "batch key"]
    """True where a position holds a token of the prompt, false at padding."""
    roles: Int8[torch.Tensor, "batch key"]
    """Index into ``roles.ROLES``; the index of ``pad`` where ``real`` is false."""
    indices: tuple[int, ...]
    """Which prompt each row is."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts of one model: ids, roles and strings of the real tokens, further inputs, patch grids.

    Build them with one of the constructors; every sequence below has one entry per prompt.
    """

    ids: tuple[np.ndarray, ...]
    """Token ids, int64, padding left out; -1 for each token of a pure vision encoder."""
    roles: tuple[np.ndarray, ...]
    """Index into ``roles.ROLES`` of each token, int8."""
    tokens: tuple[tuple[str, ...], ...]
    """Each token as text that is safe to print: no control characters, no line breaks."""
    extras: tuple[dict[str, torch.Tensor], ...]
    """Further model inputs (pixel values, grids, token types); empty for text."""
    grids: tuple[Any, ...]
    """``None``, or a ``grids.Grid``: row, column, tile and pixel box of each visual token, NaN elsewhere."""
    key0: str
    """What key 0 is, in words."""
    whole: Mapping[str, torch.Tensor] | None = None
    """Processor output that cannot be taken apart by prompt: it is run as one batch, as it is."""
    pad_id: int = 0
    """Id put where a shorter prompt of a batch has ended; never attended, never measured."""

    @classmethod
    def from_texts(cls, texts: Sequence[str], model: Any, add_bos: bool | str = "auto") -> Prompts:
        """Tokenise ``texts`` with the tokenizer of ``model``.

        Args:
            texts: one string per prompt.
            model: a ``sinkscope.models.handle.Model`` of a text or vision-language model.
            add_bos: ``"auto"`` keeps what the tokenizer adds and adds nothing; ``True`` makes sure that a BOS (or CLS)
                comes first; ``False`` leaves it out.

        Raises:
            PromptError: no tokenizer, an empty list or text, a text beyond the context length, a wrong ``add_bos``.
        """
        texts = text.check_list(texts, "texts", "from_texts")
        if add_bos not in ("auto", True, False):
            raise PromptError(f"from_texts(add_bos={add_bos!r}): add_bos is 'auto', True or False.")
        _refuse_vision(model, "from_texts")
        vocabulary = Vocabulary.of(model)
        if vocabulary.tokenizer is None:
            raise PromptError(
                "from_texts: this model has no tokenizer. Pass one to load_model(..., tokenizer=), or use from_ids."
            )
        encoded = [text.encode_text(text, which, vocabulary.tokenizer, add_bos) for which, text in enumerate(texts)]
        return cls._of_ids(encoded, model, vocabulary, "from_texts")

    @classmethod
    def from_ids(cls, ids: Sequence[Sequence[int]], model: Any) -> Prompts:
        """Take token ids as they are, one list per prompt, without padding; nothing is added.

        Raises:
            PromptError: an empty list or prompt, an id outside the vocabulary, a prompt beyond the context length.
        """
        listed = text.check_list(ids, "id lists", "from_ids")
        _refuse_vision(model, "from_ids")
        return cls._of_ids(listed, model, Vocabulary.of(model), "from_ids")

    @classmethod
    def from_images(cls, images: Sequence[Any], model: Any) -> Prompts:
        """Take images for a vision encoder: class token, registers, then patches in rows.

        Args:
            images: paths, PIL images, uint8 arrays (height, width, 3), or float tensors (channel, height, width) that
                are normalised already. Transparency is laid on white.
            model: a ``sinkscope.models.handle.Model`` of a vision encoder.

        Raises:
            PromptError: not a vision encoder, no image processor, a broken, animated or floating-point image, or a
                size that the encoder refuses.
        """
        from sinkscope.prompts import images as image_prompts

        return image_prompts.prompts_of_images(images, model)

    @classmethod
    def from_chat(cls, items: Sequence[Mapping[str, Any]], model: Any) -> Prompts:
        """Ask questions about images, each written with the model's chat template.

        Words of the question have the role ``text``, those of a system message ``system``, image placeholders
        ``image``, and everything that the template adds ``special``.

        Args:
            items: mappings with ``text``, and if wanted ``image`` (path, PIL image, or a list of them) and ``system``.
            model: a ``sinkscope.models.handle.Model`` of a vision-language model with its processor.

        Raises:
            PromptError: not such a model, no processor, a malformed item, a broken image, or placeholders in the text.
        """
        from sinkscope.prompts import chat

        return chat.prompts_of_chat(items, model)

    @classmethod
    def from_inputs(cls, inputs: Mapping[str, Any], model: Any) -> Prompts:
        """Take whatever the model's own processor or tokenizer made.

        Text is taken apart by its attention mask, whichever side was padded, and batched anew. Anything with pixels or
        explicit positions is kept as it is and run as one batch.

        Raises:
            PromptError: no token ids, a row of padding only, a mask of another shape, placeholders without images.
        """
        from sinkscope.prompts import chat

        return chat.prompts_of_inputs(inputs, model)

    @classmethod
    def _of_ids(cls, ids: Sequence[Any], model: Any, vocabulary: Vocabulary, call: str) -> Prompts:
        arrays, roles, tokens = [], [], []
        for which, row in enumerate(ids):
            array = text.check_ids(row, which, vocabulary, model.context_length)
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
        return cls(
            ids=tuple(arrays),
            roles=tuple(roles),
            tokens=tuple(tokens),
            extras=tuple({} for _ in arrays),
            grids=(None,) * len(arrays),
            key0=text.describe_key0(arrays, roles, vocabulary),
            pad_id=vocabulary.pad_id,
        )

    def __len__(self) -> int:
        """Give the number of prompts."""
        return len(self.ids)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Number of real tokens of each prompt."""
        return tuple(len(i) for i in self.ids)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything the model is given and of the roles, in hex."""
        total = hashlib.sha256()
        for row, role, extra in zip(self.ids, self.roles, self.extras, strict=True):
            total.update(f"{len(row)};".encode())
            total.update(np.ascontiguousarray(row, dtype="<i8").tobytes())
            total.update(np.ascontiguousarray(role, dtype="i1").tobytes())
            _hash_tensors(total, extra)
        if self.whole is not None:
            _hash_tensors(total, self.whole)
        return total.hexdigest()

    def subset(self, indices: Sequence[int]) -> Prompts:
        """Give the prompts at ``indices``, in that order.

        Raises:
            PromptError: an index is out of range, none is given, or the prompts can only be run whole.
        """
        chosen = self._check_indices(indices)
        if self.whole is not None and chosen != tuple(range(len(self))):
            raise PromptError(
                "subset: these prompts are one processor output that is run whole. Call the processor once per "
                "prompt, or use from_chat."
            )
        return Prompts(
            ids=tuple(self.ids[i] for i in chosen),
            roles=tuple(self.roles[i] for i in chosen),
            tokens=tuple(self.tokens[i] for i in chosen),
            extras=tuple(self.extras[i] for i in chosen),
            grids=tuple(self.grids[i] for i in chosen),
            key0=self.key0,
            whole=self.whole,
            pad_id=self.pad_id,
        )

    def batch(self, indices: Sequence[int], device: torch.device | str = "cpu") -> Batch:
        """Collate the prompts at ``indices``: padded on the right, with a mask where there is padding.

        Raises:
            PromptError: an index is out of range, or the further inputs of these prompts do not fit in one batch.
        """
        from sinkscope.prompts import batch

        return batch.collate(self, self._check_indices(indices), device)

    def _check_indices(self, indices: Sequence[int]) -> tuple[int, ...]:
        chosen = tuple(int(i) for i in indices)
        if not chosen:
            raise PromptError("no prompts chosen: the list of indices is empty.")
        for index in chosen:
            if not 0 <= index < len(self):
                raise PromptError(f"prompt {index} was asked for, but there are prompts 0 to {len(self) - 1}.")
        return chosen

    def __repr__(self) -> str:
        """Summarise the prompts in two lines."""
        counts = np.bincount(np.concatenate(self.roles), minlength=len(ROLES))
        by_role = ", ".join(f"{name} {n}" for name, n in zip(ROLES, counts, strict=True) if n)
        lengths = self.lengths
        span = f"{lengths[0]}" if min(lengths) == max(lengths) else f"{min(lengths)} to {max(lengths)}"
        first = "|".join(self.tokens[0][:12]) + ("|..." if lengths[0] > 12 else "")
        return f"Prompts({len(self)} of {span} tokens; {by_role}; key 0 is {self.key0})\n  0: {first}"

    def _repr_html_(self) -> str:
        return show.render_html(self.tokens, self.roles)


def _refuse_vision(model: Any, call: str) -> None:
    if model.kind == "vision":
        raise PromptError(f"{call}: this model is a vision encoder and reads no text. Use Prompts.from_images.")


def _hash_tensors(total: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}{tuple(tensor.shape)}{tensor.dtype};".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
