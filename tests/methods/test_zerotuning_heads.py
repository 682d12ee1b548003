from functools import cache

import numpy as np
import pytest
import xarray as xr

import sinkscope as sk
from sinkscope import tasks
from sinkscope.errors import EditError, MetricError
from sinkscope.methods.zerotuning_heads import choose_heads, estimate, helpful_heads, other_heads, profile


@cache
def model():
    return sk.load_model("zoo:lm-python")


@cache
def questions():
    return tasks.Questions.of(tasks.offline("copy", calibration=6, test=1).calibration, model())


def made(gain):
    gain = np.array(gain, float)
    words = np.select([np.isnan(gain), gain > 0, gain < 0], ["", "up", "down"], "tied")
    dims, coords = ("layer", "head"), {"layer": range(len(gain)), "head": range(gain.shape[1])}
    return xr.Dataset({"gain": (dims, gain), "head_class": (dims, words)}, coords=coords)


def places(chosen):
    return sorted(map(tuple, np.argwhere(chosen.values).tolist()))


@pytest.mark.parametrize(("by", "sign"), [("loss", -1), ("exact", 1)])
def test_each_head_alone_as_a_run_would_have_it(by, sign):
    found = profile(model(), questions(), sk.ScaleKeys(3.0, layers=[3]), by=by, batch_size=6)
    score = {"loss": "log_probability", "exact": "exact"}[by]
    readings = {
        head: sk.run(
            model(), questions().prompts, [questions().probe],
            [] if head is None else [sk.ScaleKeys(3.0, layers=[3], heads=[head])], batch_size=6,
        )
        for head in (None, 0, 2)
    }  # fmt: skip
    means = {
        h: float(tasks.scores(r, questions())[score].mean()) * (-1 if by == "loss" else 1) for h, r in readings.items()
    }
    for head in (0, 2):
        gain = float(found["gain"].sel(layer=3, head=head))
        assert gain == pytest.approx(sign * (means[head] - means[None]), abs=1e-5)
        word = "up" if gain > 1e-9 else "down" if gain < -1e-9 else "tied"
        assert found["head_class"].sel(layer=3, head=head) == word
    assert float(found[f"baseline_{by}"]) == pytest.approx(means[None], abs=1e-5)
    elsewhere = found.drop_sel(layer=3)
    assert elsewhere["gain"].isnull().all()
    assert (elsewhere["head_class"] == "").all()
    assert found.attrs["n"] == 6


PROFILE = made([[0.2, -0.1, 0.0], [-0.3, 0.1, np.nan], [-0.05, 0.0, -0.02]])


@pytest.mark.parametrize(
    ("options", "kind", "expected"),
    [
        ({"kind": "up"}, "up", [(0, 0), (1, 1)]),
        ({"kind": "down"}, "down", [(0, 1), (1, 0), (2, 0), (2, 2)]),
        ({}, "down", [(0, 1), (1, 0), (2, 0), (2, 2)]),
        ({"ties": "down"}, "down", [(0, 1), (0, 2), (1, 0), (2, 0), (2, 1), (2, 2)]),
        ({"share": 0.25}, "down", [(0, 1), (1, 0)]),  # 8 heads, so at most 2: those with the largest effect
        ({"kind": "all"}, "all", [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]),
    ],
)
def test_heads_of_a_class(options, kind, expected):
    found = choose_heads(PROFILE, **options)
    assert places(found) == expected
    assert (found.attrs["kind"], found.attrs["n"]) == (kind, len(expected))


def test_of_equal_numbers_the_class_that_moves_more_is_dominant():
    assert choose_heads(made([[0.1, -0.2]])).attrs["kind"] == "down"
    assert choose_heads(made([[0.3, -0.2]])).attrs["kind"] == "up"


def test_helpful_heads_gain_and_come_best_first():
    assert places(helpful_heads(PROFILE)) == [(0, 0), (1, 1)]
    assert places(helpful_heads(PROFILE, 1)) == [(0, 0)]
    assert not helpful_heads(made([[-0.1, 0.0]])).any()


def test_other_heads_are_as_many_and_another_set():
    among = PROFILE["head_class"] != ""
    chosen = choose_heads(PROFILE, ties="down")
    for seed in range(5):
        drawn = other_heads(chosen, among, seed)
        assert int(drawn.sum()) == 6
        assert (drawn != chosen).any()
        assert not drawn.sel(layer=1, head=2)
    assert other_heads(among, among) is None
    assert other_heads(chosen & False, among) is None


def test_what_is_refused():
    with pytest.raises(
        MetricError, match=r"profile\(by='f1'\): measures are \['accuracy', 'entropy', 'exact', 'loss', 'option_loss'\]"
    ):
        profile(model(), questions(), sk.ScaleKeys(2.0), by="f1")
    with pytest.raises(EditError, match=r"choose_heads\('sideways', ties='separate'\): kinds are 'up', 'down'"):
        choose_heads(PROFILE, "sideways")
    with pytest.raises(EditError, match=r"choose_heads\(share=0\): a share of the heads is above 0 and at most 1"):
        choose_heads(PROFILE, share=0)


@pytest.mark.parametrize("by", ["loss", "option_loss", "entropy"])
def test_the_estimate_is_the_profile_of_a_small_change(by):
    template = sk.ScaleKeys(1.02, layers=[2, 3])
    found, exact = (f(model(), questions(), template, by=by) for f in (estimate, profile))
    np.testing.assert_allclose(found["gain"], exact["gain"], atol=2e-5)
    assert float(abs(exact["gain"]).max()) > 2e-4
    assert found[f"baseline_{by}"] == pytest.approx(float(exact[f"baseline_{by}"]), abs=1e-5)
    assert set(found["head_class"].sel(layer=0).values.tolist()) == {""}


def test_an_estimate_needs_a_derivative():
    for by, gamma in (("accuracy", 1.5), ("loss", 0.0)):
        with pytest.raises(MetricError, match=rf"estimate\(by='{by}'\), gamma .*: a derivative needs"):
            estimate(model(), questions(), sk.ScaleKeys(gamma), by=by)
