"""The residual stream at one site in one forward pass, as an edit sees it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool

from sinkscope.edits.context import EditContext
from sinkscope.edits.tokens import place
from sinkscope.edits.values import asked
from sinkscope.prompts.selection import beyond


@dataclass(eq=False, kw_only=True)
class EditedStream(EditContext):
    """The residual stream at ``site``: ``rows`` sequences of ``length`` tokens, the first at position ``offset``.

    ``offset`` is above 0 at a decoding step, where earlier tokens are in the cache.
    """

    site: str
    offset: int
    rows: int
    length: int

    def keys(self, name: str = "keys") -> Bool[torch.Tensor, "batch key"]:
        """Return the tokens of this pass that field ``name`` of the edit selects."""
        selection = getattr(self.edit, name)
        chosen = self.tokens.choose(selection, lambda: asked(self.edit, name)).any(1)
        return place(chosen, beyond(selection, self.tokens.batch), self.offset, self.length, self.rows)

    def prompt(self) -> Bool[torch.Tensor, "batch key"]:
        """Return the real tokens of this pass that the model did not generate."""
        prompt = self.tokens.prompt
        none = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
        return place(prompt, none, self.offset, self.length, self.rows)
