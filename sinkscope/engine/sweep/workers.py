"""Packs of a sweep in other processes or on other machines: tasks that carry all they need, and how results come home.

A task is plain data: where the model lies, the batch as arrays, edits and probes as values. A worker loads the model
once and keeps it, and the last batch's shared pass with it. Nothing is written or read as pickle by sinkscope; what an
executor uses between its own processes is its own matter.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError
from concurrent.futures import Future as LocalFuture
from concurrent.futures import wait as wait_local
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sinkscope.engine.sweep.packs import Bench, Part
from sinkscope.engine.sweep.variants import Variant
from sinkscope.errors import ModelError, SinkscopeError, UnsupportedModelError
from sinkscope.probes.base import Probe
from sinkscope.prompts import Batch

if TYPE_CHECKING:
    from sinkscope.models.handle import Model

RETRIES = 3
"""How often a pack is handed out again after its worker was lost."""
POLL = 0.05
"""Seconds between two looks at jobs that cannot be waited for."""
START_UP = 12.0
"""Seconds that a worker process takes to import the libraries, as measured; the model's loading comes on top."""

log = logging.getLogger("sinkscope")


@dataclass(frozen=True)
class Order:
    """What all tasks of a sweep share: the model's place and what is read from it."""

    source: str
    dtype: str
    device: str
    fingerprint: str
    tower: str
    probes: tuple[Probe, ...]
    starts: tuple[int, ...]
    why_not: str
    threads: int


@dataclass(frozen=True)
class Task:
    """One pack: some variants on one batch, as plain data."""

    order: Order
    inputs: dict[str, np.ndarray]
    real: np.ndarray
    roles: np.ndarray
    indices: tuple[int, ...]
    variants: tuple[Variant, ...]

    @classmethod
    def of(cls, order: Order, batch: Batch, variants: Sequence[Variant]) -> Task:
        """Take a batch apart into arrays."""
        inputs = {name: tensor.detach().cpu().numpy() for name, tensor in batch.inputs.items()}
        return cls(order, inputs, batch.real.cpu().numpy(), batch.roles.cpu().numpy(), batch.indices, tuple(variants))

    def batch(self) -> Batch:
        """Put the batch together again."""
        device = torch.device(self.order.device)
        inputs = {name: torch.from_numpy(np.array(array)).to(device) for name, array in self.inputs.items()}
        real, roles = (torch.from_numpy(np.array(array)).to(device) for array in (self.real, self.roles))
        return Batch(inputs, real, roles, tuple(self.indices))


_benches: dict[Order, Bench] = {}


def work(task: Task) -> list[Part]:
    """Compute one pack; what a worker process runs.

    Raises:
        ModelError: the model found at the source is not the one the sweep was asked for.
    """
    order = task.order
    if order not in _benches:
        _benches.clear()
        torch.set_num_threads(order.threads)
        _benches[order] = _bench(order)
    return _benches[order].compute(task.batch(), task.variants)


def _bench(order: Order) -> Bench:
    from sinkscope.models.handle import load_model

    model = load_model(order.source, dtype=order.dtype, device=order.device)
    if order.fingerprint and model.fingerprint != order.fingerprint:
        raise ModelError(
            f"sweep: the model at {order.source} is not the one in memory (other weights or configuration). "
            "Save what you changed to a folder and load it from there, or pass executor='serial'."
        )
    bench = Bench(model, model.backend.towers[order.tower], order.probes, order.starts)
    bench.relay.why_not = order.why_not
    return bench


def place_model(model: Model, folder: Path) -> tuple[str, bool]:
    """Where workers can load ``model`` from, and whether its fingerprint is to be checked there.

    A model that came from the zoo or a local folder is loaded from where it lies; any other is saved to ``folder``
    as safetensors first.

    Raises:
        UnsupportedModelError: the model is driven by another backend than transformers.
    """
    if model.backend.name != "transformers":
        raise UnsupportedModelError(
            f"sweep(executor=...): {model.id} is driven by {model.backend.name}; workers load models by transformers. "
            "Pass executor='serial'."
        )
    if model.id.startswith("zoo:"):
        return model.id, True
    came_from = str(getattr(model.model, "name_or_path", "") or "")
    if came_from and (Path(came_from) / "config.json").is_file():
        return str(Path(came_from).resolve()), True
    place = folder / "model"
    model.model.save_pretrained(place, safe_serialization=True)
    return str(place), False


def spread(executor: Any, tasks: Sequence[Task], bench: Bench) -> Iterator[tuple[int, list[Part]]]:
    """Run ``tasks`` on ``executor`` and give each one's place and parts as they come in.

    ``executor`` has ``submit(function, argument)`` and gives futures with ``done()`` and ``result()``:
    ``concurrent.futures``, ``dask.distributed.Client.get_executor()``, ``submitit.AutoExecutor``. A task whose worker
    was lost is handed out again; if the executor itself is broken, the rest is computed here.
    """
    waiting = {i: executor.submit(work, task) for i, task in enumerate(tasks)}
    lost = dict.fromkeys(waiting, 0)
    try:
        while waiting:
            _wait(list(waiting.values()))
            for i in [i for i, future in waiting.items() if future.done()]:
                future = waiting.pop(i)
                try:
                    parts = future.result()
                except SinkscopeError:
                    raise
                except BrokenExecutor as error:
                    log.warning("sweep: the executor broke down (%s); the rest is computed in this process.", error)
                    rest = [i, *waiting]
                    waiting.clear()
                    yield from ((j, bench.compute(tasks[j].batch(), tasks[j].variants)) for j in sorted(rest))
                    return
                except Exception as error:
                    if not _is_loss(error) or lost[i] >= RETRIES:
                        raise
                    lost[i] += 1
                    log.warning("sweep: a worker was lost (%s); its pack is handed out again.", error)
                    waiting[i] = executor.submit(work, tasks[i])
                    continue
                yield i, parts
    finally:
        for future in waiting.values():
            cancel = getattr(future, "cancel", None)
            if cancel is not None:
                cancel()


def _is_loss(error: Exception) -> bool:
    """Whether an error says that a worker died, not that the work was wrong."""
    names = {cls.__name__ for cls in type(error).__mro__}
    lost = {"KilledWorker", "CommClosedError", "UncompletedJobError", "FutureCancelledError"}
    return bool(names & lost) or isinstance(error, CancelledError | ConnectionError)


def _wait(futures: Sequence[Any]) -> None:
    if all(isinstance(future, LocalFuture) for future in futures):
        wait_local(futures, return_when="FIRST_COMPLETED")
        return
    while not any(future.done() for future in futures):
        time.sleep(POLL)


def idle_workers() -> int:
    """How many worker processes this machine has idle cores for, each with as many threads as this process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    others = max(0.0, os.getloadavg()[0] - 1.0) if hasattr(os, "getloadavg") else 0.0  # the one is this process
    return max(1, int(cores - others) // max(1, torch.get_num_threads()))


def pays(left: float, loading: float, workers: int) -> bool:
    """Whether processes would be done sooner: ``left`` seconds of work, ``loading`` seconds per worker to begin."""
    return workers > 1 and left > left / workers + START_UP + loading


def processes(workers: int) -> Any:
    """An executor of worker processes on this machine; scripts need no ``if __name__ == "__main__"`` for it."""
    from joblib.externals.loky import ProcessPoolExecutor

    return ProcessPoolExecutor(max_workers=workers, env={"OMP_NUM_THREADS": str(torch.get_num_threads())})
