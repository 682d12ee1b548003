"""Computing variants of a sweep on one batch of prompts: the shared pass once, then packs of variants from their block.

A pack is several variants that start at the same block, side by side in one batch. Which variants share a pack follows
from the sweep alone, never from what is already done, so a resumed sweep computes the same numbers bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.rows import RowEdits, cut_call
from sinkscope.engine.effect import CLEAR
from sinkscope.engine.plan import Plan
from sinkscope.engine.reading import Shelf
from sinkscope.engine.run import check_finite, prepare, store_outputs
from sinkscope.engine.sweep.relay import Relay
from sinkscope.engine.sweep.variants import Variant
from sinkscope.models.backends.base import Instruments, Output, ResidualHook, Tower
from sinkscope.probes.base import Probe
from sinkscope.prompts import Batch

if TYPE_CHECKING:
    from sinkscope.models.handle import Model

TOKENS = {"cpu": 4096, "cuda": 32768}
"""Tokens of one pack."""
LOGITS = 1 << 28
"""Bytes of output logits that one pack may make."""
ROUNDING = 20.0
"""An effect this many times the difference that the same path makes without the edit is no rounding."""

STACKABLE = frozenset({"input_ids", "attention_mask", "token_type_ids", "pixel_values"})
"""Model inputs whose first axis is the batch, so that variants can be stacked along it."""


@dataclass
class Part:
    """What one variant gave on one batch: arrays by variable, batch first, and what its edits did."""

    arrays: dict[str, np.ndarray]
    tallies: list[tuple[int, int, int]] = field(default_factory=list)
    seen: bool = False
    paths: tuple[str, ...] = ()


@dataclass
class Baseline:
    """The pass without edits: what variants are compared with, start from, and take over below their first block."""

    batch: Batch
    hidden: torch.Tensor
    inputs: dict[int, torch.Tensor]
    arrays: dict[str, np.ndarray]
    paths: tuple[str, ...]
    noise: dict[int, float] = field(default_factory=dict)

    @property
    def scale(self) -> float:
        """Largest final activation at a real token."""
        return float(_real(self.hidden, self.batch.real).abs().max())


class PackPlan:
    """Plans of several variants as one: each acts on its own rows of the batch. Same interface as ``Plan``."""

    def __init__(self, plans: Sequence[Plan], rows: int) -> None:
        self.plans = [(slice(i * rows, (i + 1) * rows), plan) for i, plan in enumerate(plans)]
        names = dict.fromkeys(name for plan in plans for name in plan.residual)
        self.residual: dict[str, list[ResidualHook]] = {name: [self._hook(name)] for name in names}

    @property
    def on_attention(self) -> bool:
        """True where some attention call is changed."""
        return any(plan.on_attention for _, plan in self.plans)

    def call_edits(self, layer: int, call: Call) -> RowEdits | None:
        """Give what each variant changes in one call, by rows."""
        parts: list[tuple[slice, CallEdits | None]] = []
        for rows, plan in self.plans:
            edits = plan.call_edits(layer, cut_call(call, rows))
            parts.append((rows, edits or None))
        return RowEdits(parts) if any(edits is not None for _, edits in parts) else None

    def _hook(self, name: str) -> ResidualHook:
        def hook(hidden: torch.Tensor) -> torch.Tensor | None:
            pieces, changed = [], False
            for rows, plan in self.plans:
                piece = hidden[rows]
                for each in plan.residual.get(name, ()):
                    new = each(piece)
                    changed |= new is not None
                    piece = piece if new is None else new
                pieces.append(piece)
            return torch.cat(pieces) if changed else None

        return hook


class _Slots:
    """A shelf whose prompts are the rows of one pass, whatever prompts of the whole they are."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf, self.lengths = shelf, shelf.lengths

    def put(self, found: Any, batch: Batch, layer: int | None = None, site: int = 0) -> None:
        """Store by row instead of by prompt."""
        self.shelf.put(found, replace(batch, indices=tuple(range(len(batch.indices)))), layer=layer, site=site)


