"""Run every analysis, skip those that are done and unchanged, and say how long each took.

A script is done when its folder holds claims of a full run on its own models, made by the code as it stands (the
script, the modules beside it that it imports, the version of sinkscope) and all figures that they name. A run that was
cut off goes on with the scripts that are missing, and inside a script with the readings that are kept.

    python analyses/figures.py --jobs 2           # what is missing or changed
    python analyses/figures.py --fresh            # everything anew, such as after a change inside the package
    python analyses/figures.py gu2025 sun2024     # some folders or scripts
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from sinkscope.analysis.store import code_of

ROOT = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Outcome:
    """What became of one script."""

    script: str
    seconds: float
    code: int
    said: str

    @property
    def line(self) -> str:
        """One line for the terminal."""
        state = "done" if self.code == 0 else f"failed ({self.code})"
        return f"{self.script:42} {self.seconds:7.0f} s  {state}{f': {self.said}' if self.said else ''}"


def scripts(root: Path, asked: list[str]) -> list[Path]:
    """Return the analysis scripts, all or those whose ``folder/name`` begins with something that was asked for."""
    found = [path for path in sorted(root.glob("*/[a-z]*.py")) if "Study(" in path.read_text(encoding="utf-8")]
    names = [f"{path.parent.name}/{path.name}" for path in found]
    return [path for path, name in zip(found, names, strict=True) if not asked or name.startswith(tuple(asked))]


def done(script: Path, output: Path) -> bool:
    """Return whether the script's claims and figures are there, of a full run of the code as it stands."""
    folder = output / script.parent.name / script.stem
    try:
        data = json.loads((folder / "claims.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    whole = all((folder / figure["file"]).is_file() for figure in data["figures"])
    return whole and not data["quick"] and not data.get("asked") and data.get("code") == code_of(script)


def run(script: Path, output: Path, fresh: bool) -> Outcome:
    """Run one script in a process of its own; its words go to ``log.txt`` beside its figures."""
    folder, start = output / script.parent.name / script.stem, time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        command = [sys.executable, str(script), "--output", str(output), *(["--fresh"] if fresh else [])]
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=_one_thread(), check=False).returncode
    lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    told = [line.partition(": ")[2] for line in lines if " is left out: " in line]
    said = "; ".join(told) if code == 0 else f"see {folder / 'log.txt'}: {lines[-1] if lines else 'no output'}"
    return Outcome(f"{script.parent.name}/{script.name}", time.monotonic() - start, code, said)


def _one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Command line; 0 when every script that ran came through."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help="folders or scripts, such as gu2025 or sun2024/massive_picture.py")
    parser.add_argument("--output", type=Path, default=Path("out/analyses"), help="folder for readings and figures")
    parser.add_argument("--jobs", type=int, default=1, help="scripts at the same time")
    parser.add_argument("--fresh", action="store_true", help="run and measure again what is there already")
    given = parser.parse_args(arguments)
    chosen = scripts(root, given.only)
    if not chosen:
        parser.error(f"no analysis begins with {' or '.join(given.only)}; there are {', '.join(_names(root))}")
    waiting = [script for script in chosen if given.fresh or not done(script, given.output)]
    print(f"{len(chosen) - len(waiting)} of {len(chosen)} analyses are done and unchanged", flush=True)
    failed, start = 0, time.monotonic()
    with ThreadPoolExecutor(given.jobs) as pool:
        running = [pool.submit(run, script, given.output, given.fresh) for script in waiting]
        for place, ready in enumerate(as_completed(running), 1):
            print(f"[{place}/{len(waiting)}] {ready.result().line}", flush=True)
            failed += ready.result().code != 0
    print(f"{len(waiting) - failed} ran, {failed} failed, {time.monotonic() - start:.0f} s")
    return 1 if failed else 0


def _names(root: Path) -> list[str]:
    return [f"{path.parent.name}/{path.name}" for path in scripts(root, [])]


if __name__ == "__main__":
    sys.exit(main())
