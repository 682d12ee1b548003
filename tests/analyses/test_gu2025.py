import json

import pytest
from PIL import Image

from analyses.scripts import run
from sinkscope import zoo

SCRIPTS = {
    "sink_rate_by_input": 4, "position_and_length": 3, "norms_by_layer": 4, "angle_or_norm": 2, "position_or_token": 2,
    "training": 1, "variants": 6, "window": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Every script once, on the model it is made for."""
    folder = tmp_path_factory.mktemp("gu2025")
    with pytest.MonkeyPatch.context() as patch:
        return {name: run(f"gu2025/{name}.py", folder, patch) for name in SCRIPTS}


@pytest.mark.parametrize("name", SCRIPTS)
def test_claims_and_a_figure_with_something_on_it(results, name):
    said, figures = results[name]
    assert said["paper"] == "gu2025"
    assert len(said["claims"]) >= SCRIPTS[name]
    assert len(figures) == 1
    with Image.open(figures[0]) as picture:
        assert min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20
    assert said["figures"][0]["says"].startswith("model zoo:lm-python")


def verdicts(results, name):
    return [claim["agrees"] for claim in results[name][0]["claims"]]


def test_random_tokens_have_sinks_and_a_repeated_one_has_none_with_rotary_positions(results):
    assert verdicts(results, "sink_rate_by_input") == [True] * 4
    found = results["sink_rate_by_input"][0]["claims"][1]["found"]
    assert found.startswith("0.0% [0.0%, 0.0%] all the same")
    assert "n = 8 prompts" in found


def test_the_sink_stands_first_and_the_metric_depends_on_length(results):
    first, _, thresholds = verdicts(results, "position_and_length")
    assert first
    assert thresholds


def test_values_drain_and_the_angle_not_the_size_makes_the_sink(results):
    sinks, hidden, _, value = verdicts(results, "norms_by_layer")
    assert sinks
    assert hidden
    assert value
    assert verdicts(results, "angle_or_norm")[0] is True


def test_what_the_zoo_cannot_show_is_said_to_be_unseen(results):
    assert verdicts(results, "position_or_token") == [None, None]
    assert verdicts(results, "window")[:2] == [True, None]


def test_the_sink_emerges_while_the_loss_falls(results):
    claim = results["training"][0]["claims"][0]
    assert claim["agrees"] is True
    assert "zoo:lm-python: there for good from step" in claim["found"]


def test_variants_of_the_zoo_are_judged_over_seeds_at_a_step_that_all_have(tmp_path, monkeypatch):
    rows = [row for row in zoo.curve("lm-python-softmax") if row["step"] <= 1000]
    base = rows[-1]["sink_rate"]
    assert base > 0
    for name, rates in (
        ("softmax", (base, base, base)), ("sigmoid", (0.0, 0.0)), ("no-bos", (base,)), ("gate", (0.0, base)),
    ):  # fmt: skip
        runs = {str(seed): [row | {"sink_rate": rate} for row in rows] for seed, rate in enumerate(rates)}
        content = {"recipe": {}, "runs": runs}
        (tmp_path / f"lm-python-{name}.json").write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setattr(zoo, "CURVES", tmp_path)
    said, _ = run("gu2025/variants.py", tmp_path, monkeypatch)
    verdicts = {claim["claim"]: claim for claim in said["claims"]}
    sigmoid = verdicts["Trained with sigmoid, the first token is no sink"]
    assert sigmoid["agrees"] is True
    assert sigmoid["found"].startswith(
        f"after 1000 steps sink rate 0 (softmax {base:.3g}, difference {-base:+.2g}), mean"
    )
    assert "n = 2 seeds; swapped in after training" in sigmoid["found"]
    assert verdicts["Trained with gated heads, the first token is no sink"]["agrees"] is False
    assert [claim["agrees"] for claim in said["claims"] if "without a token of its own" in claim["claim"]] == [True]
    assert [claim["found"] for claim in said["claims"] if "learned key" in claim["claim"]] == ["no such run in the zoo"]