class Bench:
    """One model at work on the packs of one sweep, batch after batch."""

    def __init__(self, model: Model, tower: Tower, probes: tuple[Probe, ...], starts: Sequence[int]) -> None:
        self.model, self.tower, self.probes = model, tower, probes
        self.starts = sorted(set(starts))
        self.relay = Relay(model.model, tower, model.backend.name)
        self._baseline: Baseline | None = None

    def verify(self, batch: Batch) -> None:
        """Start in the middle of ``batch`` and compare with the full pass, once before a sweep."""
        later = [start for start in self.starts if start > 0]
        if later and self.relay.usable:
            with torch.no_grad(), self.model.evaluating():
                self.relay.verify(self.model.backend, batch.inputs, self.tower, later[len(later) // 2])

    def limit(self, batch: Batch) -> int:
        """How many variants go into one pass over ``batch``."""
        if not self.relay.usable or set(batch.inputs) - STACKABLE or self._inner(batch):
            return 1
        tokens = batch.real.numel()
        most = TOKENS.get(self.model.device.type, TOKENS["cpu"]) // tokens
        if any(probe.logits for probe in self.probes):
            vocabulary = getattr(self.model.config.get_text_config(), "vocab_size", 0) or 1
            most = min(most, LOGITS // (4 * tokens * vocabulary))
        return max(1, most)

    def baseline(self, batch: Batch) -> Baseline:
        """The pass without edits over ``batch``; kept until another batch is asked for."""
        if self._baseline is None or self._baseline.batch.indices != batch.indices:
            self._baseline = None
            shelf = self._shelf(batch, 1)
            with self.relay.recording(self.starts if self.relay.usable else ()) as kept:
                output = self._pass(batch, shelf, None, 0)
            paths = tuple(sorted(output.paths))
            self._baseline = Baseline(batch, output.hidden, dict(kept), shelf.arrays, paths)
        return self._baseline

    def compute(self, batch: Batch, variants: Sequence[Variant]) -> list[Part]:
        """Run variants that share a start on ``batch``, in one pass, and say what each gave."""
        with torch.no_grad(), self.model.evaluating():
            base = self.baseline(batch)
            start = variants[0].start
            if start is None:
                return [Part(dict(base.arrays), [(0, 0, 0)] * len(v.edits), False, base.paths) for v in variants]
            if len(variants) == 1:
                return [self._one(base, variants[0])]
            return self._several(base, variants, start)

    def _one(self, base: Baseline, variant: Variant) -> Part:
        plan = Plan(variant.edits, self.tower, None, base.batch)
        shelf = self._shelf(base.batch, 1, base)
        output = self._enter(base, base.batch, shelf, plan, variant.start or 0)
        return self._part(base, variant, plan, shelf.arrays, output.hidden, output.paths)

    def _several(self, base: Baseline, variants: Sequence[Variant], start: int) -> list[Part]:
        count, rows = len(variants), len(base.batch.indices)
        plans = [Plan(variant.edits, self.tower, None, base.batch) for variant in variants]
        shelf = self._shelf(base.batch, count, base)
        output = self._enter(base, _stacked(base.batch, count), shelf, PackPlan(plans, rows), start)
        parts = []
        for i, (variant, plan) in enumerate(zip(variants, plans, strict=True)):
            at = slice(i * rows, (i + 1) * rows)
            arrays = {name: array[at].copy() for name, array in shelf.arrays.items()}
            parts.append(self._part(base, variant, plan, arrays, output.hidden[at], output.paths))
        return parts

    def _part(
        self, base: Baseline, variant: Variant, plan: Plan, arrays: dict[str, np.ndarray], hidden: torch.Tensor,
        paths: frozenset[str],
    ) -> Part:  # fmt: skip
        tallies = [(t.touched, t.spared, t.fired) for t in plan.tallies]
        part = Part(arrays, tallies, False, tuple(sorted(paths)))
        acted = any(t.touched and not (e.identity or e.selects_nothing) for t, e in zip(
            plan.tallies, variant.edits, strict=True))  # fmt: skip
        part.seen = acted and self._differs(base, variant, hidden)
        return part

    def _differs(self, base: Baseline, variant: Variant, hidden: torch.Tensor) -> bool:
        """Whether the edits changed the final hidden state by more than another path through the kernels would."""
        real = base.batch.real
        gap = float((_real(hidden, real) - _real(base.hidden, real)).abs().max())
        if gap > CLEAR.get(base.hidden.dtype, 1e-3) * base.scale:
            return True
        start = variant.start or 0
        if start not in base.noise:
            plain = self._again(base, variant, neutral=True)
            base.noise[start] = float((plain - _real(base.hidden, real)).abs().max())
        floor = torch.finfo(base.hidden.dtype).eps * base.scale
        if gap > ROUNDING * max(base.noise[start], floor):
            return True
        return not torch.equal(self._again(base, variant, neutral=False), self._again(base, variant, neutral=True))

    def _again(self, base: Baseline, variant: Variant, neutral: bool) -> torch.Tensor:
        plan = Plan(variant.edits, self.tower, None, base.batch, neutral=neutral)
        instruments = Instruments(edits=plan.call_edits if plan.on_attention else None, residual=plan.residual)
        with self._from(base, base.batch, variant.start or 0):
            return _real(self.model.backend.forward(base.batch.inputs, self.tower, instruments).hidden, base.batch.real)

    def _enter(self, base: Baseline, batch: Batch, shelf: Shelf, plan: Plan | PackPlan, start: int) -> Output:
        with self._from(base, batch, start):
            return self._pass(batch, shelf, plan, start if self.relay.usable else 0)

    def _from(self, base: Baseline, batch: Batch, start: int) -> Any:
        if not self.relay.usable:
            return nullcontext()
        stored = base.inputs[start]
        count = len(batch.indices) // len(base.batch.indices)
        return self.relay.entered(start, stored if count == 1 else stored.repeat(count, *[1] * (stored.ndim - 1)))

    def _pass(self, batch: Batch, shelf: Shelf, plan: Plan | PackPlan | None, start: int) -> Output:
        """One pass that reads blocks from ``start`` on."""
        slots: Any = _Slots(shelf)
        instruments, scene = prepare(self.model, self.tower, batch, self.probes, slots, plan)  # type: ignore[arg-type]
        if start > 0:
            first = self.tower.site_names.index(f"{start - 1}.post")
            later = set(self.tower.site_names[first:])
            instruments = replace(
                instruments,
                wants={layer: wants for layer, wants in instruments.wants.items() if layer >= start},
                residual={name: hooks for name, hooks in instruments.residual.items() if name in later},
            )
        asked = {probe.logits for probe in self.probes if probe.logits}
        wanted = "all" if "all" in asked else next(iter(asked), None)
        output = self.model.backend.forward(batch.inputs, self.tower, instruments, wanted)
        check_finite(self.model, self.tower, batch, output)
        store_outputs(self.model, self.probes, output, scene, slots)
        return replace(output, logits=None)

    def _shelf(self, batch: Batch, count: int, base: Baseline | None = None) -> Shelf:
        """A shelf for ``count`` variants; what no pass writes keeps the numbers of the baseline."""
        lengths = [int(n) for n in batch.real.sum(-1)] * count
        shelf = Shelf(self.probes, self.tower, lengths)
        if base is not None:
            shelf.arrays = {
                name: np.tile(array, (count, *[1] * (array.ndim - 1))) for name, array in base.arrays.items()
            }
        return shelf

    def _inner(self, batch: Batch) -> bool:
        return self.tower.name == "vision" and "input_ids" in batch.inputs


def _stacked(batch: Batch, count: int) -> Batch:
    inputs = {name: tensor.repeat(count, *[1] * (tensor.ndim - 1)) for name, tensor in batch.inputs.items()}
    return Batch(inputs, batch.real.repeat(count, 1), batch.roles.repeat(count, 1), batch.indices * count)


def _real(hidden: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    return hidden[real] if hidden.shape[:2] == real.shape else hidden
