"""Labels of the user's own, one per token: demonstration and query image, stop words, the words for an object.

Each token has one role, which the package gives. A label says what a token is in one study. ``label_tokens(...)`` gives
an array of names; ``labels == "query image"`` is a selection that every ``keys=`` and ``queries=`` takes, and
``RoleShare(groups=labels)`` says how much attention each label gets.
"""

# pyright: reportUnknownMemberType=false
# (the annotations of xarray and of torch.from_numpy have gaps)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import xarray as xr

from sinkscope.arguments import shown
from sinkscope.errors import PromptError
from sinkscope.prompts.data import PAD, Batch, PromptFields
from sinkscope.prompts.selection import select
from sinkscope.roles import ROLE_INDEX


@dataclass(frozen=True)
class Words:
    """Tokens whose text, without blanks around it, is one of these words; ``Words("the", "a")``.

    A word of several tokens is found whole, a part of a word is not found; case counts unless ``case=False``.
    """

    words: tuple[str, ...]
    case: bool = True

    def __init__(self, *words: str, case: bool = True) -> None:
        object.__setattr__(self, "words", words)
        object.__setattr__(self, "case", case)

    def places(self, tokens: tuple[str, ...]) -> np.ndarray:
        """Return where the words stand among the tokens of one prompt, as booleans."""
        texts = [token.strip().removeprefix("##") for token in tokens]
        texts = texts if self.case else [text.lower() for text in texts]
        wanted = [word if self.case else word.lower() for word in self.words]
        continues = [*_continuing(tokens), False]
        found = np.zeros(len(texts), dtype=bool)
        for start in range(len(texts)):
            stop = start + 1
            while continues[stop]:
                stop += 1
            if not continues[start] and "".join(texts[start:stop]) in wanted:
                found[start:stop] = True
        return found


def _continuing(tokens: tuple[str, ...]) -> list[bool]:
    """Whether each token goes on with the word before it: no blank between them, or WordPiece's mark."""
    if not any(token[:1].isspace() for token in tokens):
        return [token.startswith("##") for token in tokens]
    pairs = zip(("", *tokens), tokens, strict=False)
    return [before[-1:].isalnum() and token[:1].isalnum() for before, token in pairs]


@dataclass(frozen=True)
class Image:
    """Visual tokens of one image of the prompt, by its number from 0."""

    index: int


def label_tokens(prompts: PromptFields, groups: Mapping[str, Any]) -> xr.DataArray:
    """Return a label for every token: names over (prompt, key), the empty string where no group holds the token.

    Args:
        prompts: what is to be labelled.
        groups: ``{name: what}``; ``what`` is a role, a list of roles or positions, ``"first"``, ``"last"``,
            ``"after_image"``, a boolean DataArray, ``labels.Words("the", "a")`` or ``labels.Image(0)``.

    Raises:
        PromptError: no group, an unknown selection, an image that no prompt has, or two groups that hold one token.
    """
    if not isinstance(cast("object", prompts), PromptFields):
        raise PromptError(f"label_tokens: expected Prompts, got {shown(prompts)}. Build them with Prompts.from_texts.")
    if not isinstance(cast("object", groups), Mapping) or not groups:
        raise PromptError("label_tokens: no group is named. Give {name: selection}.")
    batch = _whole(prompts)
    shape = tuple(batch.real.shape)
    labels, taken = np.full(shape, "", dtype=object), np.full(shape, False)
    for name, what in groups.items():
        held = _held(name, what, prompts, batch)
        if bool((held & taken).any()):
            prompt, key = (int(n) for n in np.argwhere(held & taken)[0])
            raise PromptError(
                f"label_tokens: token {key} of prompt {prompt} is in {labels[prompt, key]!r} and in {name!r}. Give "
                "each token one label, or name overlapping groups to RoleShare as a mapping."
            )
        labels[held], taken = name, taken | held
    coords = {"prompt": np.arange(shape[0])}
    return xr.DataArray(labels.astype(str), dims=("prompt", "key"), coords=coords, name="label")


def _held(name: str, what: Any, prompts: PromptFields, batch: Batch) -> np.ndarray:
    held = np.zeros(tuple(batch.real.shape), dtype=bool)
    if isinstance(what, Words):
        for row, tokens in enumerate(prompts.tokens):
            held[row, : len(tokens)] = what.places(tokens)
        return held
    if isinstance(what, Image):
        for row, grid in enumerate(prompts.grids):
            if grid is not None:
                held[row, : len(grid.image)] = grid.image == what.index
        held &= (batch.roles == ROLE_INDEX["image"]).numpy()
        if not held.any():
            raise PromptError(f"label_tokens({name!r}): no prompt has an image {what.index}. Images count from 0.")
        return held
    return select(what, batch, PromptError, f"label_tokens({name!r})").numpy()


def _whole(prompts: PromptFields) -> Batch:
    """All prompts side by side, as far as a selection looks at them; no pixels."""
    lengths = torch.tensor(prompts.lengths)
    real = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    roles = torch.full(real.shape, PAD, dtype=torch.int8)
    for row, own in enumerate(prompts.roles):
        roles[row, : len(own)] = torch.from_numpy(own)
    return Batch({}, real, roles, tuple(range(len(real))))
