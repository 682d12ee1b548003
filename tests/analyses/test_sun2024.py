import re
import runpy

import numpy as np
import pytest
from metrics.readings import from_states
from PIL import Image

import sinkscope as sk
from analyses.scripts import ANALYSES, run

SCRIPTS = {"massive_picture": 6, "attention_before_after": 2, "implicit_bias": 1, "vision_registers": 2, "surface": 1}
LANGUAGE, RANDOM = ("--model", "zoo:lm-python"), ("--model", "tiny:dinov2_with_registers")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Every script once, on one small model."""
    folder = tmp_path_factory.mktemp("sun2024")
    with pytest.MonkeyPatch.context() as patch:
        return {
            name: run(f"sun2024/{name}.py", folder, patch, *(RANDOM if name == "vision_registers" else LANGUAGE))
            for name in SCRIPTS
        }


@pytest.mark.parametrize("name", SCRIPTS)
def test_claims_and_a_figure_with_something_on_it(results, name):
    said, figures = results[name]
    assert said["paper"] == "sun2024"
    assert len(said["claims"]) == SCRIPTS[name]
    assert len(figures) == (2 if name == "surface" else 1)
    with Image.open(figures[0]) as picture:
        assert min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20


def test_the_large_entry_is_at_the_first_token_and_cannot_vary_there(results):
    size, place, sudden, early, vanish, constancy = results["massive_picture"][0]["claims"]
    assert size["agrees"] is False
    assert "0 entries by the paper's rule, dimensions [77, 46, 51] by the relative rule" in size["found"]
    assert place["agrees"] is True
    assert place["number"] == "100% [100%, 100%] (n = 8)"
    assert "77 in blocks 2 to 5" in sudden["found"]
    assert "77 in blocks 0 to 1" in sudden["found"], "each plateau of a dimension is told, not the largest step alone"
    assert "the embedding's)" in sudden["found"]
    assert all("[" in claim["number"] for claim in (size, place, sudden, early, vanish))
    assert early["agrees"] is True
    assert vanish["agrees"] is False
    assert constancy["agrees"] is None
    assert "sees only itself" in constancy["reason"]


def test_attention_concentrates_in_the_layers_that_read_the_plateau(results):
    step, cause = results["attention_before_after"][0]["claims"]
    assert step["agrees"] is True
    assert "in the 5 layers that read dimension 77 massive, less the 1 others" in step["found"]
    assert "5 other dimensions" in cause["found"]


def test_a_curve_follows_a_dimension_whatever_its_rank():
    rng = np.random.default_rng(0)
    states = [rng.normal(size=(4, 9, 64)) for _ in range(4)]
    for prompt, state in enumerate(states):
        state[1:, 0, 9], state[1:, 0, 20] = (900.0, -60.0) if prompt % 2 else (30.0, -60.0)
    ds = from_states(states)
    curves = runpy.run_path(str(ANALYSES / "sun2024" / "massive_picture.py"))["by_dimension"](ds, [9, 20])
    assert curves.sel(site="embed").max() < 5
    blocks = curves.isel(site=slice(1, None))
    np.testing.assert_allclose(blocks.sel(dim=20), 60.0)
    np.testing.assert_allclose(blocks.sel(dim=9).median("prompt"), (900 + 30) / 2)
    second = abs(ds["top_value"].isel(rank=1)).median("prompt")
    assert 30 < float(second[1]) < 60, "the second rank is now one dimension, now the other"


@pytest.mark.parametrize(("at_first", "times"), [(60.0, 1.0), (0.0, None)])
def test_a_plateau_from_block_0_on_is_held_against_the_embedding(at_first, times):
    rng = np.random.default_rng(0)
    states = [rng.normal(size=(4, 9, 64)) for _ in range(4)]
    for state in states:
        state[0, 0, 20], state[1:, 0, 20] = at_first, 60.0
    ds = from_states(states)
    script = runpy.run_path(str(ANALYSES / "sun2024" / "massive_picture.py"))
    stage = sk.metrics.massive_stages(ds).isel(stage=0)
    assert (int(stage["dim"]), int(stage["first"])) == (20, 0)
    rise = script["entry"](script["by_dimension"](ds, [20]), stage)
    assert rise.dims == ("prompt",)
    if times:
        np.testing.assert_allclose(rise, times)
    else:
        assert float(rise.min()) > 20, "it was infinite, whether the embedding had it or not"


def test_early_is_a_part_of_the_depth_and_a_small_rise_counts(tmp_path, monkeypatch):
    said, _ = run("sun2024/massive_picture.py", tmp_path, monkeypatch, "--model", "minilm")
    (early,) = [claim for claim in said["claims"] if claim["claim"] == "The first comes early"]
    assert early["agrees"] is False, "a third of the depth; it was early anywhere"
    assert early["found"].endswith("of 6; block 2 in most prompts")
    said, _ = run("sun2024/attention_before_after.py", tmp_path, monkeypatch, "--model", "minilm")
    step = said["claims"][0]
    assert step["agrees"] is True
    rise, before = (float(x) for x in re.search(r"^([+.\d]+) .*\(([.\d]+)\)$", step["found"]).groups())
    assert 0 < rise < before / 2, "a rise by more than half was asked for"


def test_a_model_without_massive_activations_is_refused_in_one_line(tmp_path, monkeypatch):
    needs = r"this analysis needs massive activations; the relative rule finds none in this model"
    with pytest.raises(SystemExit, match=needs):
        run("sun2024/massive_picture.py", tmp_path, monkeypatch, "--model", "zoo:bb-1l")


def test_entries_of_a_surface_are_counted_in_more_prompts_than_the_one_drawn(results):
    (claim,) = results["surface"][0]["claims"]
    assert claim["number"].endswith("entries (n = 2)")
    assert "on the surface drawn 6 of" in claim["found"]


def test_what_the_sink_adds_is_nearly_the_same_for_all_queries(results):
    claim = results["implicit_bias"][0]["claims"][0]
    assert claim["agrees"] is True
    assert "tokens beside it -" in claim["found"]
    assert claim["number"].endswith("(n = 6)")


def test_a_language_model_is_refused_by_the_script_on_pictures(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"zoo:lm-python: this analysis needs a vision transformer"):
        run("sun2024/vision_registers.py", tmp_path, monkeypatch, *LANGUAGE)


def test_random_weights_show_nothing(results):
    for claim in results["vision_registers"][0]["claims"]:
        assert claim["agrees"] is None
        assert claim["found"].startswith("random weights, so this says nothing")
