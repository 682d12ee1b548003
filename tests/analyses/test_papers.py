"""Analyses with one script to a paper: claims with numbers, and figures with something on them."""

import re

import pytest
from PIL import Image

from analyses.scripts import run

SCRIPTS = {
    "text_dominance2025/compression": ("text_dominance2025", "zoo:vlm-shapes", 6, 1),
    "li2026/tracing": ("li2026", "zoo:vlm-shapes", 5, 2),
    "zhang2026/words": ("zhang2026", "zoo:lm-python", 2, 1),
    "gift2026/amplified": ("gift2026", "zoo:vlm-shapes", 6, 2),
    "zhao2025/pruning": ("zhao2025", "zoo:vlm-shapes", 8, 2),
    "zhao2025/padding": ("zhao2025", "zoo:vlm-shapes", 4, 1),
    "dyvte/modalities": ("dyvte", "zoo:vlm-shapes", 6, 2),
    "chen2025/demonstrations": ("chen2025", "zoo:vlm-shapes", 5, 1),
    "kukleva2025/magnets": ("kukleva2025", "zoo:vlm-shapes", 4, 2),
    "ge2025/complexity": ("ge2025", "zoo:vlm-shapes", 7, 1),
    "ge2025/masks": ("ge2025", "zoo:vlm-shapes", 8, 1),
    "ge2025/depths": ("ge2025", "zoo:vlm-shapes", 4, 1),
    "he2025/captions": ("he2025", "zoo:vlm-shapes", 5, 2),
    "he2025/reinforced": ("he2025", "zoo:vlm-shapes", 4, 1),
    "he2025/presence": ("he2025", "zoo:vlm-shapes", 3, 1),
    "zhang2025/overlap": ("zhang2025", "zoo:vlm-shapes", 4, 1),
    "zhang2025/funnel": ("visionfunnel2025", "zoo:vlm-shapes", 4, 1),
    "jiang2025/registers": ("jiang2025", "tiny:dinov2", 3, 1),
    "anand2026/sinks_along_bos": ("anand2026", "zoo:lm-python", 3, 1),
    "moh/routing": ("moh", "zoo:lm-python", 2, 1),
    "ahn2025/head_hunter": ("ahn2025", "zoo:lm-python", 3, 1),
    "xue2025/principles": ("xue2025", "zoo:lm-python", 3, 1),
    "chen2026/gradient_sinks": ("chen2026", "zoo:lm-python", 3, 1),
    "qiu2025/gates": ("qiu2025", "zoo:lm-python-gate", 4, 1),
    "algorithms2026/sink_types": ("algorithms2026", "zoo:lm-python", 3, 1),
}
"""Script -> paper, model, claims and figures."""


@pytest.mark.parametrize("name", SCRIPTS)
def test_claims_and_figures_with_something_on_them(name, tmp_path, monkeypatch):
    paper, model, claims, drawn = SCRIPTS[name]
    said, figures = run(f"{name}.py", tmp_path, monkeypatch, "--model", model)
    assert said["paper"] == paper
    assert model.startswith("tiny:") or said["models"] == [model]
    assert (len(said["claims"]), len(figures)) == (claims, drawn)
    assert all(re.search(r"\d", claim["found"]) for claim in said["claims"])
    for figure in figures:
        with Image.open(figure) as picture:
            assert len(set(picture.convert("L").resize((60, 40)).tobytes())) > 12
