"""The analyses after Kan et al. on the vision-language model of the zoo: claims, figures, numbers that agree."""

import re

import pytest
from PIL import Image

from analyses.scripts import run

SCRIPTS = {
    "max_attention": (3, 2), "curves_by_layer": (4, 3), "layerwise_accuracy": (2, 1), "drop_heads": (3, 2),
    "put_back": (3, 1), "late_layers": (3, 2),
}  # fmt: skip
"""Script -> claims and figures."""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Every script once."""
    folder = tmp_path_factory.mktemp("kan2025")
    with pytest.MonkeyPatch.context() as patch:
        return {name: run(f"kan2025/{name}.py", folder, patch, "--model", "zoo:vlm-shapes") for name in SCRIPTS}


@pytest.mark.parametrize("name", SCRIPTS)
def test_claims_and_figures_with_something_on_them(results, name):
    said, figures = results[name]
    claims, drawn = SCRIPTS[name]
    assert (said["paper"], said["models"]) == ("kan2025", ["zoo:vlm-shapes"])
    assert (len(said["claims"]), len(figures)) == (claims, drawn)
    assert all(re.search(r"\d", claim["found"]) for claim in said["claims"])
    for figure in figures:
        with Image.open(figure) as picture:
            assert len(set(picture.convert("L").resize((60, 40)).tobytes())) > 12


def test_the_last_layer_answers_better_than_the_first(results):
    rises = results["layerwise_accuracy"][0]["claims"][1]
    assert rises["agrees"] is True
    by_layer = [float(v) for v in re.findall(r"\d\.\d\d", results["layerwise_accuracy"][0]["claims"][0]["found"])[:6]]
    assert by_layer[-1] > max(by_layer[:3]) + 0.2


def test_a_distribution_without_two_humps_is_not_called_bimodal(results):
    humps, count, _ = results["max_attention"][0]["claims"]
    p = float(re.search(r"p = ([\d.e-]+)", humps["found"])[1])
    assert humps["agrees"] == (p < 0.05 and "inside" in humps["found"])
    assert ("no two humps" in count["found"]) == (humps["agrees"] is False)


def test_dropped_heads_have_controls_and_intervals(results):
    for claim in results["drop_heads"][0]["claims"]:
        assert re.search(r"[-+]\d\.\d+ \[[-+]\d\.\d+, [-+]\d\.\d+\], n = 15 prompts", claim["found"])
