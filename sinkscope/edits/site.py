"""One edit meets one attention call: selectors become masks with the call's own shapes.

Positions are those of the padded prompt. A call may see fewer keys (sliding caches), more (generated tokens), or more
rows (several sequences per prompt); whatever lies beyond the prompt is a generated token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool

from sinkscope.attention.call import Call
from sinkscope.attention.primitives import Tally
from sinkscope.attention.view import Context
from sinkscope.edits.base import AttentionEdit, Edit
from sinkscope.edits.selectors import Selection
from sinkscope.errors import EditError
from sinkscope.prompts import Batch
from sinkscope.prompts.selection import from_array, select
from sinkscope.roles import ROLE_INDEX

Mask = Bool[torch.Tensor, "batch head key"]


@dataclass(eq=False)
class Tokens:
    """The prompts' tokens where they lie in the model's inputs, and selections of them, each resolved once."""

    batch: Batch
    _found: dict[Any, Mask] = field(default_factory=dict)

    def choose(self, edit: Edit, name: str, layer: int | None = None, heads: int = 1) -> Mask:
        """Resolve field ``name`` of ``edit`` over the prompt's positions; the head axis is 1 where heads do not differ.

        Raises:
            EditError: a position beyond a prompt, prompts or positions that do not fit a DataArray.
        """
        selection = getattr(edit, name)
        per_layer = isinstance(selection, Selection) and "layer" in selection.dims
        key = (selection, layer if per_layer else None)
        if key not in self._found:
            asked = edit._asked(name)
            if isinstance(selection, Selection):
                array = selection.array()
                if "head" in array.dims and "head" in array.coords and layer is not None:
                    array = array.reindex(head=range(heads), fill_value=False)  # type: ignore[arg-type]
                self._found[key] = from_array(array, self.batch, layer, EditError, asked)
            else:
                self._found[key] = select(selection, self.batch, EditError, asked)[:, None]
        return self._found[key]

    def named(self, name: str) -> Bool[torch.Tensor, "batch key"]:
        """Tokens of a role, or a named selection."""
        return select(name, self.batch, EditError, name)

    @property
    def prompt(self) -> Bool[torch.Tensor, "batch key"]:
        """Real tokens that the model did not generate."""
        return self.batch.real & (self.batch.roles != ROLE_INDEX["generated"])


def beyond(selection: Any, tokens: Tokens) -> Bool[torch.Tensor, " batch"]:
    """Whether a selection holds for tokens that are generated after the prompt."""
    rows = len(tokens.batch.real)
    names = (selection,) if isinstance(selection, str) else selection
    held = selection is None or (isinstance(names, tuple) and bool({"all", "generated"} & set(names)))
    if held or not (isinstance(names, tuple) and "after_image" in names):
        return torch.full((rows,), held, device=tokens.batch.real.device)
    return ((tokens.batch.roles == ROLE_INDEX["image"]) & tokens.batch.real).any(-1)


def place(
    mask: Bool[torch.Tensor, "batch ... key"], fill: Bool[torch.Tensor, " batch"], start: int, length: int, rows: int
) -> Bool[torch.Tensor, "rows ... length"]:
    """Cut ``length`` positions from ``start`` out of a mask over the prompt; beyond it stands ``fill``."""
    if rows != len(mask) and rows % len(mask) == 0:
        mask, fill = (t.repeat_interleave(rows // len(mask), 0) for t in (mask, fill))
    part = mask[..., start : start + length]
    short = length - part.shape[-1]
    if short <= 0:
        return part
    shape = (*part.shape[:-1], short)
    tail = fill.view(-1, *[1] * (mask.ndim - 1)).expand(shape)
    return torch.cat([part, tail], dim=-1)


@dataclass(eq=False)
class CallSite:
    """What an edit needs to know of one call to write itself into it."""

    edit: AttentionEdit
    layer: int
    call: Call
    tokens: Tokens
    tally: Tally
    memory: dict[str, Any]
    value: torch.Tensor | None = None
    """One number per head given instead of the edit's own (for gradients), or None."""

    @property
    def diagonal(self) -> int:
        """Key column of query row 0; above 0 at a decoding step, where earlier keys come from a cache."""
        return self.call.mask.q_offset - self.call.mask.kv_offset

    @property
    def head_count(self) -> int:
        """Query heads of the call."""
        return self.call.query.shape[1]

    @property
    def heads(self) -> Bool[torch.Tensor, " head"]:
        """Heads the edit acts on."""
        mask = torch.zeros(self.head_count, dtype=torch.bool, device=self.call.query.device)
        mask[list(self.edit.heads_in(self.layer, self.head_count))] = True
        return mask

    def per_head(self, value: float) -> torch.Tensor:
        """A number for every head of the call."""
        if self.value is not None:
            return self.value
        return torch.full((self.head_count,), value, device=self.call.query.device)

    def keys(self, name: str = "keys") -> Mask:
        """The keys that field ``name`` selects, in the heads the edit acts on."""
        chosen = self.tokens.choose(self.edit, name, self.layer, self.head_count)
        return self.along_keys(chosen, beyond(getattr(self.edit, name), self.tokens)) & self.heads[None, :, None]

    def along_keys(
        self, mask: Bool[torch.Tensor, "batch ... key"], fill: Bool[torch.Tensor, " batch"] | bool
    ) -> torch.Tensor:
        """A mask over the prompt's positions on the call's key axis."""
        return self._along(mask, fill, self.call.mask.kv_offset, self.call.key.shape[2])

    def rows(self, mask: Bool[torch.Tensor, "batch key"], fill: torch.Tensor | bool) -> torch.Tensor:
        """A mask over the prompt's positions on the call's query axis."""
        return self._along(mask, fill, self.call.mask.q_offset, self.call.query.shape[2])

    def queries(self, default: str | None = None) -> Bool[torch.Tensor, "batch query"] | None:
        """Rows the edit acts on: the selected ones among real tokens; None where that is all of them."""
        selection = self.edit.queries if self.edit.queries is not None else default
        if selection is None:
            real = self.tokens.batch.real
            return None if bool(real.all()) else self.rows(real, True)
        if self.edit.queries is not None:
            chosen = self.tokens.choose(self.edit, "queries").any(1)
        else:
            chosen = self.tokens.named(selection)
        return self.rows(chosen, beyond(selection, self.tokens))

    def context(self) -> Context:
        """What a pass for statistics must know of this call."""
        real = self.along_keys(self.tokens.batch.real, True)
        return Context(real, torch.zeros_like(real, dtype=torch.long), (0,))

    def _along(self, mask: torch.Tensor, fill: torch.Tensor | bool, start: int, length: int) -> torch.Tensor:
        if isinstance(fill, bool):
            fill = torch.full((len(mask),), fill, device=mask.device)
        return place(mask, fill, start, length, self.call.query.shape[0])
