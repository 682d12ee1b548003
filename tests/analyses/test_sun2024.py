import pytest
from PIL import Image

from analyses.scripts import run

SCRIPTS = {"massive_picture": 4, "attention_before_after": 2, "implicit_bias": 1, "vision_registers": 2}
LANGUAGE = ("--model", "zoo:lm-python")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Every script once, on one small model."""
    folder = tmp_path_factory.mktemp("sun2024")
    with pytest.MonkeyPatch.context() as patch:
        return {
            name: run(f"sun2024/{name}.py", folder, patch, *(() if name == "vision_registers" else LANGUAGE))
            for name in SCRIPTS
        }


@pytest.mark.parametrize("name", SCRIPTS)
def test_claims_and_a_figure_with_something_on_it(results, name):
    said, figures = results[name]
    assert said["paper"] == "sun2024"
    assert len(said["claims"]) == SCRIPTS[name]
    assert len(figures) == 1
    with Image.open(figures[0]) as picture:
        assert min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20


def test_the_large_entry_is_at_the_first_token_and_cannot_vary_there(results):
    size, place, _, constancy = results["massive_picture"][0]["claims"]
    assert size["agrees"] is False
    assert "0 entries by the paper's rule" in size["found"]
    assert place["agrees"] is True
    assert "at position 0 ('<s>')" in place["found"]
    assert constancy["agrees"] is None
    assert "sees only itself" in constancy["found"]


def test_attention_concentrates_after_the_block(results):
    step, cause = results["attention_before_after"][0]["claims"]
    assert step["agrees"] is True
    assert "5 other dimensions" in cause["found"]


def test_what_the_sink_adds_is_nearly_the_same_for_all_queries(results):
    claim = results["implicit_bias"][0]["claims"][0]
    assert claim["agrees"] is True
    assert "other tokens" in claim["found"]


def test_random_weights_show_nothing(results):
    for claim in results["vision_registers"][0]["claims"]:
        assert claim["agrees"] is None
        assert claim["found"].startswith("random weights, so this says nothing")
