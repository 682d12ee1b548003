"""Where the passes of a sweep run: in this process, in worker processes, or on an executor of the user's.

What is sent to a worker is plain data: where the model lies, the batch as arrays, edits and probes as values. A worker
loads the model once and keeps it, and the last batch's plain pass with it. Nothing is written or read as pickle by
sinkscope; what an executor uses between its own processes is its own matter.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError
from concurrent.futures import Future as LocalFuture
from concurrent.futures import wait as wait_local
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sinkscope.engine.results import Result
from sinkscope.engine.sweep.runner import Runner
from sinkscope.engine.sweep.variants import Variant
from sinkscope.errors import EditError, ModelError, SinkscopeError, UnsupportedModelError
from sinkscope.models.fingerprint import behaviour, fingerprint, foreign_hooks
from sinkscope.prompts import Batch

if TYPE_CHECKING:
    from sinkscope.models.handle import Model

RETRIES = 3
"""How often a pass is handed out again after its worker was lost."""
POLL = 0.05
"""Seconds between two looks at futures that cannot be waited for."""

log = logging.getLogger("sinkscope")

Pass = tuple[Batch, Sequence[Variant]]
"""A batch, and the variants that run on it together."""
Setup = tuple[tuple[str, Any], ...]
"""Arguments of ``_load_runner`` by name: what all passes of a sweep have in common, as plain data."""


def check_name(executor: Any) -> None:
    """Refuse an executor that is neither a known name nor has ``submit``.

    Raises:
        EditError: says what can be given.
    """
    known = executor is None or executor in ("serial", "processes") if isinstance(executor, str | None) else False
    if not known and not hasattr(executor, "submit"):
        raise EditError(f"sweep(executor={executor!r}): use 'serial', 'processes', or an executor with submit().")


def spread(
    runner: Runner, work: Sequence[Pass], executor: Any, folder: Path | None
) -> tuple[str, Iterator[tuple[int, list[Result]]]]:
    """Return in words where ``work`` is done, and an iterator of place and results of each pass as they come in.

    Args:
        runner: the sweep's runner in this process.
        work: the passes.
        executor: as in :func:`sinkscope.sweep`. A pass whose worker was lost is handed out again; if the executor
            itself is broken, the rest is computed here.
        folder: of the cache. Workers on other machines see it if they see anything of this one, so a model that lies in
            no folder is saved there for them.
    """
    if executor is None or executor == "serial" or not work:
        return "serial", ((i, runner.compute(batch, variants)) for i, (batch, variants) in enumerate(work))
    if executor == "processes":
        import loky

        count = max(2, loky.cpu_count() // torch.get_num_threads())
        return f"{count} processes", _in_processes(runner, work, count, folder)
    return type(executor).__name__, _submitted(runner, work, executor, folder)


def _in_processes(
    runner: Runner, work: Sequence[Pass], count: int, folder: Path | None
) -> Iterator[tuple[int, list[Result]]]:
    """Submit to worker processes of this machine; scripts need no ``if __name__ == "__main__"`` for these."""
    from loky.process_executor import ProcessPoolExecutor

    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    with ProcessPoolExecutor(max_workers=count, env=threads) as pool:
        yield from _submitted(runner, work, pool, folder)


def _submitted(
    runner: Runner, work: Sequence[Pass], executor: Any, folder: Path | None
) -> Iterator[tuple[int, list[Result]]]:
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sinkscope-", dir=folder)))
        setup = _setup(runner, place)

        def submit(i: int) -> Any:
            batch, variants = work[i]
            return executor.submit(compute, setup, _to_arrays(batch), tuple(variants))

        waiting = {i: submit(i) for i in range(len(work))}
        stack.callback(_cancel, waiting)
        lost = dict.fromkeys(waiting, 0)
        while waiting:
            _wait(list(waiting.values()))
            for i in [i for i, future in waiting.items() if future.done()]:
                future = waiting.pop(i)
                try:
                    results = future.result()
                except SinkscopeError:
                    raise
                except BrokenExecutor as error:
                    log.warning("sweep: the executor broke down (%s); the rest is computed in this process.", error)
                    rest = sorted([i, *waiting])
                    waiting.clear()
                    yield from ((j, runner.compute(*work[j])) for j in rest)
                    return
                except Exception as error:
                    if not _is_loss(error) or lost[i] >= RETRIES:
                        raise
                    lost[i] += 1
                    log.warning("sweep: a worker was lost (%s); its pass is handed out again.", error)
                    waiting[i] = submit(i)
                    continue
                yield i, results


def _cancel(waiting: dict[int, Any]) -> None:
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


_runners: dict[Setup, Runner] = {}
"""The runner of the sweep that this worker last worked for."""


def compute(setup: Setup, arrays: dict[str, Any], variants: Sequence[Variant]) -> list[Result]:
    """Compute one pass; what a worker runs.

    Raises:
        ModelError: the model found at the source is not the one the sweep was asked for.
    """
    if setup not in _runners:
        _runners.clear()
        _runners[setup] = _load_runner(**dict(setup))
    runner = _runners[setup]
    return runner.compute(_to_batch(arrays, runner.model.device), variants)


def _setup(runner: Runner, folder: Path) -> Setup:
    model = runner.model
    hooked = foreign_hooks(model.model)
    if hooked:
        raise UnsupportedModelError(
            f"sweep(executor=...): {model.id} has a forward hook of yours on {hooked[0]}, which workers would not "
            "have: they load the model anew. Take it out, or pass executor='serial'."
        )
    source = place_model(model, folder)
    return tuple({
        "source": source, "dtype": str(model.dtype).removeprefix("torch."), "device": str(model.device),
        "fingerprint": _identity(model), "tower": runner.tower.name, "probes": runner.probes,
        "starts": tuple(runner.starts), "why_not": runner.why_not, "threads": torch.get_num_threads(),
    }.items())  # fmt: skip


def _load_runner(*, source: str, dtype: str, device: str, fingerprint: str, threads: int, **rest: Any) -> Runner:
    from sinkscope.models.handle import load_model

    torch.set_num_threads(threads)
    model = load_model(source, dtype=dtype, device=device)
    if _identity(model) != fingerprint:
        raise ModelError(
            f"sweep: the model at {source} is not the one in memory (other weights, configuration or settings of "
            "its modules). Save what you changed to a folder and load it from there, or pass executor='serial'."
        )
    runner = Runner(model, model.backend.towers[rest["tower"]], rest["probes"], rest["starts"])
    runner.why_not = rest["why_not"]
    return runner


def _identity(model: Model) -> str:
    """What must be the same in a worker: versions of packages are the cluster's own matter."""
    return fingerprint(model.model) + behaviour(model.model)


