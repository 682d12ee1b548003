"""A sweep as it was asked for: variants, batches, and the packs they are computed in; and the verdict on its edits."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sinkscope.engine.effect import EffectGuard
from sinkscope.engine.reading import MAP_LIMIT, Shelf
from sinkscope.engine.run import batches
from sinkscope.engine.sweep.packs import Bench, Part
from sinkscope.engine.sweep.variants import Variant
from sinkscope.errors import EditHasNoEffect, ProbeError
from sinkscope.models.backends.base import Tower
from sinkscope.probes.base import Probe
from sinkscope.prompts import Batch, Prompts

if TYPE_CHECKING:
    from sinkscope.models.handle import Model

log = logging.getLogger("sinkscope")

Pack = tuple[int, tuple[int, ...]]
"""Place of a batch, and the places of the variants that run on it together."""


@dataclass
class Job:
    """A sweep as it was asked for, taken apart into packs: variants with one start on one batch."""

    model: Model
    tower: Tower
    prompts: Prompts
    probes: tuple[Probe, ...]
    variants: list[Variant]
    batch_size: int
    bench: Bench = field(init=False)
    batches: list[Batch] = field(init=False)
    guards: list[EffectGuard] = field(init=False)
    packs: list[tuple[int, tuple[int, ...]]] = field(init=False)

    def __post_init__(self) -> None:
        starts = [variant.start for variant in self.variants if variant.start is not None]
        self.guards = [self._guard(variant) for variant in self.variants]
        self.bench = Bench(self.model, self.tower, self.probes, starts)
        self.batches = list(batches(self.prompts, self.batch_size, self.model.device))
        self.bench.verify(self.batches[0])
        self.packs = [(b, group) for b, batch in enumerate(self.batches) for group in self._groups(batch)]

    def _guard(self, variant: Variant) -> EffectGuard:
        return EffectGuard(self.model, self.tower, self.prompts, variant.edits)

    def _groups(self, batch: Batch) -> Iterator[tuple[int, ...]]:
        by_start: dict[int | None, list[int]] = {}
        for index, variant in enumerate(self.variants):
            by_start.setdefault(variant.start, []).append(index)
        most = self.bench.limit(batch)
        for start in sorted(by_start, key=lambda s: -1 if s is None else s):
            same = by_start[start]
            for first in range(0, len(same), most):
                yield tuple(same[first : first + most])

    def announce(self) -> None:
        """Say how much memory the sweep will hold, before it starts, and refuse maps that are too many.

        Raises:
            ProbeError: the maps of all variants together are too large.
        """
        maps = Shelf(self.probes, self.tower, self.prompts.lengths).map_bytes() * len(self.variants)
        if maps > MAP_LIMIT:
            raise ProbeError(
                f"AttentionMap: the maps of {len(self.variants)} variants would take {maps / 2**30:.1f} GiB, the limit "
                f"is {MAP_LIMIT / 2**30:.0f} GiB. Name fewer layers, heads, tokens or variants."
            )
        tokens = max(batch.real.numel() for batch in self.batches)
        size = self.model.dtype.itemsize * self.tower.d_model * tokens
        stored = len(self.bench.starts) * size if self.bench.relay.usable else 0
        packed = max(len(group) for _, group in self.packs)
        log.info(
            "sweep: %d variants on %d prompts in %d passes; %.1f MiB for the inputs of %d blocks, at most %d variants "
            "(%.1f MiB of residual stream) in one pass.",
            len(self.variants), len(self.prompts), len(self.packs), stored / 2**20, len(self.bench.starts), packed,
            packed * size / 2**20,
        )  # fmt: skip


def judge(job: Job, parts: Mapping[tuple[int, int], Part]) -> None:
    """Let each variant's guard judge what its edits did in all batches.

    Raises:
        EditHasNoEffect: a variant changed nothing; the message names it.
    """
    for index, (variant, guard) in enumerate(zip(job.variants, job.guards, strict=True)):
        for b in range(len(job.batches)):
            part = parts[b, index]
            guard.seen = guard.seen or part.seen
            for tally, (touched, spared, fired) in zip(guard.tallies, part.tallies, strict=True):
                tally.touched, tally.spared, tally.fired = (
                    tally.touched + touched, tally.spared + spared, tally.fired + fired,
                )  # fmt: skip
        try:
            guard.verdict()
        except EditHasNoEffect as error:
            raise EditHasNoEffect(f"sweep: variant {variant.label!r}: {error}") from None
