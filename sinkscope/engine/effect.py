"""Does an edit change anything? An edit without effect is an error, never a silent zero."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
import xarray as xr

from sinkscope.attention.primitives import Tally
from sinkscope.edits.base import Edit
from sinkscope.edits.values import Selection, asked, is_empty
from sinkscope.engine.plan import Plan
from sinkscope.engine.results import Result
from sinkscope.errors import EditError, EditHasNoEffect, UnsupportedModelError
from sinkscope.models.backends.base import Instruments, Output, ResidualHook, Tower
from sinkscope.prompts import Batch, Prompts
from sinkscope.prompts.selection import beyond, prompt_labels, select, unpadded

if TYPE_CHECKING:
    from sinkscope.models.handle import Model

CLEAR = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Differences beyond this part of the largest activation cannot be rounding of another path through the kernels."""

OVERRULED = (
    "the last normaliser that an edit gives a head is the one that holds, and where it is no softmax (SwapNormaliser, "
    "GiveMaps), null keys and extra keys have no denominator to share"
)
"""Why an edit of the denominator may be without effect where another edit, or the model, has its own normaliser."""


class EffectGuard:
    """Watches a run: refuses edits that do not fit the model, and says at the end which had no effect.

    Until an effect is seen, each batch is compared with a pass without the edits, at real tokens: first right after the
    first edit where that is early, then at the end; a difference small enough to be rounding is settled by two passes
    on the same path, bit for bit.

    Raises:
        EditError: something in the list is no edit, or names what the model does not have.
        UnsupportedModelError: no edit can take effect in this model.
    """

    def __init__(self, model: Model, tower: Tower, prompts: Prompts, edits: Sequence[Edit]) -> None:
        self.model, self.tower, self.prompts = model, tower, prompts
        self.edits = tuple(edits)
        check_edits(self.edits, tower, prompts)
        require_editable(model)
        self.active = [not (e.identity or e.selects_nothing) for e in self.edits]
        self.tallies = [Tally() for _ in self.edits]
        self.seen = False

    def compare(self, batch: Batch, output: Output, plan: Plan) -> None:
        """Take note of one batch that was run under ``plan`` and gave ``output``."""
        acted = False
        for index, (total, tally) in enumerate(zip(self.tallies, plan.tallies, strict=True)):
            total.add(tally)
            acted |= self.active[index] and tally.touched > 0
        if self.seen or not acted:
            return
        site = self._early_site()
        if site is not None and _clear(self._until(site, batch, False), self._until(site, batch, True)):
            self.seen = True
            return
        plain = self.model.backend.forward(batch.inputs, self.tower, Instruments()).hidden
        if _clear(_real(output.hidden, batch), _real(plain, batch)):
            self.seen = True
            return
        edited, same = (self._again(batch, neutral).hidden for neutral in (False, True))
        self.seen = not torch.equal(_real(edited, batch), _real(same, batch))

    def take(self, result: Result) -> None:
        """Take note of one batch that was run earlier, or elsewhere, and gave ``result``."""
        self.seen = self.seen or result.effect
        for tally, counts in zip(self.tallies, result.tallies, strict=True):
            tally.add(Tally(*counts))

    def _early_site(self) -> str | None:
        """Residual site right after the first edit, where that is in the first half of the model.

        What differs clearly there differs at the end, and two passes up to there cost less than one whole pass.
        """
        edits = [edit for edit, active in zip(self.edits, self.active, strict=True) if active]
        if self.model.backend.name != "transformers" or any(edit.conditional for edit in edits):
            return None
        names = self.tower.site_names
        first = [names.index(s) for s in (first_site(edit, self.tower) for edit in edits) if s in names]
        return names[min(first)] if first and 2 * min(first) < len(names) else None

    def _until(self, site: str, batch: Batch, neutral: bool) -> torch.Tensor:
        """The residual stream at ``site``, the pass ended there."""

        def stop(hidden: torch.Tensor) -> None:
            raise _Reached(_real(hidden, batch))

        try:
            self._again(batch, neutral, {site: [stop]})
        except _Reached as reached:
            return reached.hidden
        raise AssertionError(f"site {site} was not passed")

    def _again(self, batch: Batch, neutral: bool, more: Mapping[str, Sequence[ResidualHook]] | None = None) -> Output:
        plan = Plan(self.edits, self.tower, self.prompts, batch, neutral=neutral)
        residual = {name: list(hooks) for name, hooks in plan.residual.items()}
        for name, hooks in (more or {}).items():
            residual.setdefault(name, []).extend(hooks)
        instruments = Instruments(edits=plan.call_edits if plan.on_attention else None, residual=residual)
        return self.model.backend.forward(batch.inputs, self.tower, instruments)

    def verdict(self) -> None:
        """Judge the run.

        Raises:
            EditHasNoEffect: an edit touched nothing, or all of them together left the output bit for bit as it was.
        """
        require_touched(self.edits, self.tallies, self.model.id, len(self.prompts))
        must = [repr(e) for e, tally in zip(self.edits, self.tallies, strict=True) if must_act(e, tally)]
        if must and not self.seen:
            raise EditHasNoEffect(
                f"{', '.join(must)} changes nothing in {self.model.id}: the final hidden states are bit for bit the "
                "same. The heads may write nothing, or see no other key. Choose other layers, heads or keys."
            )

    def attributes(self) -> dict[str, Any]:
        """What happened, for the reading's attributes: a JSON list with one entry per edit, and notes in words."""
        counts, notes = [], []
        for index, edit in enumerate(self.edits):
            tally = self.tallies[index]
            counts.append({"edit": type(edit).__name__, "fired": tally.fired, "spared": tally.spared})
            if edit.allow_empty and not edit.conditional and not tally.touched and not tally.spared:
                notes.append(f"{edit!r} selects nothing, so nothing was changed")
            elif edit.identity:
                notes.append(f"{edit!r} is an identity, so nothing was changed")
            elif edit.conditional:
                notes.append(f"{edit!r} acted on {tally.fired} rows")
            if tally.spared:
                notes.append(f"{edit!r} left {tally.spared} rows alone that see nothing but its keys")
            if tally.overruled and tally.touched:
                notes.append(f"{edit!r} plays no part in some of its heads: {OVERRULED}")
        for edit in dict.fromkeys(self.edits):
            notes += [f"{edit!r}: {note}" for note in edit.notes(self.tower)]
            times = self.edits.count(edit)
            if times > 1 and not edit.identity:
                notes.append(f"{edit!r} is in the list {times} times and acts {times} times")
        return {"edit_counts": json.dumps(counts), "edit_notes": "; ".join(notes)}


