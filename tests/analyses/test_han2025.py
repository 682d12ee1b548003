"""ZeroTuning, and its baselines ACT and PASTA: scripts that calibrate on tasks made here."""

import functools
import json
import runpy

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from analyses.scripts import ANALYSES, run

SCRIPTS = {
    "han2025/scaled_token": 2, "han2025/layer_groups": 3, "han2025/head_profile": 2, "han2025/method_table": 6,
    "han2025/unsupervised": 1, "han2025/instruct": 7, "yu2024/other_sinks": 2, "yu2024/single_head": 1,
    "zhang2023/steering": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("han2025")


@pytest.fixture(scope="module")
def results(folder):
    """What a script left; each runs once, when it is first asked for."""

    @functools.cache
    def result(name):
        with pytest.MonkeyPatch.context() as patch:
            return run(f"{name}.py", folder, patch, "--model", "zoo:lm-python")

    return result


FIGURES = {"han2025/scaled_token": "Fig. 2", "han2025/layer_groups": "Fig. 4", "han2025/head_profile": "Fig. 5"}
"""Script -> figure of the paper that its claims are from."""


@pytest.mark.parametrize("name", FIGURES)
def test_claims_name_the_papers_own_figure(results, name):
    assert {claim["figure"] for claim in results(name)[0]["claims"]} == {FIGURES[name]}


@pytest.mark.parametrize("name", SCRIPTS)
def test_claims_and_a_figure_with_something_on_it(results, name):
    said, figures = results(name)
    assert said["paper"] == name.split("/")[0]
    assert len(said["claims"]) == SCRIPTS[name]
    assert all("nan" not in claim["found"] for claim in said["claims"])
    assert len(figures) == 1
    with Image.open(figures[0]) as picture:
        assert min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20
    assert said["figures"][0]["says"].startswith("model zoo:lm-python; n = ")
    if name == "zhang2023/steering":
        assert "steered to the whole list, the answer and the other options in it" in said["figures"][0]["says"]


def verdicts(results, name):
    return [claim["agrees"] for claim in results(name)[0]["claims"]]


def test_the_first_token_moves_copying_more_than_another(results):
    assert verdicts(results, "han2025/scaled_token") == [True, True]
    claim, control = results("han2025/scaled_token")[0]["claims"]
    assert claim["number"].endswith("(n = 8)")
    assert "questions of copy" in claim["found"]
    assert (claim["paper"] != "", control["paper"]) == (True, "")
    assert "draws of a token of each question" in control["found"]


def test_both_scripts_on_gamma_hold_the_same_random_tokens_beside_the_first(results, folder):
    controls = [results(f"han2025/{name}")[0]["claims"][-1] for name in ("scaled_token", "layer_groups")]
    assert controls[0]["number"] == controls[1]["number"]
    ((token,), (layers,)) = (
        list((folder / "han2025" / name).glob(f"{name}_copy--*.nc")) for name in ("scaled_token", "layer_groups")
    )
    with xr.open_dataset(token) as one, xr.open_dataset(layers) as other:
        same = one["log_probability"].sel(arm="random token 0")
        assert (same == other["log_probability"].sel(arm="random token 0")).all()
        moved = abs(same - one["log_probability"].sel(arm="first")).max("prompt")
        assert float(moved.sel(gamma=1.0)) == 0.0
        assert float(moved.sel(gamma=0.1)) > 0.01


def test_heads_are_counted_with_the_smallest_effect_that_could_be_found(results):
    classes, shares = results("han2025/head_profile")[0]["claims"]
    assert "effects from 0.0" in classes["found"]
    assert shares["reason"] == "fewer than two tasks with heads that change"
    assert "effects from " in results("yu2024/single_head")[0]["claims"][0]["found"]


def test_keeping_the_first_token_is_no_control_where_every_focus_holds_it():
    holds_first = runpy.run_path(str(ANALYSES / "zhang2023" / "steering.py"))["holds_first"]
    assert holds_first(xr.DataArray([[True, False], [True, True]], dims=("prompt", "key")))
    assert not holds_first(xr.DataArray([[True, False], [False, True]], dims=("prompt", "key")))


def test_what_the_methods_answered_is_kept_and_told(results, folder):
    claims = {(c["figure"], c["claim"]): c for c in results("han2025/method_table")[0]["claims"]}
    (path,) = (folder / "han2025" / "method_table").glob("methods_copy--*.nc")
    with xr.open_dataset(path) as ds:
        before, after = (100 * float(ds["exact"].sel(edit=edit).mean()) for edit in ("none", "zerotuning"))
        chosen = json.loads(ds.attrs["methods"])["zerotuning"][0]["gamma"]
    found = claims["Table 2", "ZeroTuning raises accuracy"]["found"]
    assert f" points (n = 8) by exact match ({before:.1f} to {after:.1f} %; smallest effect found" in found
    assert " by accuracy by label logits (" in found
    assert found.endswith(f"copy gamma {chosen:g}")
    assert after > before
    rivals = {key: claim["found"] for key, claim in claims.items() if key[1].startswith("It raises accuracy by more")}
    assert len(rivals) == 4
    assert all(" by exact match (" in found and " by accuracy by label logits (" in found for found in rivals.values())
    assert claims["Table 1", "It raises accuracy by more than random heads and random token"]["paper"] == ""


def made_scores(none, tuned, rival):
    """Scores (edit prompt) of three methods."""
    values = np.array([none, tuned, rival], dtype=float)
    return xr.DataArray(values, {"edit": ["none", "zerotuning", "act"]}, ("edit", "prompt"))


def test_a_gain_of_exact_match_that_label_logits_deny_is_no_gain():
    above_all = runpy.run_path(str(ANALYSES / "han2025" / "method_table.py"))["above_all"]
    nothing, all_right, half = [0] * 32, [1] * 32, [0, 1] * 16
    exact, denied = made_scores(nothing, half, nothing), made_scores(all_right, half, all_right)
    scores = {"exact match": exact, "accuracy by label logits": denied}
    words, verdict = above_all(scores, ("none",))
    assert verdict is False, "exact match goes from 0 to 50 %, and it was judged by that alone"
    assert "+50.0 [" in words
    assert "-50.0 [" in words
    confirmed = {name: exact for name in scores}
    assert above_all(confirmed, ("none", "act"))[1] is True
    mute = {"exact match": made_scores(nothing, nothing, nothing), "accuracy by label logits": exact}
    words, verdict = above_all(mute, ("none",))
    assert verdict is True
    assert words.endswith("by exact match nothing, as the greedy token names no option")


def test_steering_holds_by_both_scores_too():
    broad = runpy.run_path(str(ANALYSES / "zhang2023" / "steering.py"))["broad"]
    flat = xr.DataArray(np.ones((2, 32)), {"edit": ["steered|0.01", "steered|0.1"]}, ("edit", "prompt"))
    steep = flat.copy()
    steep[0, :20] = 0
    assert broad({"exact match": flat}, [0.01, 0.1])[1] is True
    words, verdict = broad({"exact match": flat, "accuracy by label logits": steep}, [0.01, 0.1])
    assert verdict is False
    assert "+62.5 [" in words


def test_later_sinks_are_punctuation_and_steering_to_the_list_helps_copying(results):
    middle, tokens = verdicts(results, "yu2024/other_sinks")
    assert tokens is True
    assert middle is True
    helps, broad = verdicts(results, "zhang2023/steering")[:2]
    assert helps is not False, "with the few questions of a test the interval may hold zero"
    assert broad is True
