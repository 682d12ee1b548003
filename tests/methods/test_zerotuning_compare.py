import json
from functools import cache

import numpy as np
import pytest
import xarray as xr

import sinkscope as sk
from sinkscope import tasks
from sinkscope.methods.zerotuning import ZeroTuningSettings
from sinkscope.methods.zerotuning_compare import BaselineSettings, act, compare_methods, pasta, table
from sinkscope.methods.zerotuning_heads import profile

FAST = ZeroTuningSettings(mode="loss", gammas=(0.3, 1.0), batch_size=8)


@cache
def model():
    return sk.load_model("zoo:lm-python")


@cache
def copying():
    return tasks.offline("copy", calibration=8, test=16)


@cache
def compared():
    return compare_methods(model(), copying(), FAST, BaselineSettings(draws=2))


def test_every_method_answers_the_same_test_questions():
    scores, result = compared()
    labels = ["none", "zerotuning", "act", "pasta", "pasta, sink kept"]
    labels += ["random heads 1", "random heads 2", "random token 1", "random token 2"]
    assert scores["edit"].values.tolist() == labels
    np.testing.assert_allclose(
        scores["log_probability"].sel(edit="zerotuning"), result.test["log_probability"].sel(edit="zerotuning"),
        atol=1e-4,
    )  # fmt: skip
    told = json.loads(scores.attrs["methods"])
    assert sk.edits.Edit.from_dict(told["zerotuning"][0]) == result.edit
    counts = [sum(len(heads) for heads in told[name][0]["heads"].values()) for name in ("zerotuning", "random heads 1")]
    assert counts[0] == counts[1] > 0
    assert told["random heads 1"] != told["random heads 2"]
    assert told["pasta, sink kept"][0]["protect_sink"] is True
    assert scores.attrs["chance"] == 0.25
    sk.schema.validate(scores)


def test_pasta_turns_to_the_focus_and_helps_copying():
    scores, _ = compared()
    edit = pasta(model(), copying(), FAST)(tasks.Questions.of(copying().test, model()))
    assert (edit.alpha, edit.mode) == (0.01, "exclude")
    assert 1 <= sum(len(heads) for heads in edit.heads.values()) <= 6  # a quarter of 24
    gain = scores["log_probability"].sel(edit="pasta") - scores["log_probability"].sel(edit="none")
    assert float(gain.mean()) > 0.1


def test_pasta_by_gradient_takes_a_quarter_of_the_heads():
    settings = ZeroTuningSettings(mode="loss", profile_by="gradient", gammas=(0.3, 1.0))
    edit = pasta(model(), copying(), settings)(tasks.Questions.of(copying().test, model()))
    assert 1 <= sum(len(heads) for heads in edit.heads.values()) <= 6
    scores = tasks.evaluate(
        model(), tasks.Questions.of(copying().test, model()), {"none": [], "pasta": [edit]}, batch_size=8
    )
    assert float(scores["log_probability"].diff("edit").mean()) > 0.1


def test_act_takes_the_heads_in_which_it_helps():
    edit = act(model(), copying(), FAST)
    assert (edit.threshold, edit.beta) == (0.1, 0.4)
    questions = tasks.Questions.of(copying().calibration, model())
    gain = profile(model(), questions, sk.CalibrateSinks(0.1, beta=0.4), by="loss", batch_size=8)["gain"]
    for layer in range(6):
        for head in range(4):
            helps = float(gain.sel(layer=layer, head=head)) > 1e-9
            assert (head in edit.heads.get(layer, ())) == helps


def answered(rows):
    """Rows of right (1) and wrong (0) answers by method; wrong ones are invalid."""
    values = np.array(list(rows.values()), float)
    dims, coords = ("edit", "prompt"), {"edit": list(rows), "prompt": range(values.shape[1])}
    return xr.Dataset({"correct": (dims, values), "invalid": (dims, 1 - values)}, coords=coords)


def test_the_table_averages_draws_and_compares_pairs():
    none, better = [1, 0] * 5, [1, 1, 1, 1, 1, 0, 1, 1, 1, 1]
    found = table(answered({"none": none, "zerotuning": better, "random heads 1": none, "random heads 2": better}))
    assert found["edit"].values.tolist() == ["none", "zerotuning", "random heads"]
    np.testing.assert_allclose(found["value"], [0.5, 0.9, 0.7])
    np.testing.assert_allclose(found["difference"], [np.nan, 0.4, 0.2])
    np.testing.assert_allclose(found["invalid"], [0.5, 0.1, 0.3])
    assert found["n"].values.tolist() == [10, 10, 10]
    # Wilson for 9 of 10; the mean of two draws is no count, so it has none.
    assert float(found["low"].sel(edit="zerotuning")) == pytest.approx(0.59585, abs=1e-5)
    assert np.isnan(found["low"].sel(edit="random heads"))
    # Signs of 4 changed pairs can fall in 16 ways, 2 of them as far out.
    assert float(found["p_value"].sel(edit="zerotuning")) == pytest.approx(2 / 16)
