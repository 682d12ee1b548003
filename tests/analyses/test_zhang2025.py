"""The analysis of crops on the zoo's vision-language model."""

import pytest
from PIL import Image

from analyses.scripts import run


def test_crops_are_compared_with_the_true_box_and_one_beside_it(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        said, figures = run("zhang2025/crops.py", tmp_path, patch)
    assert (said["paper"], said["models"]) == ("zhang2025", ["zoo:vlm-shapes"])
    assert len(said["claims"]) == 2
    assert "true box 1.00" in said["claims"][0]["found"]
    with Image.open(figures[0]) as picture:
        assert len(set(picture.convert("L").resize((60, 40)).tobytes())) > 12
