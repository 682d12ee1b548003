import pytest
from PIL import Image

from analyses.scripts import run

SCRIPTS = {"backcopy_picture": 3, "who_does_what": 2, "dynamics": 5, "residual_peak": 7, "active_dormant": 2}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Every script once, on the model it is made for."""
    folder = tmp_path_factory.mktemp("guo2024")
    with pytest.MonkeyPatch.context() as patch:
        return {name: run(f"guo2024/{name}.py", folder, patch) for name in SCRIPTS}


@pytest.mark.parametrize("name", SCRIPTS)
def test_claims_and_a_figure_with_something_on_it(results, name):
    said, figures = results[name]
    assert said["paper"] == "guo2024"
    assert len(said["claims"]) == SCRIPTS[name]
    assert len(figures) == 1
    with Image.open(figures[0]) as picture:
        assert min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20


def claims(results, name):
    return results[name][0]["claims"]


def test_the_head_sleeps_on_all_but_triggers_and_the_first_value_is_the_smallest(results):
    assert [claim["agrees"] for claim in claims(results, "backcopy_picture")] == [True] * 3
    assert "0 of 65 tokens are smaller" in claims(results, "backcopy_picture")[2]["found"]


def test_attention_copies_and_the_mlp_knows_the_bigrams(results):
    assert [claim["agrees"] for claim in claims(results, "who_does_what")] == [True, True]


def test_growth_of_the_sink_logit_is_told_from_a_line_in_time(results):
    rise, law, drain, _, _ = claims(results, "dynamics")
    assert rise["agrees"] is True
    assert law["agrees"] is False
    assert "difference -" in law["found"]
    assert law["found"].endswith("n = 3 seeds")
    assert drain["agrees"] is True
    assert drain["found"].endswith("n = 5 seeds")


def test_the_first_mlp_makes_the_peak(results):
    found = claims(results, "residual_peak")
    adam, sgd = found[:2]
    assert adam["agrees"] is False, "one seed in three grows no peak, and the claim is about every seed"
    assert "6.2, 0.4, 2.0 times the mean of the others" in adam["found"]
    assert sgd["agrees"] is True
    makers = [claim for claim in found if claim["claim"] == "An early MLP makes the peak"]
    assert [claim["agrees"] for claim in makers] == [True, True]
    assert all("without 0 MLP" in claim["found"] for claim in makers)


def test_the_switch_is_tested_on_prompts_it_was_not_chosen_on(results):
    switch, cost = claims(results, "active_dormant")
    assert "n = 12 prompts each, not those it was chosen on" in switch["found"]
    assert "other heads of the layer" in cost["found"]
