"""A sweep as it was asked for, taken apart into passes, and the results that are there."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from sinkscope.engine import results as cache
from sinkscope.engine.effect import EffectGuard
from sinkscope.engine.reading import ReadingBuilder
from sinkscope.engine.results import Result
from sinkscope.engine.run import batches, query_lengths
from sinkscope.engine.sweep import executors
from sinkscope.engine.sweep.runner import Runner
from sinkscope.engine.sweep.variants import Variant
from sinkscope.errors import EditError
from sinkscope.models.backends.base import Tower
from sinkscope.probes.base import Probe
from sinkscope.prompts import Batch, Prompts

if TYPE_CHECKING:
    from sinkscope.models.handle import Model

log = logging.getLogger("sinkscope")


@dataclass
class Sweep:
    """A sweep as it was asked for, the passes it takes, and the results that are there.

    Attributes:
        guards: one per variant, to judge at the end whether its edits changed anything.
        batches: the prompts, batch by batch.
        passes: place of a batch, and places of the variants that run on it together: those with one start.
        results: by place of the batch and of the variant.
        executor: where it was computed, in words.
        cache_off: why nothing is cached though a folder was named; else empty.
    """

    model: Model
    tower: Tower
    prompts: Prompts
    probes: tuple[Probe, ...]
    variants: list[Variant]
    batch_size: int
    runner: Runner = field(init=False)
    guards: list[EffectGuard] = field(init=False)
    batches: list[Batch] = field(init=False)
    passes: list[tuple[int, tuple[int, ...]]] = field(init=False)
    results: dict[tuple[int, int], Result] = field(init=False, default_factory=dict)
    executor: str = field(init=False, default="serial")
    cache_off: str = field(init=False, default="")

    def __post_init__(self) -> None:
        starts = [variant.start for variant in self.variants if variant.start is not None]
        self.guards = [self._guard(variant) for variant in self.variants]
        self.runner = Runner(self.model, self.tower, self.probes, starts)
        self.batches = list(batches(self.prompts, self.batch_size, self.model.device))
        self.runner.verify(self.batches[0])
        self.passes = [(b, group) for b, batch in enumerate(self.batches) for group in self._groups(batch)]

    def _guard(self, variant: Variant) -> EffectGuard:
        try:
            return EffectGuard(self.model, self.tower, self.prompts, variant.edits)
        except EditError as error:
            raise type(error)(f"sweep: variant {variant.label!r}: {error}") from None

    def _groups(self, batch: Batch) -> Iterator[tuple[int, ...]]:
        by_start: dict[int | None, list[int]] = {}
        for index, variant in enumerate(self.variants):
            by_start.setdefault(variant.start, []).append(index)
        most = self.runner.limit(batch)
        for start in sorted(by_start, key=lambda s: -1 if s is None else s):
            same = by_start[start]
            for first in range(0, len(same), most):
                yield tuple(same[first : first + most])

    def announce(self) -> None:
        """Say how much memory the sweep will hold, before it starts, and refuse maps that are too many.

        Raises:
            ProbeError: the maps of all variants together are too large.
        """
        self.builder().refuse_large_maps(variants=len(self.variants))
        tokens = max(batch.real.numel() for batch in self.batches)
        size = self.model.dtype.itemsize * self.tower.d_model * tokens
        starts = self.runner.starts
        stored = 0 if self.runner.why_not else len(starts) * size
        together = max(len(group) for _, group in self.passes)
        log.info(
            "sweep: %d variants on %d prompts in %d passes; %.1f MiB for the inputs of %d blocks, at most %d variants "
            "(%.1f MiB of residual stream) in one pass.",
            len(self.variants), len(self.prompts), len(self.passes), stored / 2**20, len(starts), together,
            together * size / 2**20,
        )  # fmt: skip

    def builder(self) -> ReadingBuilder:
        """Return an empty builder for one reading of all prompts."""
        queries = query_lengths(self.prompts, self.tower, self.probes)
        return ReadingBuilder(self.probes, self.tower, self.prompts.lengths, queries)

    def compute(self, executor: Any, folder: Path | None) -> None:
        """Fill ``results``: those that ``folder`` holds are read, the others computed, and written to it.

        Raises:
            OutputError: a result cannot be written; what was computed is kept in memory for the next call.
        """
        self.cache_off = "" if folder is None else cache.why_off(self.model)
        if self.cache_off:
            warnings.warn(f"sweep(cache=...): nothing is cached. {self.cache_off}.", stacklevel=3)
            folder = None
        keys = {} if folder is None else self._keys()
        if folder is not None:
            found = {at: cache.load(folder, key) or cache.unwritten.get(key) for at, key in keys.items()}
            self.results = {at: result for at, result in found.items() if result is not None}
            self._write(folder, keys, [at for at, key in keys.items() if key in cache.unwritten])
        # A pass is computed whole or not at all, so that its numbers do not depend on what was there before.
        todo = [(b, group) for b, group in self.passes if any((b, i) not in self.results for i in group)]
        work = [(self.batches[b], [self.variants[i] for i in group]) for b, group in todo]
        self.executor, computed = executors.spread(self.runner, work, executor, folder)
        with tqdm(
            total=len(self.passes), initial=len(self.passes) - len(todo), desc="sweep", leave=False,
            disable=True if len(self.passes) < 2 else None,
        ) as bar:  # fmt: skip
            for place, results in computed:
                b, group = todo[place]
                fresh = {(b, i): result for i, result in zip(group, results, strict=True) if (b, i) not in self.results}
                self.results |= fresh
                if folder is not None:
                    self._write(folder, keys, list(fresh))
                bar.update()
        for key in keys.values():
            cache.unwritten.pop(key, None)

    def _write(self, folder: Path, keys: dict[tuple[int, int], str], places: Sequence[tuple[int, int]]) -> None:
        try:
            for at in places:
                cache.save(folder, keys[at], self.results[at])
        except OSError as error:
            known = {keys[at]: result for at, result in self.results.items()}
            raise cache.keep_unwritten("sweep", folder, known, len(keys), error) from None

    def _keys(self) -> dict[tuple[int, int], str]:
        context = cache.context_key(self.model, self.tower.name, self.prompts.digest, self.probes)
        return {
            (b, i): cache.result_key(context, self.variants[i].json, self.batches[b].indices)
            for b, group in self.passes
            for i in group
        }
