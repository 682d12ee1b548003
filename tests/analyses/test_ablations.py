"""Ablation scripts on the shipped language model, at their smallest."""

import runpy
import sys
import types

import numpy as np
import pytest
import xarray as xr

import sinkscope as sk
from analyses.scripts import ANALYSES, run

SCRIPTS = (
    "mask_sinks", "massive_activations", "sink_dimension_search", "gamma_per_head", "gamma_by_layer_group",
    "null_key_and_normalisers", "attention_forms",
)  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablations")
    with pytest.MonkeyPatch.context() as patch:
        return {name: run(f"ablations/{name}.py", folder, patch, "--model", "zoo:lm-python") for name in SCRIPTS}


def verdict(results, name, words):
    (claim,) = [claim for claim in results[name][0]["claims"] if words in claim["claim"]]
    return claim["agrees"], claim["found"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_numbers_with_n_and_a_figure(results, name):
    said, figures = results[name]
    assert said["models"] == ["zoo:lm-python"]
    assert all("n = " in claim["found"] or claim["agrees"] is None for claim in said["claims"])
    assert figures
    assert said["figures"][0]["says"].startswith("model zoo:lm-python; n = ")


def test_masking_the_sinks_costs_more_than_masking_random_tokens(results):
    agrees, found = verdict(results, "mask_sinks", "Sinks masked change")
    assert agrees is True
    assert "no other sink forms, position 1 (sink rate there 0.00 to 0.00)" in found, "the mass went nowhere"
    assert "position 0 keeps most of the attention" in verdict(results, "mask_sinks", "masked in the late")[1]
    papers = [claim["paper"] for claim in results["mask_sinks"][0]["claims"]]
    assert papers == ["they matter", "", "", "", "", "they matter"]


def test_a_sink_that_moves_is_no_evidence_that_masking_it_matters_little(monkeypatch):
    monkeypatch.syspath_prepend(str(ANALYSES / "ablations"))
    monkeypatch.delitem(sys.modules, "common", raising=False)
    mask = runpy.run_path(str(ANALYSES / "ablations" / "mask_sinks.py"))
    row = xr.Dataset({"origin": 0, "target": 1, "moved": True, "rate_before": 0.0, "rate": 0.73})
    assert mask["gone"](row) == ("the sink moves to position 1 (sink rate there 0.00 to 0.73)", True)


def test_the_mean_of_an_entry_that_is_the_same_everywhere_shows_nothing(results):
    agrees, found = verdict(results, "massive_activations", "to its mean")
    assert agrees is None, "it was counted as borne out without a measurement"
    assert "dimension 77 at 2.post" in found
    assert verdict(results, "massive_activations", "Set to zero")[0] is True


def test_the_first_token_is_needed_in_late_layers(results):
    assert verdict(results, "gamma_by_layer_group", "hidden in the late layers")[0] is True
    papers = {claim["claim"]: claim["paper"] for claim in results["gamma_by_layer_group"][0]["claims"]}
    assert sum(bool(paper) for paper in papers.values()) == 2, "what the paper does not say is not counted as its claim"
    assert {claim["figure"] for claim in results["gamma_by_layer_group"][0]["claims"]} == {"Fig. 4"}


def test_heads_are_tested_over_prompts_and_what_could_be_found_is_said(results):
    agrees, found = verdict(results, "gamma_per_head", "sign of the effect")
    assert agrees is None, "four prompts show nothing"
    assert "mean effects from 0.0" in found
    assert {claim["figure"] for claim in results["gamma_per_head"][0]["claims"]} == {"Fig. 5"}
    assert verdict(results, "gamma_per_head", "One backward pass")[0] is True


def test_of_many_heads_a_sample_is_scaled(monkeypatch):
    monkeypatch.syspath_prepend(str(ANALYSES / "ablations"))
    monkeypatch.delitem(sys.modules, "common", raising=False)
    measure = runpy.run_path(str(ANALYSES / "ablations" / "gamma_per_head.py"))["measure"]
    measure.__globals__["MOST"] = 5
    model = sk.load_model("zoo:lm-python")
    asked = []

    def run(prompts, probes, edits, batch_size):
        asked.extend(edits)
        labels = ["baseline", *edits]
        return xr.Dataset({"token_loss": (("edit", "prompt", "query"), np.ones((len(labels), 2, 3)))}, {"edit": labels})

    effect, heads = measure(types.SimpleNamespace(run=run), model, [None, None])
    assert (heads, len(asked)) == (24, 10), "five heads at two gammas; 270 took six minutes"
    assert int(effect.isel(gamma=0, prompt=0).notnull().sum()) == 5


def test_attention_that_sums_to_more_than_one_is_divided_before_it_is_compared(results):
    agrees, found = verdict(results, "null_key_and_normalisers", "sigmoid")
    assert agrees is True, "raw sigmoid weights of .59 looked like more attention than softmax's .22"
    assert "rows sum to 17" in found
    names = [claim["claim"].split(",")[0] for claim in results["null_key_and_normalisers"][0]["claims"]]
    assert names == ["softmax1 (null key", "null key", "null key", "sigmoid", "relu"], "logit 0 is softmax1 itself"
    assert all(claim["paper"] == "" for claim in results["null_key_and_normalisers"][0]["claims"])


def test_every_form_of_attention_is_told_with_its_share_and_cost(results):
    changed, scores = results["attention_forms"][0]["claims"]
    assert changed["found"].count("%") == 3 + 5, "an estimate with its ends, and five forms of a softmax"
    assert scores["found"].count("%") == 3 + 7
    assert changed["paper"] == scores["paper"] == "", "their papers train with them"


def test_a_dimension_is_only_named_when_zeroing_it_takes_the_sink_away(results):
    agrees, found = verdict(results, "sink_dimension_search", "One dimension")
    assert agrees is None, "one prompt to test on has no interval"
    assert "128 dimensions tried" in found
