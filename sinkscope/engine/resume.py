"""Finished batches of a run in a folder, so that a run that was killed goes on where it was."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sinkscope.engine import results
from sinkscope.engine.reading import ReadingBuilder
from sinkscope.engine.results import Result
from sinkscope.models.backends.base import Tower
from sinkscope.probes.base import Probe
from sinkscope.prompts import Batch, Prompts

if TYPE_CHECKING:
    import os

    from sinkscope.engine.effect import EffectGuard
    from sinkscope.engine.plan import Plan
    from sinkscope.models.handle import Model


class FinishedBatches:
    """What a run found on each batch, on disk under the hash of all that it depends on.

    ``off`` says why nothing is kept though a folder was named; else it is empty.

    Raises:
        OutputError: the folder cannot be made or written.
    """

    def __init__(self, folder: str | os.PathLike[str], model: Model, tower: Tower, builder: ReadingBuilder) -> None:
        self.folder, self.model, self.tower, self.builder = results.prepare(folder, "run"), model, tower, builder
        self.off = results.why_off(model)
        self.paths: set[str] = set()
        self._keys: dict[tuple[int, ...], str] = {}
        if self.off:
            warnings.warn(f"run(cache=...): nothing is cached. {self.off}.", stacklevel=3)

    def name(self, prompts: Prompts, probes: Sequence[Probe], edits: str, batch_size: int) -> None:
        """Say what is run: prompts, probes, the edits as JSON, and how many prompts a batch has."""
        if self.off:
            return
        context = results.context_key(self.model, self.tower.name, prompts.digest, probes)
        # A sweep's pass over the same batch starts elsewhere and may round otherwise: its results have other names.
        self._keys = {
            tuple(span): results.result_key(context, f"run {edits}", span) for span in prompts.spans(batch_size)
        }

    def restore(self, batch: Batch, guard: EffectGuard | None) -> bool:
        """Take what an earlier run found on this batch, and say whether there is any."""
        at = tuple(batch.indices)
        if at not in self._keys:
            return False
        key = self._keys[at]
        result = results.load(self.folder, key) or results.unwritten.get(key)
        if result is None:
            return False
        self.builder.restore(result.arrays, at)
        self.paths |= set(result.paths)
        if guard is not None:
            guard.take(result)
        if key in results.unwritten:
            self._write(key, result)
        return True

    def keep(self, batch: Batch, plan: Plan | None, guard: EffectGuard | None, paths: frozenset[str]) -> None:
        """Write what was just found on this batch.

        Raises:
            OutputError: it cannot be written; it is kept in memory for the next call.
        """
        at = tuple(batch.indices)
        if at not in self._keys:
            return
        tallies = [] if plan is None else [tally.counts for tally in plan.tallies]
        effect = guard is not None and guard.seen
        self._write(self._keys[at], Result(self.builder.rows(at), tallies, effect, tuple(sorted(paths))))

    def _write(self, key: str, result: Result) -> None:
        try:
            results.save(self.folder, key, result)
        except OSError as error:
            raise results.keep_unwritten("run", self.folder, {key: result}, len(self._keys), error) from None
        results.unwritten.pop(key, None)
