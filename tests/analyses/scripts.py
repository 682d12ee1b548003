"""Running an analysis script of this repository in the process of the test, as little as shows that it works."""

import functools
import json
import runpy
import sys
from pathlib import Path

from sinkscope.analysis.legible import SMALLEST
from sinkscope.tasks import corpora

CODE, PROSE = functools.cache(corpora.code), functools.cache(corpora.prose)
"""The texts of this machine are read once for all scripts of a test run."""
ANALYSES = Path(__file__).parents[2] / "analyses"


def run(script, folder, monkeypatch, *arguments):
    """Run ``analyses/PAPER/NAME.py --quick`` and return its claims.json and the figures it left."""
    path = ANALYSES / script
    monkeypatch.setattr(sys, "argv", [str(path), "--quick", "--output", str(folder), *arguments])
    monkeypatch.setattr(corpora, "code", CODE)
    monkeypatch.setattr(corpora, "prose", PROSE)
    monkeypatch.syspath_prepend(str(path.parent))
    runpy.run_path(str(path), run_name="__main__")
    out = folder / path.parent.name / path.stem
    said = json.loads((out / "claims.json").read_text(encoding="utf-8"))
    small = {figure["file"]: figure["letters"] for figure in said["figures"] if figure["letters"] < SMALLEST}
    assert not small, f"letters that cannot be read on a page, in points: {small}"
    return said, sorted(out.glob("*.png"))
