"""The fields of prompts, the grid of an image, and a batch: what everything else in this room makes or reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int8

from sinkscope.arguments import is_iterable, is_whole, shown
from sinkscope.errors import PromptError
from sinkscope.prompts import show
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
    target: Batch | None = None
    """What the decoder of an encoder-decoder reads; its ``inputs`` hold the token ids alone."""
    cross: bool = False
    """Whether the queries are the target's tokens, and the keys those of this batch (cross-attention)."""

    @property
    def queries(self) -> Batch:
        """The tokens that the queries are."""
        return self.target if self.cross and self.target is not None else self

    @property
    def outputs(self) -> Batch:
        """The tokens after which the model predicts one."""
        return self if self.target is None else self.target


@dataclass(frozen=True, eq=False)
class PatchGrid:
    """Place of each token of one prompt on its image; NaN for tokens that are no patch."""

    row: Float[np.ndarray, " token"]
    """Row in the grid of its resolution: that of the whole image, or that of all tiles put together."""
    col: Float[np.ndarray, " token"]
    """Column in the same grid."""
    tile: Float[np.ndarray, " token"]
    """0 for a view of the whole image (or the only view), tiles from 1, row by row."""
    image: Float[np.ndarray, " token"]
    """Which image of the prompt; separators between the rows of an image count to it."""
    box: Float[np.ndarray, "token 4"]
    """Left, top, right, bottom in pixels of the original image, edges exclusive of padding."""
    sizes: tuple[tuple[float, float], ...]
    """(height, width) of each original image, NaN where only the processor has seen it."""
    separated: bool = False
    """Whether this family ends each row of patches with a token of its own."""

    @property
    def separator(self) -> Bool[np.ndarray, " token"]:
        """Say which tokens only end a row of patches."""
        return self.separated & ~np.isnan(self.image) & np.isnan(self.row)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Give row and column, the two arrays that readings carry as ``grid_row`` and ``grid_col``."""
        return iter((self.row, self.col))


@dataclass(frozen=True, eq=False)
class ImageSettings:
    """What decided how pictures became tokens; two models that agree in it can run the same prompts."""

    processor: Mapping[str, Any]
    """Settings of the image processor; empty where pixel values were given ready-made."""
    layout: Mapping[str, Any]
    """Family, patch size and number of register tokens of the model."""


@dataclass(frozen=True, eq=False)
class PromptFields:
    """Ids, roles and strings of the real tokens of each prompt, further inputs, patch grids.

    Every sequence below has one entry per prompt.
    """

    ids: tuple[np.ndarray, ...]
    """Token ids, int64, padding left out; -1 for each token of a pure vision encoder."""
    roles: tuple[np.ndarray, ...]
    """Index into ``roles.ROLES`` of each token, int8."""
    tokens: tuple[tuple[str, ...], ...]
    """Each token as text that is safe to print: no control characters, no line breaks."""
    extras: tuple[dict[str, torch.Tensor], ...]
    """Further model inputs (pixel values, grids, token types); empty for text."""
    grids: tuple[PatchGrid | None, ...]
    """Row, column, tile and pixel box of each visual token, NaN elsewhere; ``None`` where there is no image."""
    key0: str
    """What key 0 is, in words."""
    whole: Mapping[str, torch.Tensor] | None = None
    """Processor output that cannot be taken apart by prompt: it is run as one batch, as it is."""
    pad_id: int = 0
    """Id put where a shorter prompt of a batch has ended; never attended, never measured."""
    origin: Mapping[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    """Coordinates over ``prompt`` that readings carry: which prompt, image and tile a picture was taken from."""

    images: ImageSettings | None = None
    """How the pictures were prepared; ``None`` where there are none."""
    made_of: tuple[Any, ...] = ()
    """What each was made of, where a picture may be cropped: the item of a chat, or the image; empty elsewhere."""
    one_by_one: bool = False
    """Whether each needs a pass of its own: a tower that joins the images of a call into one sequence (Qwen-VL)."""
    other: PromptFields | None = None
    """The other side of pairs for an encoder-decoder: the targets beside sources, the sources beside targets."""
    side: str = "source"
    """Which side of pairs these are: ``source``, ``target``, ``cross`` (keys: source, queries: target), or ``image``
    (keys: features of the images of the other side, queries: its text)."""

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
        for index in range(len(self.ids)):
            self._hash_prompt(total, index)
        if self.whole is not None:
            _hash_tensors(total, self.whole)
        return total.hexdigest()

    def prompt_digests(self) -> list[str]:
        """Return for each prompt 16 digits of a SHA-256 of its tokens, roles and images: what pairs readings."""
        found: list[str] = []
        for index in range(len(self.ids)):
            total = hashlib.sha256()
            self._hash_prompt(total, index)
            if self.whole is not None:
                _hash_tensors(total, self.whole)
            found.append(total.hexdigest()[:16])
        return found

    def _hash_prompt(self, total: Any, index: int) -> None:
        row = self.ids[index]
        total.update(f"{len(row)};".encode())
        total.update(np.ascontiguousarray(row, dtype="<i8").tobytes())
        total.update(np.ascontiguousarray(self.roles[index], dtype="i1").tobytes())
        _hash_tensors(total, self.extras[index])
        if self.other is not None:
            total.update(f"{self.side};".encode())
            self.other._hash_prompt(total, index)

    def subset(self, indices: Sequence[int]) -> Self:
        """Return the prompts at ``indices``, in that order.

        Raises:
            PromptError: an index is out of range, none is given, or the prompts can only be run whole.
        """
        chosen = self.check_indices(indices)
        if self.whole is not None and chosen != tuple(range(len(self))):
            raise PromptError(
                "subset: these prompts are one processor output that is run whole. Call the processor once per "
                "prompt, or use from_chat."
            )
        return replace(
            self,
            ids=tuple(self.ids[i] for i in chosen),
            roles=tuple(self.roles[i] for i in chosen),
            tokens=tuple(self.tokens[i] for i in chosen),
            extras=tuple(self.extras[i] for i in chosen),
            grids=tuple(self.grids[i] for i in chosen),
            made_of=tuple(self.made_of[i] for i in chosen) if self.made_of else (),
            origin={name: values[list(chosen)] for name, values in self.origin.items()},
            other=None if self.other is None else self.other.subset(chosen),
        )

    def spans(self, batch_size: Any) -> list[range]:
        """Return the prompts of each batch, at most ``batch_size`` in one.

        A processor's whole output is one batch; prompts that go ``one_by_one`` are a batch each.

        Raises:
            PromptError: ``batch_size`` is no whole number of at least 1.
        """
        check_batch_size(batch_size)
        size = len(self) if self.whole is not None else 1 if self.one_by_one else int(batch_size)
        return [range(start, min(start + size, len(self))) for start in range(0, len(self), size)]

    def check_indices(self, indices: Sequence[int]) -> tuple[int, ...]:
        """Return ``indices`` as whole numbers.

        Raises:
            PromptError: there are none, or one is out of range.
        """
        given: Any = indices
        listed: list[Any] = list(given) if is_iterable(given) else [given]
        if not all(map(is_whole, listed)):
            raise PromptError(f"prompts are chosen by whole numbers, got {shown(given)}. Give a list of them.")
        chosen = tuple(int(i) for i in listed)
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


def check_batch_size(batch_size: Any, caller: str = "") -> None:
    """Refuse what is no number of prompts; the message opens with the ``caller`` that was asked.

    Raises:
        PromptError: ``batch_size`` is no whole number of at least 1.
    """
    if isinstance(batch_size, bool) or not hasattr(batch_size, "__index__") or batch_size < 1:
        asked = f"batch_size={batch_size!r}"
        raise PromptError(f"{f'{caller}({asked})' if caller else asked}: use a whole number of at least 1.")


def _hash_tensors(total: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}{tuple(tensor.shape)}{tensor.dtype};".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
