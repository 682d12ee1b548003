import pytest
from methods.secondary_models import load
from PIL import Image

import sinkscope as sk
from analyses.scripts import run

SCRIPTS = {"levels_and_norms": 5, "makers": 3, "directions": 2}
LANGUAGE = ("--model", "zoo:lm-python")


@pytest.fixture(scope="module")
def levels(tmp_path_factory):
    """A language model without secondary sinks; then the constructed model, as a check of the detector."""
    with pytest.MonkeyPatch.context() as patch:
        return run("wong2025/levels_and_norms.py", tmp_path_factory.mktemp("wong2025"), patch, *LANGUAGE)


@pytest.fixture
def with_sinks(monkeypatch):
    """Every source gives the constructed model."""
    constructed = load()
    model = constructed.build(0)
    monkeypatch.setattr("sinkscope.analysis.Study.load", lambda self, source: model)
    prompts = sk.Prompts.from_ids(constructed.token_ids(2, 48, 3), model)
    monkeypatch.setattr("sinkscope.analysis.Study.texts", lambda self, *_, **__: prompts)


def test_none_in_the_language_model_is_said_of_that_model_with_how_near_it_came(levels):
    first = levels[0]["claims"][0]
    assert first["model"] == "zoo:lm-python"
    assert first["agrees"] is False
    assert first["number"] == "0.00 [0.00, 0.00] (n = 3)"
    assert "0 secondary" in first["found"]
    assert "largest cosine of the rest 0." in first["found"]


def test_what_a_constructed_model_shows_is_said_of_it_and_counts_as_no_claim(levels):
    said, figures = levels
    assert len(said["claims"]) == SCRIPTS["levels_and_norms"]
    detector, steps, *rest = said["claims"][1:]
    assert detector["agrees"] is True
    assert detector["found"].startswith("16 found of 16 built in")
    assert steps["number"] == "100% [100%, 100%] (n = 2)"
    assert "(first layer, lifetime): (3, 3) x 8, (4, 4) x 8" in steps["found"]
    for claim in (detector, steps, *rest):
        assert claim["paper"] == ""
        assert claim["model"] == "constructed secondary sinks 0"
    assert len(figures) == 1
    assert "a constructed model" in said["figures"][0]["says"]
    with Image.open(figures[0]) as picture:
        assert min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20


def test_makers_says_that_a_model_has_none_and_checks_the_method(tmp_path, monkeypatch):
    said, figures = run("wong2025/makers.py", tmp_path, monkeypatch, *LANGUAGE)
    first, *check = said["claims"]
    assert (first["model"], first["reason"]) == ("zoo:lm-python", "no secondary sink was found in its prompts")
    assert [claim["agrees"] for claim in check] == [True] * SCRIPTS["makers"]
    assert {claim["paper"] for claim in check} == {""}
    assert len(figures) == 1


def test_a_model_with_secondary_sinks_is_judged(tmp_path, monkeypatch, with_sinks):
    said, figures = run("wong2025/levels_and_norms.py", tmp_path, monkeypatch, "--model", "any")
    *_, large, small, attention = judged = [claim for claim in said["claims"] if claim["paper"]]
    assert [claim["agrees"] for claim in judged] == [True, True, True, False, True]
    assert "times that of the others" in large["found"]
    assert small["claim"] == "Small keys and values", "it was one claim with the residual norm, and never judged"
    assert all("[" in claim["number"] for claim in judged)
    assert attention["figure"] == "Section 3"
    assert len(figures) == 2
    said, _ = run("wong2025/makers.py", tmp_path, monkeypatch, "--model", "any")
    judged = [claim for claim in said["claims"] if claim["paper"]]
    assert len(judged) == SCRIPTS["makers"]
    assert [claim["agrees"] for claim in judged] == [True] * 3


def test_directions_of_a_model_with_secondary_sinks_are_swept(tmp_path, monkeypatch, with_sinks):
    said, figures = run("wong2025/directions.py", tmp_path, monkeypatch, "--model", "any")
    judged = [claim for claim in said["claims"] if claim["paper"]]
    assert len(judged) == SCRIPTS["directions"]
    assert judged[0]["agrees"] is True
    assert len(figures) == 2
