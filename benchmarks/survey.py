"""What a survey takes: peak memory and speed against the number of prompts, and equality after kills and in shards.

python benchmarks/survey.py memory --prompts 100000 --marks 10000 100000
python benchmarks/survey.py kills --prompts 4000 --times 10
python benchmarks/survey.py shards --prompts 4000
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


def prompts(count: int) -> Iterator[list[int]]:
    """Prompts of 64 tokens drawn at random, made one at a time: a list of them would itself take memory."""
    draw = np.random.default_rng(0)
    for _ in range(count):
        yield [0, *draw.integers(4, 260, TOKENS - 1).tolist()]


def peak() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory(count: int, marks: list[int]) -> None:
    """Print peak memory and speed when so many prompts have been asked for."""
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
    found = sk.survey(model, watched(), PROBES)
    report(count)
    print(f"state: {found.sizes['byte']:,} bytes; {found.attrs['survey']}")


def child(count: int, output: Path, *, shard: str = "1/1", state: Path | None = None) -> subprocess.Popen[bytes]:
    """Start one survey in a process of its own."""
    checkpoint = [] if state is None else ["--state", str(state)]
    command = [sys.executable, __file__, "one", "--prompts", str(count), "--shard", shard, "--output", str(output)]
    return subprocess.Popen([*command, *checkpoint])


def one(count: int, shard: str, output: Path, state: Path | None) -> None:
    """Make one survey and save it."""
    settings = sk.SurveySettings(every=0)
    found = sk.survey(
        sk.load_model(MODEL), prompts(count), PROBES, shard=shard, checkpoint=state, settings=settings
    )  # fmt: skip
    sk.save(found, output, overwrite=True)


def same(first: xr.Dataset, second: xr.Dataset) -> bool:
    """Say whether two surveys hold the same numbers, bit for bit; the state also says how the work was cut."""
    names = set(first) - {"survey_state"}
    return names == set(second) - {"survey_state"} and all(first[name].equals(second[name]) for name in names)


def kills(count: int, times: int) -> None:
    """Kill a survey at random times and let it go on, and compare with one that was left alone."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        start = time.perf_counter()
        if child(count, place / "whole.nc").wait():
            raise SystemExit("the survey failed")
        whole = time.perf_counter() - start
        draw, killed = random.Random(0), 0
        while True:
            running = child(count, place / "killed.nc", state=place / "state")
            wait = draw.uniform(0.1, 0.4) * whole if killed < times else None
            try:
                running.wait(wait)
                break
            except subprocess.TimeoutExpired:
                running.send_signal(signal.SIGKILL)
                running.wait()
                killed += 1
        equal = same(sk.open(place / "whole.nc"), sk.open(place / "killed.nc"))
        print(json.dumps({"prompts": count, "killed": killed, "bit for bit": equal}))


def shards(count: int) -> None:
    """Compare four shards in four processes with one survey."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        paths = [place / f"{k}.nc" for k in (1, 2, 3, 4)]
        failed = [child(count, path, shard=f"{k}/4").wait() for k, path in enumerate(paths, start=1)]
        failed.append(child(count, place / "whole.nc").wait())
        joined = sk.merge([sk.open(path) for path in reversed(paths)])
        equal = not any(failed) and same(joined, sk.open(place / "whole.nc"))
        print(json.dumps({"prompts": count, "shards": 4, "bit for bit": equal}))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("memory", "kills", "shards", "one"))
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--marks", type=int, nargs="*", default=[10_000])
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--shard", default="1/1")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--state", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "memory":
        memory(given.prompts, given.marks)
    elif given.what == "kills":
        kills(given.prompts, given.times)
    elif given.what == "shards":
        shards(given.prompts)
    else:
        one(given.prompts, given.shard, given.output, given.state)


if __name__ == "__main__":
    main()
