"""Ablation scripts on the shipped language model, at their smallest."""

import pytest

from analyses.scripts import run

SCRIPTS = (
    "mask_sinks", "massive_activations", "sink_dimension_search", "gamma_per_head", "gamma_by_layer_group",
    "null_key_and_normalisers",
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
    assert all("n = " in claim["found"] or "heads" in claim["found"] for claim in said["claims"])
    assert figures
    assert said["figures"][0]["says"].startswith("model zoo:lm-python; n = ")


def test_masking_the_sinks_costs_more_than_masking_random_tokens(results):
    agrees, found = verdict(results, "mask_sinks", "sinks masked")
    assert agrees is True
    assert "zoo:lm-python" in found


def test_the_massive_activation_is_the_same_in_every_text_of_a_decoder(results):
    assert verdict(results, "massive_activations", "to its mean")[1].endswith("the same in every text, so nothing")
    assert verdict(results, "massive_activations", "to zero")[0] is True


def test_the_first_token_is_needed_in_late_layers(results):
    assert verdict(results, "gamma_by_layer_group", "late layers")[0] is True


def test_one_backward_pass_ranks_the_heads(results):
    assert verdict(results, "gamma_per_head", "one backward pass")[0] is True


def test_sigmoid_put_in_after_training_costs_most(results):
    assert "change of the loss per token +" in verdict(results, "null_key_and_normalisers", "sigmoid")[1]
