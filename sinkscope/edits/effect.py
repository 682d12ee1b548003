"""Does an edit change anything? An edit without effect is an error, never a silent zero."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from sinkscope.attention.bias import Tally
from sinkscope.backends.base import Instruments, Output, Tower
from sinkscope.edits.base import Edit
from sinkscope.edits.plan import Plan
from sinkscope.errors import EditError, EditHasNoEffect, UnsupportedModelError
from sinkscope.prompts import Batch, Prompts

if TYPE_CHECKING:
    from sinkscope.model import Model

CLEAR = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Differences beyond this part of the largest activation cannot be rounding of another path through the kernels."""


class EffectGuard:
    """Watches a run: refuses edits that do not fit the model, and says at the end which had no effect.

    Until an effect is seen, each batch is run once more without the edits and the final hidden states are compared at
    real tokens; a difference small enough to be rounding is settled by two passes on the same path, bit for bit.

    Raises:
        EditError: something in the list is no edit, or names what the model does not have.
        UnsupportedModelError: no edit can take effect in this model.
    """

    def __init__(self, model: Model, tower: Tower, prompts: Prompts, edits: Sequence[Edit]) -> None:
        self.model, self.tower, self.prompts, self.edits = model, tower, prompts, tuple(edits)
        check_edits(self.edits, tower)
        if not model.backend.edits:
            raise UnsupportedModelError(
                f"{model.id}: attention of this model can be read but not edited. {model.backend.why_not}".strip()
            )
        self.active = [not (e.identity or e.selects_nothing) for e in self.edits]
        self.tallies = [Tally() for _ in self.edits]
        self.seen = False

    def compare(self, batch: Batch, output: Output, plan: Plan) -> None:
        """Take note of one batch that was run under ``plan`` and gave ``output``."""
        acted = False
        for index, (total, tally) in enumerate(zip(self.tallies, plan.tallies, strict=True)):
            total.touched += tally.touched
            total.spared += tally.spared
            total.fired += tally.fired
            acted |= self.active[index] and tally.touched > 0
        if self.seen or not acted:
            return
        plain = self.model.backend.forward(batch.inputs, self.tower, Instruments()).hidden
        scale = CLEAR.get(plain.dtype, 1e-3) * float(_real(plain, batch).abs().max())
        if float((_real(output.hidden, batch) - _real(plain, batch)).abs().max()) > scale:
            self.seen = True
            return
        self.seen = not torch.equal(self._again(batch, False), self._again(batch, True))

    def _again(self, batch: Batch, neutral: bool) -> torch.Tensor:
        plan = Plan(self.edits, self.tower, self.prompts, batch, neutral=neutral)
        instruments = Instruments(edits=plan.call_edits if plan.on_attention else None, residual=plan.residual)
        return _real(self.model.backend.forward(batch.inputs, self.tower, instruments).hidden, batch)

    def verdict(self) -> None:
        """Judge the run.

        Raises:
            EditHasNoEffect: an edit touched nothing, or all of them together left the output bit for bit as it was.
        """
        must = [i for i, edit in enumerate(self.edits) if self.active[i] and not edit.conditional]
        for index in must:
            if not self.tallies[index].touched:
                raise EditHasNoEffect(f"{self.edits[index]!r} changes nothing in {self.model.id}: {self._why(index)}")
        if must and not self.seen:
            listed = ", ".join(repr(self.edits[i]) for i in must)
            raise EditHasNoEffect(
                f"{listed} changes nothing in {self.model.id}: the final hidden states are bit for bit the same. "
                "The heads may write nothing, or see no other key. Choose other layers, heads or keys."
            )

    def _why(self, index: int) -> str:
        if self.tallies[index].spared:
            return (
                f"all {self.tallies[index].spared} rows it touches see nothing but masked keys and were left alone. "
                "Select fewer keys."
            )
        return (
            f"none of the {len(self.prompts)} prompts has a token it selects where a query can see it. Choose keys, "
            "queries or layers that these prompts and this model have."
        )

    def attributes(self) -> dict[str, Any]:
        """What happened, for the reading's attributes: a JSON list with one entry per edit, and notes in words."""
        counts, notes = [], []
        for index, edit in enumerate(self.edits):
            tally = self.tallies[index]
            counts.append({"edit": type(edit).__name__, "fired": tally.fired, "spared": tally.spared})
            if edit.selects_nothing:
                notes.append(f"{edit!r} selects nothing, so nothing was changed")
            elif edit.identity:
                notes.append(f"{edit!r} is an identity, so nothing was changed")
            elif edit.conditional:
                notes.append(f"{edit!r} acted on {tally.fired} rows")
            if tally.spared:
                notes.append(f"{edit!r} left {tally.spared} rows alone that see nothing but its keys")
        return {"edit_counts": json.dumps(counts), "edit_notes": "; ".join(notes)}


def check_edits(edits: Sequence[Any], tower: Tower) -> None:
    """Refuse what is no edit, or does not fit ``tower``.

    Raises:
        EditError: says what is wrong.
    """
    for edit in edits:
        if not isinstance(edit, Edit):
            raise EditError(f"run: {edit!r} is no edit. Edits are values such as sinkscope.MaskKeys('first').")
        edit.check(tower)


def _real(hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The final hidden state at real tokens, or all of it where it has another shape."""
    return hidden[batch.real] if hidden.shape[:2] == batch.real.shape else hidden
