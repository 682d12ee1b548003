"""The analyses after Kang et al. on the vision-language model of the zoo: claims, figures, numbers that agree."""

import re

import pytest
from PIL import Image

from analyses.scripts import run

SCRIPTS = {
    "phi_and_attention": (2, 2), "role_shares": (3, 1), "sink_content": (4, 3), "mask_visual_sinks": (3, 2),
    "image_heads": (2, 2), "redistribution": (2, 1), "word_maps": (2, 1), "channels": (1, 1), "selection": (2, 1),
    "common_vector": (1, 1), "story": (1, 1), "receivers": (3, 1),
}  # fmt: skip
"""Script -> claims and figures."""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Every script once."""
    folder = tmp_path_factory.mktemp("kang2025")
    with pytest.MonkeyPatch.context() as patch:
        return {name: run(f"kang2025/{name}.py", folder, patch, "--model", "zoo:vlm-shapes") for name in SCRIPTS}


@pytest.mark.parametrize("name", SCRIPTS)
def test_claims_and_figures_with_something_on_them(results, name):
    said, figures = results[name]
    claims, drawn = SCRIPTS[name]
    assert (said["paper"], said["models"]) == ("kang2025", ["zoo:vlm-shapes"])
    assert (len(said["claims"]), len(figures)) == (claims, drawn)
    assert all(re.search(r"\d", claim["found"]) for claim in said["claims"])
    assert len(said["figures"]) == drawn
    for figure in figures:
        with Image.open(figure) as picture:
            assert len(set(picture.convert("L").resize((60, 40)).tobytes())) > 12


def test_effects_carry_n_and_interval(results):
    for name in ("mask_visual_sinks", "redistribution", "role_shares"):
        for claim in results[name][0]["claims"]:
            assert re.search(r"[-+]\d+\.\d+ \[[-+]\d+\.\d+, [-+]\d+\.\d+\], n = \d+ prompts", claim["found"])


def test_what_is_masked_matters_for_this_model(results):
    relevant = next(c for c in results["mask_visual_sinks"][0]["claims"] if "relevant" in c["claim"])
    assert relevant["agrees"] is not False, "masking the object in question costs at least as much as any other tokens"


def test_rho_is_chosen_on_other_prompts(results):
    for claim in results["redistribution"][0]["claims"]:
        assert "chosen on 12 other prompts" in claim["found"]


def test_the_maps_of_words_are_more_alike_than_those_of_pictures(results):
    alike, lit = results["word_maps"][0]["claims"]
    low = re.search(r"difference \S+ \[(\S+),", alike["found"])
    assert low is not None
    assert float(low[1]) > 0
    assert "n = 12 prompts" in alike["found"]
    assert lit["agrees"] is False, "this model looks at what it is asked about"


def test_a_handful_of_visual_sinks_shows_nothing(results):
    claims = {claim["claim"]: claim for claim in results["sink_content"][0]["claims"]}
    for words in ("write less than other visual tokens", "lie on background"):
        few = claims[f"Visual sinks {words} (sinks: pass tau)"]
        assert few["agrees"] is None
        assert few["reason"].endswith("prompts are too few")
