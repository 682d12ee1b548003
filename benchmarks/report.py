"""How large a report is, and how long a browser takes to open it: from the navigation to a drawn, clickable head map.

    python benchmarks/report.py --output out/report

Two readings of SmolLM2's shape (30 layers of 9 heads): the 24 prompts of the demo, and 600. They are made, not
measured: numbers drawn at random compress worse than a model's, so that the sizes are on the safe side. A Chromium and
playwright are needed. Wall time is the least and the median of the visits, and a busy machine adds to both; processor
time is that of the page's main thread, median.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import xarray as xr

from sinkscope.report import write_report

ROOT = Path(__file__).parents[1]
BUDGETS = {24: (1.5, 2.0), 600: (5.0, 2.0)}
"""Prompts of a reading: megabytes and seconds that its report may take."""
PAINTED = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


def reading(prompts: int) -> xr.Dataset:
    """Return a reading of SmolLM2's shape with texts of 30 to 47 tokens."""
    sys.path.insert(0, str(ROOT / "tests"))
    from made_reading import fake_reading  # pyright: ignore[reportMissingImports]

    lengths = np.random.default_rng(0).integers(30, 48, prompts).tolist()
    return fake_reading(lengths=tuple(lengths), layers=30, heads=9, kv_heads=3, dim=576)


def opening(page: Path, visits: int) -> list[tuple[float, float]]:
    """Wall and processor seconds of each visit, from the navigation to the second frame after the panels are drawn."""
    sys.path.insert(0, str(ROOT / "tests"))
    from chromium import chromium  # pyright: ignore[reportMissingImports]

    taken = []
    with chromium() as browser:
        for _ in range(visits):
            tab = browser.new_page(viewport={"width": 1280, "height": 900})
            tools = tab.context.new_cdp_session(tab)
            tools.send("Performance.enable", {"timeDomain": "threadTicks"})
            start = time.perf_counter()
            tab.goto(page.as_uri(), wait_until="commit")
            tab.wait_for_selector("body[data-ready]", timeout=60_000)
            tab.evaluate(PAINTED)
            wall = time.perf_counter() - start
            told = {each["name"]: each["value"] for each in tools.send("Performance.getMetrics")["metrics"]}
            taken.append((wall, float(told["TaskDuration"])))
            tab.close()
    return taken


def main() -> None:
    """Write both reports, open them, print one row each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("out/report"))
    parser.add_argument("--visits", type=int, default=7)
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    print("| prompts | MB | budget | ms to a drawn page, least | median | processor | budget |")
    print("|---|---|---|---|---|---|---|")
    for prompts, (megabytes, seconds) in BUDGETS.items():
        page = write_report(reading(prompts), given.output / f"report-{prompts}.html", overwrite=True)
        wall, busy = zip(*opening(page, given.visits), strict=True)
        print(
            f"| {prompts} | {page.stat().st_size / 1e6:.2f} | {megabytes:g} | {1000 * min(wall):.0f} | "
            f"{1000 * statistics.median(wall):.0f} | {1000 * statistics.median(busy):.0f} | {1000 * seconds:.0f} |"
        )


if __name__ == "__main__":
    main()
