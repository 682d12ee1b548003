from functools import cache

import numpy as np
import pytest
import xarray as xr

import sinkscope as sk
from sinkscope import tasks
from sinkscope.errors import MetricError
from sinkscope.tasks import Item, Questions


@cache
def model():
    return sk.load_model("zoo:lm-python")


@cache
def questions():
    items = [
        Item("a", (" =", " in", " is"), 0),
        Item("b", (" =", " in"), 1),
        Item("c", (" =", " in"), 1),
    ]
    return Questions.of(items, model())


def reading():
    """Three prompts with chosen log probabilities: right and greedy, wrong though greedy, right but not greedy."""
    ids = questions().options
    other = model().tokenizer.get_vocab()["z"]
    return xr.Dataset(
        {
            "log_probability_by_option": (
                ("prompt", "option"),
                np.log([[0.5, 0.2, 0.1], [0.6, 0.2, np.nan], [0.1, 0.3, np.nan]]),
            ),
            "greedy_token": (("prompt",), np.array([ids[0][0], ids[1][0], other], np.float32)),
            "answer_entropy": (("prompt",), np.array([1.0, 0.5, 2.0])),
        },
        coords={"prompt": [0, 1, 2]},
    )


def test_scores_of_known_probabilities():
    found = tasks.scores(reading(), questions())
    assert found["correct"].values.tolist() == [1, 0, 1]
    assert found["exact"].values.tolist() == [1, 0, 0]
    assert found["invalid"].values.tolist() == [0, 0, 1]
    assert found["choice"].values.tolist() == [0, 0, 1]
    np.testing.assert_allclose(found["log_probability"], np.log([0.5, 0.2, 0.3]))
    np.testing.assert_allclose(found["option_log_probability"], np.log([5 / 8, 1 / 4, 3 / 4]))
    np.testing.assert_allclose(found["option_entropy"][1], -(0.25 * np.log(0.25) + 0.75 * np.log(0.75)))
    assert found["answer_entropy"].values.tolist() == [1.0, 0.5, 2.0]
    assert found["log_probability"].attrs["units"] == "nat"


def test_scores_need_the_probe_and_the_same_prompts():
    with pytest.raises(MetricError, match=r"scores: the reading holds \['greedy_token'\] of 3 prompts"):
        tasks.scores(reading()[["greedy_token"]], questions())
    with pytest.raises(MetricError, match=r"of 2 prompts; .* of 3 are needed\. Read questions\.prompts"):
        tasks.scores(reading().isel(prompt=[0, 1]), questions())


def test_rate_has_the_wilson_interval():
    # 8 of 10: (0.8 + z^2/20 +- z sqrt(0.16/10 + z^2/400)) / (1 + z^2/10) with z = 1.959964.
    found = tasks.rate(xr.DataArray([1.0] * 8 + [0.0] * 2 + [np.nan], dims="prompt"))
    assert float(found["value"]) == pytest.approx(0.8)
    assert float(found["low"]) == pytest.approx(0.49016, abs=1e-5)
    assert float(found["high"]) == pytest.approx(0.94332, abs=1e-5)
    assert int(found["n"]) == 10


def test_rate_over_nothing_is_nan_with_n_0():
    cells = xr.DataArray([[np.nan, np.nan], [1.0, 1.0]], dims=("edit", "prompt"), coords={"edit": ["a", "b"]})
    found = tasks.rate(cells)
    assert np.isnan(found["value"].sel(edit="a"))
    assert found["n"].values.tolist() == [0, 2]
    assert float(found["high"].sel(edit="b")) == pytest.approx(1.0)
    with pytest.raises(MetricError, match=r"rate: some values are neither 0 nor 1"):
        tasks.rate(cells * 0.5)
    with pytest.raises(MetricError, match=r"rate\(over='layer'\): dims are \['edit', 'prompt'\]"):
        tasks.rate(cells, over="layer")


def test_collapse_is_the_share_of_the_most_frequent_option():
    choice = xr.DataArray([[0, 0, 0, 0], [0, 1, 2, 1]], dims=("edit", "prompt"), coords={"edit": ["a", "b"]})
    assert tasks.collapse(choice).values.tolist() == [1.0, 0.5]


def test_evaluate_is_the_same_as_a_run_under_each_edit():
    edits = [sk.ScaleKeys(0.2, keys="first")]
    found = tasks.evaluate(model(), questions(), {"none": [], "scaled": edits}, batch_size=3)
    assert found["edit"].values.tolist() == ["none", "scaled"]
    for label, given in (("none", []), ("scaled", edits)):
        alone = tasks.scores(sk.run(model(), questions().prompts, [questions().probe], given), questions())
        for name in ("log_probability", "answer_entropy", "option_entropy"):
            np.testing.assert_allclose(found[name].sel(edit=label), alone[name], atol=1e-4)
    change = found["log_probability"].diff("edit")
    assert float(np.abs(change).max()) > 1e-2
    plain = tasks.evaluate(model(), questions(), batch_size=3)
    np.testing.assert_array_equal(plain["log_probability"], found["log_probability"].sel(edit=["none"]))
    by_gamma = tasks.evaluate(model(), questions(), sk.grid(sk.ScaleKeys, gamma=[0.2, 1.0]))
    assert by_gamma["correct"].dims == ("gamma", "prompt")
    np.testing.assert_allclose(
        by_gamma["log_probability"].sel(gamma=0.2), found["log_probability"].sel(edit="scaled"), atol=1e-4
    )
