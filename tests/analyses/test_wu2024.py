"""The analysis of retrieval heads on the zoo's language model."""

import pytest
from PIL import Image

from analyses.scripts import run


def test_heads_are_mapped_and_knocked_out(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        said, figures = run("wu2024/retrieval_heads.py", tmp_path, patch, "--model", "zoo:lm-python")
    assert (said["paper"], said["models"]) == ("wu2024", ["zoo:lm-python"])
    assert [claim["figure"] for claim in said["claims"]] == ["map of scores", "needle accuracy"]
    assert len(figures) == 1
    with Image.open(figures[0]) as picture:
        assert len(set(picture.convert("L").resize((60, 40)).tobytes())) > 12
