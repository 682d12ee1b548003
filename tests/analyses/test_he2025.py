"""The analysis of vision-aware head divergence on the zoo's vision-language model."""

import pytest
from PIL import Image

from analyses.scripts import run


def test_heads_and_answers_are_drawn_and_judged(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        said, figures = run("he2025/divergence.py", tmp_path, patch)
    assert (said["paper"], said["models"]) == ("he2025", ["zoo:vlm-shapes"])
    assert [claim["figure"] for claim in said["claims"]] == ["Fig. 2", "Fig. 3"]
    with Image.open(figures[0]) as picture:
        assert len(set(picture.convert("L").resize((60, 40)).tobytes())) > 12
