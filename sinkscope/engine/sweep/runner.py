"""Computing variants of a sweep on one batch of prompts: the plain pass once, then the variants from their own block.

Variants that start at the same block run side by side in one pass, as more rows of the batch. Which variants share a
pass follows from the sweep alone, never from what is already done, so a resumed sweep gives the same numbers bit for
bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sinkscope.engine.effect import CLEAR
from sinkscope.engine.plan import Plan
from sinkscope.engine.reading import ReadingBuilder
from sinkscope.engine.results import Result
from sinkscope.engine.run import check_finite, prepare, store_outputs
from sinkscope.engine.sweep.restart import Extras, check_restart, find_blocks, recording, restarted
from sinkscope.engine.sweep.stacking import RowBuilder, StackedPlan, stack
from sinkscope.engine.sweep.variants import Variant
from sinkscope.models.backends.base import Instruments, Output, Tower
from sinkscope.probes.base import Probe
from sinkscope.prompts import Batch

if TYPE_CHECKING:
    from sinkscope.models.handle import Model

TOKENS = {"cpu": 4096, "cuda": 32768}
"""Most tokens of one pass with several variants."""
LOGITS = 1 << 28
"""Bytes of output logits that one pass with several variants may make."""
ROUNDING = 20.0
"""An effect this many times the difference that the same path makes without the edit is no rounding."""

STACKABLE = frozenset({
    "input_ids", "attention_mask", "token_type_ids", "pixel_values", "decoder_input_ids", "decoder_attention_mask",
    "input_features", "input_values",
})  # fmt: skip
"""Model inputs whose first axis is the batch, so that variants can be stacked along it."""


@dataclass
class _PlainPass:
    """The pass without edits: what variants are compared with, start from, and take over below their first block."""

    batch: Batch
    hidden: torch.Tensor
    inputs: dict[int, torch.Tensor]
    extras: Extras
    arrays: dict[str, np.ndarray]
    paths: tuple[str, ...]
    noise: dict[int, float] = field(default_factory=dict)

    @property
    def scale(self) -> float:
        """Largest final activation at a real token."""
        return float(_real(self.hidden, self.batch.queries.real).abs().max())


class Runner:
    """One model that runs the variants of a sweep, batch after batch.

    ``why_not`` is empty where passes can start at the first edited block; otherwise full passes are run, and it says
    why.
    """

    def __init__(self, model: Model, tower: Tower, probes: tuple[Probe, ...], starts: Sequence[int]) -> None:
        self.model, self.tower, self.probes = model, tower, probes
        self.starts = sorted(set(starts))
        self.blocks, self.why_not = find_blocks(model.model, tower, model.backend.name)
        self._plain: _PlainPass | None = None

    def verify(self, batch: Batch) -> None:
        """Start in the middle of ``batch`` and compare with the full pass, once before a sweep."""
        later = [start for start in self.starts if start > 0]
        if later and not self.why_not:
            with torch.no_grad(), self.model.evaluating():
                start = later[len(later) // 2]
                self.why_not = check_restart(self.model.backend, batch.inputs, self.tower, self.blocks, start)

    def limit(self, batch: Batch) -> int:
        """Return how many variants go into one pass over ``batch``."""
        if self.why_not or set(batch.inputs) - STACKABLE or self._inner(batch):
            return 1
        tokens = batch.real.numel()
        most = TOKENS.get(self.model.device.type, TOKENS["cpu"]) // tokens
        if any(probe.logits for probe in self.probes):
            vocabulary = getattr(self.model.config.get_text_config(), "vocab_size", 0) or 1
            most = min(most, LOGITS // (4 * tokens * vocabulary))
        return max(1, most)

    def plain_pass(self, batch: Batch) -> _PlainPass:
        """The pass without edits over ``batch``; kept until another batch is asked for."""
        if self._plain is None or not _same(self._plain.batch, batch):
            self._plain = None
            builder = self._builder(batch, 1)
            with recording(self.blocks, () if self.why_not else self.starts) as (inputs, extras):
                output = self._pass(batch, builder, None, 0)
            paths = tuple(sorted(output.paths))
            self._plain = _PlainPass(batch, output.hidden, inputs, extras, builder.arrays, paths)
        return self._plain

    def compute(self, batch: Batch, variants: Sequence[Variant]) -> list[Result]:
        """Run variants that share a start on ``batch``, in one pass, and say what each gave."""
        with torch.no_grad(), self.model.evaluating():
            base = self.plain_pass(batch)
            start = variants[0].start
            if start is None:
                return [Result(dict(base.arrays), [(0, 0, 0)] * len(v.edits), False, base.paths) for v in variants]
            if len(variants) == 1:
                return [self._one(base, variants[0])]
            return self._several(base, variants, start)

    def _one(self, base: _PlainPass, variant: Variant) -> Result:
        plan = Plan(variant.edits, self.tower, None, base.batch)
        builder = self._builder(base.batch, 1, base)
        output = self._enter(base, base.batch, builder, plan, variant.start or 0)
        return self._result(base, variant, plan, builder.arrays, output.hidden, output.paths)

    def _several(self, base: _PlainPass, variants: Sequence[Variant], start: int) -> list[Result]:
        count, rows = len(variants), len(base.batch.indices)
        plans = [Plan(variant.edits, self.tower, None, base.batch) for variant in variants]
        builder = self._builder(base.batch, count, base)
        output = self._enter(base, stack(base.batch, count), builder, StackedPlan(plans, rows), start)
        results = []
        for i, (variant, plan) in enumerate(zip(variants, plans, strict=True)):
            at = slice(i * rows, (i + 1) * rows)
            arrays = {name: array[at].copy() for name, array in builder.arrays.items()}
            results.append(self._result(base, variant, plan, arrays, output.hidden[at], output.paths))
        return results

    def _result(
        self, base: _PlainPass, variant: Variant, plan: Plan, arrays: dict[str, np.ndarray], hidden: torch.Tensor,
        paths: frozenset[str],
    ) -> Result:  # fmt: skip
        tallies = [tally.counts for tally in plan.tallies]
        result = Result(arrays, tallies, False, tuple(sorted(paths)))
        acted = any(t.touched and not (e.identity or e.selects_nothing) for t, e in zip(
            plan.tallies, variant.edits, strict=True))  # fmt: skip
        result.effect = acted and self._differs(base, variant, hidden)
        return result

    def _differs(self, base: _PlainPass, variant: Variant, hidden: torch.Tensor) -> bool:
        """Whether the edits changed the final hidden state by more than another path through the kernels would."""
        real = base.batch.queries.real
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

    def _again(self, base: _PlainPass, variant: Variant, neutral: bool) -> torch.Tensor:
        plan = Plan(variant.edits, self.tower, None, base.batch, neutral=neutral)
        instruments = Instruments(edits=plan.call_edits if plan.on_attention else None, residual=plan.residual)
        with self._from(base, base.batch, variant.start or 0):
            found = self.model.backend.forward(base.batch.inputs, self.tower, instruments).hidden
            return _real(found, base.batch.queries.real)

    def _enter(
        self, base: _PlainPass, batch: Batch, builder: ReadingBuilder, plan: Plan | StackedPlan, start: int
    ) -> Output:
        with self._from(base, batch, start):
            return self._pass(batch, builder, plan, 0 if self.why_not else start)

    def _from(self, base: _PlainPass, batch: Batch, start: int) -> Any:
        if self.why_not:
            return nullcontext()
        stored = base.inputs[start]
        count = len(batch.indices) // len(base.batch.indices)
        hidden = stored if count == 1 else stored.repeat(count, *[1] * (stored.ndim - 1))
        return restarted(self.blocks, start, hidden, base.extras)

    def _pass(self, batch: Batch, builder: ReadingBuilder, plan: Plan | StackedPlan | None, start: int) -> Output:
        """One pass that reads blocks from ``start`` on."""
        slots: Any = RowBuilder(builder)
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

    def _builder(self, batch: Batch, count: int, base: _PlainPass | None = None) -> ReadingBuilder:
        """A builder for ``count`` variants; what no pass writes keeps the numbers of the baseline."""
        own, theirs = (
            [int(n) for n in tokens.real.sum(-1)] * count
            for tokens in (batch, batch.outputs if any(p.logits for p in self.probes) else batch.queries)
        )
        builder = ReadingBuilder(self.probes, self.tower, own, theirs)
        if base is not None:
            builder.arrays = {
                name: np.tile(array, (count, *[1] * (array.ndim - 1))) for name, array in base.arrays.items()
            }
        return builder

    def _inner(self, batch: Batch) -> bool:
        return self.tower.name == "vision" and "input_ids" in batch.inputs


def _same(one: Batch, other: Batch) -> bool:
    """Whether two batches are the same tokens of the same prompts; a worker goes from sweep to sweep."""
    if one.indices != other.indices or set(one.inputs) != set(other.inputs):
        return False
    return torch.equal(one.roles, other.roles) and all(
        torch.equal(tensor, other.inputs[name]) for name, tensor in one.inputs.items()
    )


def _real(hidden: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    return hidden[real] if hidden.shape[:2] == real.shape else hidden
