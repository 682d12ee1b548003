"""Joined arms, and right answers beside wrong ones, on numbers worked out by hand."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from sinkscope.analysis import compare_arms, draw_right_and_wrong, join_arms, right_and_wrong


def score(values):
    return xr.Dataset(
        {"log_probability": ("prompt", values), "correct": ("prompt", np.ones(3)), "other": ("prompt", values)},
        coords={"prompt": [3, 4, 5]}, attrs={"model_id": "m"},
    )  # fmt: skip


def test_arms_are_joined_and_compared_prompt_by_prompt():
    ds = join_arms({"plain": score([0.0, -1.0, -2.0]), "edited": score([-1.0, -2.0, -3.0])})
    assert ds["log_probability"].dims == ("arm", "prompt")
    assert set(ds) == {"log_probability", "correct"}
    assert (ds.attrs["model_id"], ds["prompt"].values.tolist()) == ("m", [3, 4, 5])
    words, verdict = compare_arms(ds["log_probability"], "edited", "plain")
    assert words == "edited less plain: -1.0000 [-1.0000, -1.0000], n = 3 prompts, nat"
    assert verdict is True
    assert compare_arms(ds["log_probability"], "plain", "edited")[1] is False
    assert compare_arms(ds["log_probability"], "plain", "plain")[1] == "the interval holds 0"


def test_right_and_wrong_answers_are_told_apart_or_not():
    rng = np.random.default_rng(0)
    right = np.arange(80) < 50
    values = rng.normal(size=80) + right * 3
    words, verdict = right_and_wrong(values, right)
    assert verdict is True
    assert words.startswith(f"{values[right].mean():.2f} right (n = 50), {values[~right].mean():.2f} wrong (n = 30)")
    assert right_and_wrong(values, ~right)[1] is False
    assert right_and_wrong(rng.normal(size=80), right)[1] == "the interval holds 0"
    assert right_and_wrong(values, np.ones(80, bool)) == (
        "100% of 80 answers are right", "answers are all right or all wrong",
    )  # fmt: skip
    _, axes = plt.subplots()
    draw_right_and_wrong(values, right, "number", axes)
    assert sum(patch.get_height() * patch.get_width() for patch in axes.containers[0].patches) == pytest.approx(1)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["right (n = 50)", "wrong (n = 30)"]
    plt.close("all")
