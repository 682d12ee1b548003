"""The tokens of a batch as edits select them: each selector resolved once, and cut to the axis that a call has.

Positions are those of the padded prompt. A call may see fewer keys (sliding caches), more (generated tokens), or more
rows (several sequences per prompt); whatever lies beyond the prompt is a generated token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Shaped

from sinkscope.edits.values import Selection, labelled
from sinkscope.errors import EditError
from sinkscope.prompts import Batch
from sinkscope.prompts.selection import from_array, select
from sinkscope.roles import ROLE_INDEX

TokenMask = Bool[torch.Tensor, "batch head key"]


@dataclass(eq=False)
class Tokens:
    """The prompts' tokens where they lie in the model's inputs, and selections of them, each resolved once."""

    batch: Batch
    _found: dict[Any, TokenMask] = field(default_factory=dict[Any, TokenMask])

    @staticmethod
    def all_visual(rows: int, length: int, device: torch.device) -> Tokens:
        """Return the tokens of a vision tower inside a larger model: all real, and all of the role image."""
        real = torch.ones(rows, length, dtype=torch.bool, device=device)
        roles = torch.full((rows, length), ROLE_INDEX["image"], dtype=torch.int8, device=device)
        return Tokens(Batch({}, real, roles, tuple(range(rows))))

    @cached_property
    def queries(self) -> Tokens:
        """The tokens that the queries are: these themselves, but in cross-attention those of the target."""
        return Tokens(self.batch.queries) if self.batch.cross else self

    def choose(self, selection: Any, asked: Callable[[], str], layer: int | None = None, heads: int = 1) -> TokenMask:
        """Return the tokens that a selector names; the head axis is 1 where heads do not differ.

        ``asked`` opens the message of an error.

        Raises:
            EditError: a position beyond a prompt, prompts or positions that do not fit a DataArray.
        """
        per_layer = isinstance(selection, Selection) and "layer" in selection.dims
        key = (selection, layer if per_layer else None)
        if key not in self._found:
            if isinstance(selection, Selection):
                array = selection.array()
                if labelled(array, "head") and layer is not None:
                    array = array.reindex({"head": range(heads)}, fill_value=False)  # type: ignore[arg-type]
                self._found[key] = from_array(array, self.batch, layer, EditError, asked())
            else:
                self._found[key] = select(selection, self.batch, EditError, asked())[:, None]
        return self._found[key]

    def named(self, name: str) -> Bool[torch.Tensor, "batch key"]:
        """Return the tokens of a role, or of a named selection."""
        return select(name, self.batch, EditError, name)

    @property
    def prompt(self) -> Bool[torch.Tensor, "batch key"]:
        """Real tokens that the model did not generate."""
        return self.batch.real & (self.batch.roles != ROLE_INDEX["generated"])


def place(
    mask: Shaped[torch.Tensor, "batch ... key"],
    fill: Shaped[torch.Tensor, " batch"],
    start: int,
    length: int,
    rows: int,
) -> Shaped[torch.Tensor, "rows ... length"]:
    """Return ``length`` positions from ``start`` of a mask, or numbers, over the prompt; beyond it stands ``fill``."""
    if rows != len(mask) and rows % len(mask) == 0:
        mask, fill = (t.repeat_interleave(rows // len(mask), 0) for t in (mask, fill))
    part = mask[..., start : start + length]
    short = length - part.shape[-1]
    if short <= 0:
        return part
    shape = (*part.shape[:-1], short)
    tail = fill.view(-1, *[1] * (mask.ndim - 1)).expand(shape)
    return torch.cat([part, tail], dim=-1)