def require_editable(model: Model) -> None:
    """Refuse a model whose attention can only be read.

    Raises:
        UnsupportedModelError: says why.
    """
    if not model.backend.edits:
        raise UnsupportedModelError(
            f"{model.id}: attention of this model can be read but not edited. {model.backend.why_not}".strip()
        )


def check_edits(edits: Sequence[Any], tower: Tower, prompts: Prompts | None = None) -> None:
    """Refuse what is no edit, does not fit ``tower`` or selects nothing, before any pass.

    Raises:
        EditError: something is no edit, names what the model does not have, or tokens that the prompts do not have.
        EditHasNoEffect: a selection is empty, and the edit does not allow it.
    """
    tokens = None if prompts is None else unpadded(prompts.roles)
    if tokens is not None and prompts is not None and prompts.other is not None and tower.cross:
        tokens = replace(tokens, target=unpadded(prompts.other.roles), cross=True)
    for edit in edits:
        if not isinstance(edit, Edit):
            raise EditError(f"run: {edit!r} is no edit. Edits are values such as sinkscope.MaskKeys('first').")
        edit.check(tower)
        if not edit.identity:
            _require_selection(edit, tower, tokens)


def _require_selection(edit: Edit, tower: Tower, tokens: Batch | None) -> None:
    """Refuse an edit with an empty selection, written down so or empty in these prompts."""
    for name in (f.name for f in fields(edit)):
        value = getattr(edit, name)
        if is_empty(value) and edit.selects_nothing and not edit.allow_empty:
            raise EditHasNoEffect(
                f"{edit!r} changes nothing: its {name} are empty. Select something, or pass allow_empty=True where an "
                "empty selection is meant."
            )
        if tokens is None or name not in ("keys", "queries") or value is None or is_empty(value):
            continue
        named = value.array() if isinstance(value, Selection) else value
        if isinstance(named, xr.DataArray):
            _require_prompts(named, len(tokens.real), asked(edit, name))
        chosen = select(named, tokens.queries if name == "queries" else tokens, EditError, asked(edit, name))
        later = bool(beyond(value, tokens).any())  # tokens that are still to be generated
        if not edit.allow_empty and not later and not bool(chosen.any()):
            raise EditHasNoEffect(
                f"{edit!r} changes nothing in these prompts: none of the {len(chosen)} prompts has a token it selects "
                f"by {name}. Choose {name} that these prompts have, or pass allow_empty=True where an empty selection "
                "is meant."
            )


