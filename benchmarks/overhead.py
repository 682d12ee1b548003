"""Time and peak memory of reading attention, side by side in one run: ``python benchmarks/overhead.py --help``.

Times are interleaved (A B C A B C ...) in one process and compared pair by pair with the plain pass, so drift of the
machine cancels; the median ratio is printed. Peaks are measured in a process of their own with the allocator's
thresholds pinned (without that they vary twofold), above the loaded model. A way that needs over ``--limit`` GiB for
its maps is left out and the table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

PINNED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
MAPPED = ("transformers: output_attentions", "TransformerLens: pattern cache")


def peak_of(way: str, dtype: str, length: int) -> int:
    """Peak memory of one run above the loaded model, in bytes, measured in this process."""
    import torch
    from reference import WAYS

    torch.set_num_threads(1)
    warm = WAYS[way](dtype, 64)
    warm()
    once = WAYS[way](dtype, length)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    once()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {name}: peaks need Linux")


def peak(way: str, dtype: str, length: int) -> float:
    """Peak in MiB, measured in a process of its own."""
    command = [sys.executable, __file__, "--peak", way, dtype, str(length)]
    out = subprocess.run(command, env=os.environ | PINNED, capture_output=True, text=True, check=True)
    return int(json.loads(out.stdout.splitlines()[-1])) / 2**20


def times(ways: list[str], dtype: str, length: int, repeats: int) -> dict[str, list[float]]:
    """Processor seconds of each way, interleaved."""
    import torch
    from reference import WAYS

    torch.set_num_threads(1)
    ready = {way: WAYS[way](dtype, length) for way in ways}
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(repeats + 1):
        for way, once in ready.items():
            start = time.process_time()
            once()
            if turn:
                taken[way].append(time.process_time() - start)
    return taken


def row(way: str, base: str, taken: dict[str, list[float]], peaks: dict[str, float]) -> str:
    """One line of the table."""
    ratio = statistics.median(a / b for a, b in zip(taken[way], taken[base], strict=True))
    return (
        f"| {way} | {statistics.median(taken[way]):.2f} | {ratio:.2f} | {peaks[way]:.0f} | "
        f"{peaks[way] / peaks[base]:.2f} |"
    )


def main() -> None:
    """Measure and print the tables; write them to a file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=6.0, help="GiB of maps beyond which a way is left out")
    parser.add_argument("--only", nargs="+", help="words; ways whose name holds one of them, besides the plain pass")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--peak", nargs=3, metavar=("WAY", "DTYPE", "LENGTH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print(peak_of(args.peak[0], args.peak[1], int(args.peak[2])))
        return
    from reference import HEADS, LAYERS, WAYS

    base = next(iter(WAYS))
    chosen = [w for w in WAYS if w == base or not args.only or any(word in w for word in args.only)]
    lines = [f"Measured {date.today()}, one thread, {args.repeats} interleaved repeats, median of paired ratios.", ""]
    for dtype in args.dtypes:
        for length in args.lengths:
            size = 4 * LAYERS * HEADS * length**2 / 2**30
            ways = [w for w in chosen if w not in MAPPED or size <= args.limit]
            taken = times(ways, dtype, length, args.repeats)
            peaks = {way: peak(way, dtype, length) for way in ways}
            lines += [
                f"## {dtype}, {length} tokens",
                "",
                "| way | s | x plain | peak MiB | x plain |",
                "|---|---|---|---|---|",
            ]
            lines += [row(way, base, taken, peaks) for way in ways]
            lines += [f"| {w} | maps would take {size:.0f} GiB | | | |" for w in chosen if w not in ways] + [""]
            print("\n".join(lines[-len(ways) - 6 :]), flush=True)
    if args.output:
        args.output.write_text("# What reading attention costs\n\n" + "\n".join(lines))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
