"""The analysis after LVLMs-Saliency: what right and wrong answers of the zoo's model rest on."""

import pytest
from PIL import Image

from analyses.scripts import run


def test_saliency_of_right_and_wrong_answers_is_drawn_and_judged(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        said, figures = run("zhang2026/saliency.py", tmp_path, patch)
    assert (said["paper"], said["models"]) == ("zhang2026", ["zoo:vlm-shapes"])
    assert [claim["figure"] for claim in said["claims"]] == ["histograms", "rate by bin"]
    assert len(figures) == 1
    with Image.open(figures[0]) as picture:
        assert len(set(picture.convert("L").resize((60, 40)).tobytes())) > 12
