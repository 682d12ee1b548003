import json

import pytest
from PIL import Image

from analyses.scripts import run
from recipes import emergence
from sinkscope import zoo

SCRIPTS = {
    "sink_rate_by_input": 4, "position_and_length": 2, "norms_by_layer": 4, "angle_or_norm": 2, "position_or_token": 3,
    "training": 1, "variants": 16, "window": 4,
}  # fmt: skip
LANGUAGE = ("--model", "zoo:lm-python")
MODELS = {"sink_rate_by_input": (*LANGUAGE, "minilm"), "training": (), "variants": ()}
"""Scripts on training curves take no model: they say nothing of one that they did not measure."""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Every script once, on the model it is made for."""
    folder = tmp_path_factory.mktemp("gu2025")
    with pytest.MonkeyPatch.context() as patch:
        return {name: run(f"gu2025/{name}.py", folder, patch, *MODELS.get(name, LANGUAGE)) for name in SCRIPTS}


@pytest.mark.parametrize("name", SCRIPTS)
def test_claims_and_a_figure_with_something_on_it(results, name):
    said, figures = results[name]
    assert said["paper"] == "gu2025"
    assert len(said["claims"]) == SCRIPTS[name]
    assert len(figures) == len(MODELS.get(name, LANGUAGE)[1:]) or not MODELS[name]
    with Image.open(figures[0]) as picture:
        assert min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20
    assert said["figures"][0]["says"].startswith("model zoo:lm-python") or name == "variants"


@pytest.mark.parametrize("name", ["training", "variants"])
def test_scripts_on_training_curves_refuse_a_model_they_would_not_measure(tmp_path, monkeypatch, capsys, name):
    with pytest.raises(SystemExit):
        run(f"gu2025/{name}.py", tmp_path, monkeypatch, "--model", "minilm")
    assert "unrecognized arguments: --model minilm" in capsys.readouterr().err


def test_every_claim_is_about_the_model_it_was_measured_on(results):
    assert {claim["model"] for claim in results["sink_rate_by_input"][0]["claims"]} == {
        "zoo:lm-python",
        "all-MiniLM-L6-v2",
    }
    assert {claim["model"] for claim in results["training"][0]["claims"]} == {"zoo:lm-python"}
    assert all(claim["model"].startswith("zoo:lm-python-") for claim in results["variants"][0]["claims"])
    assert results["window"][0]["claims"][3]["number"].endswith("(n = 1 seed)")
    assert [claim["model"] for claim in results["window"][0]["claims"]] == ["zoo:lm-python"] * 3 + [
        "zoo:lm-python-window"
    ]


def verdicts(results, name):
    return [claim["agrees"] for claim in results[name][0]["claims"]]


def test_random_tokens_have_sinks_and_a_repeated_one_has_none_with_rotary_positions(results):
    assert verdicts(results, "sink_rate_by_input") == [True] * 4
    found = results["sink_rate_by_input"][0]["claims"][1]["found"]
    assert found.startswith("0.0% [0.0%, 0.0%] (n = 8)")


def test_the_sink_stands_first_and_the_metric_depends_on_length(results):
    first, length = verdicts(results, "position_and_length")
    assert first
    assert length is None, "a quick run has one length from T = 64 on"
    assert not any("thresholds" in claim["claim"] for claim in results["position_and_length"][0]["claims"])


def test_values_drain_and_the_angle_not_the_size_makes_the_sink(results):
    sinks, hidden, _, value = verdicts(results, "norms_by_layer")
    assert sinks
    assert hidden
    assert value
    assert verdicts(results, "angle_or_norm")[0] is True


def test_position_or_token_is_judged(results):
    alone, other, moved = results["position_or_token"][0]["claims"]
    assert (alone["agrees"], other["agrees"], moved["agrees"]) == (False, False, False)
    assert alone["number"].startswith("0.0% [0.0%, 0.0%]")
    assert "own token in front" in alone["found"]


def test_a_model_without_a_token_of_its_own_is_not_asked_where_that_draws_the_sink(tmp_path, monkeypatch):
    monkeypatch.setattr("sinkscope.analysis.texts.specials", lambda model: ([], []))
    said, _ = run("gu2025/position_or_token.py", tmp_path, monkeypatch, *LANGUAGE)
    alone, _, moved = said["claims"]
    assert (moved["agrees"], moved["reason"]) == (None, "its tokenizer puts no token of its own in front")
    assert "with beginning-of-text token in front" in alone["found"]


def test_a_window_put_in_is_judged_and_wants_a_decoder(results, tmp_path, monkeypatch):
    assert verdicts(results, "window")[0] is True
    with pytest.raises(SystemExit, match=r"window\.py: .*this analysis needs a decoder"):
        run("gu2025/window.py", tmp_path, monkeypatch, "--model", "minilm")


def test_the_sink_emerges_while_the_loss_falls(results):
    claim = results["training"][0]["claims"][0]
    assert claim["agrees"] is True
    assert "zoo:lm-python: there for good from step" in claim["found"]


def test_variants_of_the_zoo_are_judged_over_seeds_by_the_rule_of_the_zoos_page(tmp_path, monkeypatch):
    rows = [row for row in zoo.curve("lm-python-softmax") if row["step"] <= 1000]
    base = rows[-1]["sink_rate_after_first"]
    assert base > 0
    for name, rates in (
        ("softmax", (base, base, base)), ("sigmoid", (0.0, 0.0)), ("softmax1", (base, 0.0)), ("no-bos", (base,)),
        ("gate", (0.0, base)),
    ):  # fmt: skip
        runs = {str(seed): [row | {"sink_rate_after_first": rate} for row in rows] for seed, rate in enumerate(rates)}
        content = {"recipe": {}, "runs": runs}
        (tmp_path / f"lm-python-{name}.json").write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setattr(zoo, "CURVES", tmp_path)
    said, _ = run("gu2025/variants.py", tmp_path, monkeypatch)
    verdicts = {claim["claim"]: claim for claim in said["claims"]}
    sigmoid = verdicts["Trained with sigmoid, the first token is no sink"]
    assert sigmoid["agrees"] is True
    assert f"after 1000 steps sink rate 0 (softmax {base:.3g}, difference {-base:+.2g}), mean" in sigmoid["found"]
    assert "in 2 of 2 seeds" in sigmoid["found"]
    points = f"{-100 * base:+.0f}"
    assert sigmoid["number"] == (
        f"{points} points of sink rate beside softmax ({points}, {points} by seed), as claimed in 2 of 2 (n = 2 seeds)"
    )
    assert verdicts["Trained with gated heads, the first token is no sink"]["agrees"] is False
    one = verdicts["Trained with softmax-off-by-one, the first token is a weaker sink or none"]
    assert one["agrees"] is False
    assert f"in 1 of 2 seeds {emergence.RULES[emergence.ARCHITECTURE['softmax1'].rule]}" in one["found"]
    assert [claim["agrees"] for claim in said["claims"] if "without a token of its own" in claim["claim"]] == [True]
    assert [claim["found"] for claim in said["claims"] if "learned key" in claim["claim"]] == [
        "no such run in the zoo"
    ] * 2