def _require_prompts(selected: xr.DataArray, count: int, named: str) -> None:
    """Refuse a selection of more prompts than are read: those of a subset would get what others had selected."""
    numbers = prompt_labels(selected)
    if any(number >= count for number in numbers):
        raise EditError(
            f"{named}: the DataArray selects tokens of {len(numbers)} prompts, up to prompt {max(numbers)}, and "
            f"{count} are read. A subset's prompts are numbered anew: select theirs, as array.isel(prompt=[...])"
            ".drop_vars('prompt', errors='ignore')."
        )


class _Reached(Exception):
    """Ends a pass early; reports nothing wrong."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.hidden = hidden


def must_act(edit: Edit, tally: Tally) -> bool:
    """Return whether a run in which ``edit`` changes nothing is an error."""
    empty = edit.allow_empty and not tally.touched and not tally.spared
    return not (edit.identity or edit.conditional or empty)


def require_touched(edits: Sequence[Edit], tallies: Sequence[Tally], model_id: str, prompts: int) -> None:
    """Refuse edits that touched no row in a run over ``prompts`` prompts.

    Raises:
        EditHasNoEffect: names the first such edit and says why.
    """
    for edit, tally in zip(edits, tallies, strict=True):
        if tally.touched or not must_act(edit, tally):
            continue
        why = (
            f"none of the {prompts} prompts has a token it selects where a query can see it. Choose keys, queries or "
            "layers that these prompts and this model have."
        )
        if tally.overruled:
            why = f"it plays no part in any of its heads: {OVERRULED}. Leave it out, or choose other heads for one."
        if tally.spared:
            why = (
                f"all {tally.spared} rows it touches see nothing but masked keys and were left alone. Select fewer "
                "keys."
            )
        raise EditHasNoEffect(f"{edit!r} changes nothing in {model_id}: {why}")


def first_site(edit: Edit, tower: Tower) -> str | None:
    """Return a residual site at which what ``edit`` does can be seen: behind its first layer, or its first site."""
    layers = edit.layers_in(tower)
    if layers:
        return f"{min(layers)}.post"
    return min(edit.sites_in(tower), key=tower.site_names.index, default=None)


def _clear(edited: torch.Tensor, plain: torch.Tensor) -> bool:
    """Whether two states differ by more than the rounding of different kernels."""
    return float((edited - plain).abs().max()) > CLEAR.get(plain.dtype, 1e-3) * float(plain.abs().max())


def _real(hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The final hidden state at real tokens, or all of it where it has another shape."""
    real = batch.queries.real
    return hidden[real] if hidden.shape[:2] == real.shape else hidden
