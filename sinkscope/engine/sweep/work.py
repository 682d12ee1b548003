"""Getting the packs of a sweep done: found in the cache, computed here, or by worker processes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from sinkscope.engine.sweep import workers
from sinkscope.engine.sweep.job import Job, Pack
from sinkscope.engine.sweep.packs import Part
from sinkscope.engine.sweep.store import Store, context_key, part_key
from sinkscope.errors import EditError


class Work:
    """The packs of a job on their way: found in the cache, computed here, or by an executor."""

    def __init__(self, job: Job, store: Store | None) -> None:
        self.job, self.store = job, store
        self.parts: dict[tuple[int, int], Part] = {}
        self.how = "serial"
        self.context = ""
        if store is not None:
            self.context = context_key(job.model, job.tower.name, job.prompts.digest, job.probes)

    def run(self, executor: Any) -> None:
        """Compute what the cache does not hold."""
        todo = [pack for pack in self.job.packs if not self._found(pack)]
        if isinstance(executor, str) and executor not in ("serial", "processes"):
            raise EditError(f"sweep(executor={executor!r}): use 'serial', 'processes', or an executor with submit().")
        with tqdm(
            total=len(self.job.packs), initial=len(self.job.packs) - len(todo), desc="sweep", leave=False,
            disable=True if len(self.job.packs) < 2 else None,
        ) as bar:  # fmt: skip
            if executor is None:
                self._measured(todo, bar)
            elif executor == "serial":
                self._serial(todo, bar)
            elif executor == "processes":
                self._processes(todo, bar, max(2, workers.idle_workers()))
            else:
                self._spread(executor, todo, bar, type(executor).__name__)

    def _measured(self, todo: list[Pack], bar: tqdm) -> None:
        """Compute here, and go on in processes as soon as that pays."""
        count = workers.idle_workers()
        begun = time.perf_counter()
        tried = 3
        self._serial(todo[:tried], bar)
        left = (time.perf_counter() - begun) / tried * (len(todo) - tried)
        if len(todo) > tried and self._movable() and workers.pays(left, self._loading(), count):
            self._processes(todo[tried:], bar, count)
        else:
            self._serial(todo[tried:], bar)

    def _movable(self) -> bool:
        return self.job.model.device.type == "cpu" and self.job.model.backend.name == "transformers"

    def _loading(self) -> float:
        """Seconds to load the model once more, at half a gigabyte per second."""
        return sum(p.numel() * p.element_size() for p in self.job.model.model.parameters()) / 2**29

    def _serial(self, todo: list[Pack], bar: tqdm) -> None:
        for b, group in todo:
            parts = self.job.bench.compute(self.job.batches[b], [self.job.variants[i] for i in group])
            self._take(b, group, parts)
            bar.update()

    def _processes(self, todo: list[Pack], bar: tqdm, count: int) -> None:
        with workers.processes(count) as pool:
            self._spread(pool, todo, bar, f"{count} processes")

    def _spread(self, executor: Any, todo: list[Pack], bar: tqdm, name: str) -> None:
        self.how = name
        with tempfile.TemporaryDirectory(prefix="sinkscope-", dir=self._shared()) as folder:
            order = self._order(Path(folder))
            tasks = [
                workers.Task.of(order, self.job.batches[b], [self.job.variants[i] for i in group]) for b, group in todo
            ]
            for place, parts in workers.spread(executor, tasks, self.job.bench):
                self._take(*todo[place], parts)
                bar.update()

    def _shared(self) -> Path | None:
        """Workers on other machines see the cache folder if they see anything of this one."""
        return None if self.store is None else self.store.folder

    def _order(self, folder: Path) -> workers.Order:
        model = self.job.model
        source, check = workers.place_model(model, folder)
        return workers.Order(
            source, str(model.dtype).removeprefix("torch."), str(model.device), model.fingerprint if check else "",
            self.job.tower.name, self.job.probes, tuple(self.job.bench.starts), self.job.bench.relay.why_not,
            torch.get_num_threads(),
        )  # fmt: skip

    def _found(self, pack: Pack) -> bool:
        """Whether the cache holds the whole pack; it is computed whole or not at all, so that numbers do not depend."""
        if self.store is None:
            return False
        b, group = pack
        found = {(b, i): self.store.load(self._key(b, i)) for i in group}
        self.parts |= {at: part for at, part in found.items() if part is not None}
        return all(part is not None for part in found.values())

    def _key(self, b: int, index: int) -> str:
        return part_key(self.context, self.job.variants[index], self.job.batches[b].indices)

    def _take(self, b: int, group: tuple[int, ...], parts: Sequence[Part]) -> None:
        for index, part in zip(group, parts, strict=True):
            if (b, index) in self.parts:
                continue
            self.parts[b, index] = part
            if self.store is not None:
                self.store.save(self._key(b, index), part)
