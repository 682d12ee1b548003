"""Time and peak memory of reading attention, side by side in one run: ``python benchmarks/overhead.py --help``.

Times are interleaved (A B C A B C ...) in one process and compared pair by pair with the plain pass, so drift of the
machine cancels; the median ratio and the middle half of the ratios are printed, of processor seconds and of wall time.
Peaks are measured in a process of their own with the allocator's thresholds pinned (without that they vary twofold),
above the loaded model. A way that needs over ``--limit`` GiB for its maps is left out and the table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

PINNED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
PLAN = (
    "reference:float32:128,512,1024,2048,4096", "smollm2-135m:float32:128,512,1024,2048",
    "gemma3-270m:float32:128,512,1024,2048", "minilm:float32:128,512", "reference:bfloat16:1024",
)  # fmt: skip
TIMES = ("way", "CPU s", "x plain (middle half)", "wall, x plain")
PEAKS = ("peak MiB", "x plain")


def peak_of(way: str, model: str, dtype: str, length: int) -> int:
    """Return the peak memory of one run above the loaded model, in bytes, measured in this process."""
    import torch
    from subjects import subject
    from ways import WAYS

    torch.set_num_threads(1)
    warm = WAYS[way](subject(model, dtype, 64))
    warm()
    once = WAYS[way](subject(model, dtype, length))
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    once()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {name}: peaks need Linux")


def peak(way: str, model: str, dtype: str, length: int) -> float:
    """Return the peak in MiB, measured in a process of its own."""
    command = [sys.executable, __file__, "--peak", way, model, dtype, str(length)]
    out = subprocess.run(command, env=os.environ | PINNED, capture_output=True, text=True, check=True)
    return int(json.loads(out.stdout.splitlines()[-1])) / 2**20


def times(ways: list[str], model: str, dtype: str, length: int, repeats: int) -> dict[str, np.ndarray]:
    """Return (processor, wall) seconds of each way, one pair a row, interleaved."""
    import torch
    from subjects import subject
    from ways import WAYS

    torch.set_num_threads(1)
    read = subject(model, dtype, length)
    ready = {way: WAYS[way](read) for way in ways}
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for turn in range(repeats + 1):
        for way, once in ready.items():
            start = time.process_time(), time.perf_counter()
            once()
            if turn:
                taken[way].append((time.process_time() - start[0], time.perf_counter() - start[1]))
    return {way: np.array(rows) for way, rows in taken.items()}


def row(way: str, base: str, taken: dict[str, np.ndarray], peaks: dict[str, float]) -> str:
    """Return one line of the table."""
    processor, wall = (taken[way] / taken[base]).T
    low, middle, high = np.quantile(processor, [0.25, 0.5, 0.75])
    seconds = f"{np.median(taken[way][:, 0]):.2f}"
    cells = [way, seconds, f"{middle:.2f} ({low:.2f} to {high:.2f})", f"{np.median(wall):.2f}"]
    memory = [f"{peaks[way]:.0f}", f"{peaks[way] / peaks[base]:.2f}"] if peaks else []
    return _line([*cells, *memory])


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def section(model: str, dtype: str, length: int, given: argparse.Namespace) -> Iterator[str]:
    """Yield the table of one model at one length."""
    from subjects import subject
    from ways import MAPS, WAYS

    base = next(iter(WAYS))
    size = subject(model, dtype, length).map_bytes / 2**30
    chosen = [w for w in WAYS if w == base or not given.only or any(word in w for word in given.only)]
    # TransformerLens has no adapter for a BERT without a language-model head.
    chosen = [w for w in chosen if not (model == "minilm" and w == MAPS[1])]
    ways = [w for w in chosen if w not in MAPS or size <= given.limit]
    taken = times(ways, model, dtype, length, given.repeats)
    peaks = {} if given.no_peaks else {way: peak(way, model, dtype, length) for way in ways}
    columns = TIMES + (PEAKS if peaks else ())
    yield f"## {model}, {dtype}, {length} tokens\n\n{_line(columns)}\n{_line(['---'] * len(columns))}"
    yield from (row(way, base, taken, peaks) for way in ways)
    left = [""] * (len(columns) - 2)
    yield from (_line([w, f"maps would take {size:.0f} GiB", *left]) for w in chosen if w not in ways)
    yield ""


def about(given: argparse.Namespace) -> str:
    """Return what was measured, when, with what."""
    names = ("torch", "transformers", "transformer-lens", "sinkscope")
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = [x.split(":")[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")]
        processor = found[0] if found else processor
    busy = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    peaks = "" if given.no_peaks else " Peaks are above the loaded model, each in a process of its own."
    return (
        f"Measured {date.today()} by `python benchmarks/overhead.py --plan {' '.join(given.plan)}` on one thread of "
        f"{processor} ({os.cpu_count()} cores; load averages at the end {busy}), {given.repeats} interleaved repeats, "
        f"medians of paired ratios. {', '.join(f'{name} {version(name)}' for name in names)}, Python "
        f"{platform.python_version()}. Every way runs the model without its output head.{peaks} The models are in "
        "`benchmarks/subjects.py`, the ways in `benchmarks/ways.py`.\n"
    )


def main() -> None:
    """Measure and print the tables; write them to a file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", nargs="+", default=PLAN, metavar="MODEL:DTYPE:LENGTH,...", help="what to measure")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--limit", type=float, default=6.0, help="GiB of maps beyond which a way is left out")
    parser.add_argument("--only", nargs="+", help="words; ways whose name holds one of them, besides the plain pass")
    parser.add_argument("--no-peaks", action="store_true", help="times alone")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--peak", nargs=4, metavar=("WAY", "MODEL", "DTYPE", "LENGTH"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak:
        print(peak_of(*given.peak[:3], int(given.peak[3])))
        return
    lines: list[str] = []
    for entry in given.plan:
        model, dtype, lengths = entry.split(":")
        for length in map(int, lengths.split(",")):
            for line in section(model, dtype, length, given):
                print(line, flush=True)
                lines.append(line)
    if given.output:
        given.output.write_text("\n".join(["# What reading attention costs\n", about(given), *lines]))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