def place_model(model: Model, folder: Path) -> str:
    """Return where workers can load ``model`` from.

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
        return model.id
    came_from = str(getattr(model.model, "name_or_path", "") or "")
    if came_from and (Path(came_from) / "config.json").is_file():
        return str(Path(came_from).resolve())
    place = folder / "model"
    model.model.save_pretrained(place, safe_serialization=True)
    return str(place)


def _to_arrays(batch: Batch) -> dict[str, Any]:
    inputs = {name: tensor.detach().cpu().numpy() for name, tensor in batch.inputs.items()}
    return {
        "inputs": inputs, "real": batch.real.cpu().numpy(), "roles": batch.roles.cpu().numpy(),
        "indices": batch.indices, "cross": batch.cross,
        "target": None if batch.target is None else _to_arrays(batch.target),
    }  # fmt: skip


def _to_batch(arrays: dict[str, Any], device: torch.device) -> Batch:
    # A copy: executors may hand over arrays that are read only.
    inputs = {name: torch.from_numpy(np.array(array)).to(device) for name, array in arrays["inputs"].items()}
    real, roles = (torch.from_numpy(np.array(arrays[name])).to(device) for name in ("real", "roles"))
    target = None if arrays["target"] is None else _to_batch(arrays["target"], device)
    return Batch(inputs, real, roles, tuple(arrays["indices"]), target, arrays["cross"])
