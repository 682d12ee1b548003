"""What a survey takes: peak memory and speed against the number of prompts, and equality after kills and in shards.

python benchmarks/survey.py memory --prompts 100000 --marks 10000 --output whole.nc
python benchmarks/survey.py kills --prompts 100000 --times 10 --whole whole.nc
python benchmarks/survey.py shards --prompts 100000 --whole whole.nc --engine shell dask ray
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import xarray as xr

import sinkscope as sk

MODEL, TOKENS = "zoo:lm-python", 64
PROBES = (sk.KeyMass(), sk.Entropy())
SETTINGS = sk.SurveySettings(every=0)  # what was found is kept after every block


def prompts(count: int) -> Iterator[list[int]]:
    """Prompts of 64 tokens drawn at random, made one at a time: a list of them would itself take memory."""
    draw = np.random.default_rng(0)
    for _ in range(count):
        yield [0, *draw.integers(4, 260, TOKENS - 1).tolist()]


def peak() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory(count: int, marks: list[int], output: Path | None) -> None:
    """Print peak memory and speed when so many prompts have been asked for; save the survey where a file is named."""
    model, start, cpu = sk.load_model(MODEL), time.perf_counter(), time.process_time()

    def watched() -> Iterator[list[int]]:
        for number, prompt in enumerate(prompts(count)):
            if number in marks:
                report(number)
            yield prompt

    def report(number: int) -> None:
        wall, used = time.perf_counter() - start, time.process_time() - cpu
        print(
            f"| {number:,} | {peak():.1f} | {number / wall:.1f} | {number / used:.1f} | {wall:.0f} | {used:.0f} |",
            flush=True,
        )

    print("| prompts | peak MiB | prompts/s | prompts/CPU s | s | CPU s |\n|---|---|---|---|---|---|")
    found = sk.survey(model, watched(), PROBES, settings=SETTINGS)
    report(count)
    if output is not None:
        sk.save(found, output, overwrite=True)
    print(f"state: {found.sizes['byte']:,} bytes; {found.attrs['survey']}")


def child(count: int, output: Path, *, shard: str = "1/1", state: Path | None = None) -> subprocess.Popen[bytes]:
    """Start one survey in a process of its own."""
    checkpoint = [] if state is None else ["--state", str(state)]
    command = [sys.executable, __file__, "one", "--prompts", str(count), "--shard", shard, "--output", str(output)]
    return subprocess.Popen([*command, *checkpoint])


def one(count: int, shard: str, output: Path, state: Path | None) -> None:
    """Make one survey and save it."""
    model = sk.load_model(MODEL)
    found = sk.survey(model, prompts(count), PROBES, shard=shard, checkpoint=state, settings=SETTINGS)
    sk.save(found, output, overwrite=True)


def same(first: xr.Dataset, second: xr.Dataset) -> bool:
    """Say whether two surveys hold the same numbers, bit for bit; the state also says how the work was cut."""
    names = set(first) - {"survey_state"}
    return names == set(second) - {"survey_state"} and all(first[name].equals(second[name]) for name in names)


def kills(count: int, times: int, whole: Path | None) -> None:
    """Kill a survey after random blocks, a random time into the next, go on, and compare with one left alone.

    Blocks, not seconds, say when: on a busy machine a survey that is killed by the clock may never come further.
    """
    blocks = -(-count // SETTINGS.block)
    if not 0 < times < blocks:
        raise SystemExit(f"{count} prompts make {blocks} blocks: --times must be below that")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if whole is None and child(count, whole := place / "whole.nc").wait():
            raise SystemExit("the survey failed")
        draw, killed, before = random.Random(0), 0, 0
        for after in [*sorted(draw.sample(range(1, blocks), times)), blocks]:
            running = child(count, place / "killed.nc", state=place / "state")
            if after == blocks:
                break
            seconds = _wait_for_blocks(running, place / "state", after - before)
            time.sleep(draw.uniform(0, seconds))
            running.send_signal(signal.SIGKILL)
            killed += running.wait() == -signal.SIGKILL
            before = after
        if running.wait():
            raise SystemExit("the survey failed")
        equal = same(sk.open(whole), sk.open(place / "killed.nc"))
        print(json.dumps({"prompts": count, "killed": killed, "bit for bit": equal}))


def _wait_for_blocks(running: subprocess.Popen[bytes], state: Path, number: int) -> float:
    """Wait until so many further blocks stand in the state, or the survey has ended; return seconds of the last one."""
    seen, known, times = -1, None, [time.monotonic()]
    while seen < number and running.poll() is None:
        now = state.stat().st_mtime_ns if state.exists() else None
        if now != known:
            # The first change is the state that the survey begins with.
            seen, known = seen + 1, now
            times.append(time.monotonic())
        time.sleep(0.005)
    return times[-1] - times[-2]


SHARDS = (1, 2, 3, 4)


def shards(count: int, engines: list[str], whole: Path | None) -> None:
    """Compare four shards, shared out by each engine, with one survey of all prompts."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if whole is None and child(count, whole := place / "whole.nc").wait():
            raise SystemExit("the survey failed")
        wanted = sk.open(whole)
        for engine in engines:
            parts = ENGINES[engine](count, place)
            equal = same(sk.merge(parts[::-1]), wanted)
            print(json.dumps({"engine": engine, "prompts": count, "shards": 4, "bit for bit": equal}), flush=True)


def by_shell(count: int, place: Path) -> list[xr.Dataset]:
    """A process for each shard, two at a time."""
    paths = [place / f"{k}.nc" for k in SHARDS]
    for pair in (SHARDS[:2], SHARDS[2:]):
        if any(each.wait() for each in [child(count, paths[k - 1], shard=f"{k}/4") for k in pair]):
            raise SystemExit("a shard failed")
    return [sk.open(path) for path in paths]


def worker(count: int, k: int) -> xr.Dataset:
    """What a worker of a cluster does; one thread, as everywhere here, since more would sum in another order."""
    torch.set_num_threads(1)
    return sk.survey(sk.load_model(MODEL), prompts(count), PROBES, shard=f"{k}/4", settings=SETTINGS)


def by_dask(count: int, place: Path) -> list[xr.Dataset]:
    """Two workers of dask, in processes of their own."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=str(place)) as cluster,
        Client(cluster) as client,
    ):
        return client.gather(client.map(worker, [count] * len(SHARDS), SHARDS))


def by_ray(count: int, place: Path) -> list[xr.Dataset]:
    """Two workers of a local Ray."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        shard = ray.remote(num_cpus=1)(worker)
        return ray.get([shard.remote(count, k) for k in SHARDS])
    finally:
        ray.shutdown()


ENGINES = {"shell": by_shell, "dask": by_dask, "ray": by_ray}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("memory", "kills", "shards", "one"))
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--marks", type=int, nargs="*", default=[10_000])
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--shard", default="1/1")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--whole", type=Path, help="a survey of these prompts that was left alone, from memory")
    parser.add_argument("--state", type=Path)
    parser.add_argument("--engine", nargs="+", choices=list(ENGINES), default=["shell"], help="who shares shards out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "memory":
        memory(given.prompts, given.marks, given.output)
    elif given.what == "kills":
        kills(given.prompts, given.times, given.whole)
    elif given.what == "shards":
        shards(given.prompts, given.engine, given.whole)
    else:
        one(given.prompts, given.shard, given.output, given.state)


if __name__ == "__main__":
    main()
