import pytest
from methods.secondary_models import load
from PIL import Image

import sinkscope as sk
from analyses.scripts import run

SCRIPTS = {"levels_and_norms": 5, "makers": 4}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Both scripts once, on a language model without secondary sinks: they go on with the constructed model."""
    folder = tmp_path_factory.mktemp("wong2025")
    with pytest.MonkeyPatch.context() as patch:
        return {name: run(f"wong2025/{name}.py", folder, patch) for name in SCRIPTS}


@pytest.mark.parametrize("name", SCRIPTS)
def test_claims_and_a_figure_with_something_on_it(results, name):
    said, figures = results[name]
    assert said["paper"] == "wong2025"
    assert len(said["claims"]) == SCRIPTS[name]
    assert len(figures) == 1
    with Image.open(figures[0]) as picture:
        assert min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20
    assert "a constructed model" in said["figures"][0]["says"]


def test_none_in_the_language_model_is_said_with_how_near_it_came(results):
    for name in SCRIPTS:
        first = results[name][0]["claims"][0]
        assert first["agrees"] is None
        assert first["found"].startswith("zoo:lm-python: 0 secondary")
        assert "largest cosine of the rest 0." in first["found"]


def test_only_the_detector_is_judged_on_the_constructed_model(results):
    claims = results["levels_and_norms"][0]["claims"]
    assert claims[1]["agrees"] is True
    assert claims[1]["found"].startswith("16 found of 16 built in")
    for claim in [*claims[2:], *results["makers"][0]["claims"][1:]]:
        assert claim["agrees"] is None
        assert claim["found"].startswith("constructed, so built in: ")


def test_the_levels_are_those_built_in(results):
    assert results["levels_and_norms"][0]["claims"][2]["found"].endswith("(3, 3) x 8, (4, 4) x 8")


def test_a_model_with_secondary_sinks_is_judged(tmp_path, monkeypatch):
    constructed = load()
    model = constructed.build(0)
    monkeypatch.setattr("sinkscope.analysis.Study.load", lambda self, source: model)
    monkeypatch.setattr(
        "sinkscope.analysis.Study.texts",
        lambda self, *_, **__: sk.Prompts.from_ids(constructed.token_ids(2, 48, 3), model),
    )
    said, _ = run("wong2025/levels_and_norms.py", tmp_path, monkeypatch)
    assert [claim["agrees"] for claim in said["claims"]] == [True] * 4
    assert "constructed, so" not in str(said["claims"])
