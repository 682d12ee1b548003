import numpy as np
import pytest
import xarray as xr
from scipy import stats

from sinkscope.errors import MetricError, SinkscopeWarning
from sinkscope.metrics import Resampling, compare, rank_correlation, sink_rate
from sinkscope.plot import caption_text

from .readings import from_maps, random_maps, with_edits

FAST = Resampling(resamples=999)


def loss(effects=(0.0, 0.5), prompts=20, heads=3, seed=0):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(1, prompts, heads))
    noise = rng.normal(scale=0.1, size=(len(effects), prompts, heads))
    noise[0] = 0
    values = base + noise + np.array(effects)[:, None, None]
    return xr.DataArray(
        values, dims=("edit", "prompt", "head"), name="loss", attrs={"units": "nat"},
        coords={
            "edit": ["none", *[f"e{i}" for i in range(1, len(effects))]],
            "prompt": np.arange(prompts), "head": np.arange(heads),
        },
    )  # fmt: skip


def test_paired_difference_against_a_label():
    values = loss((0.0, 0.5, 0.0))
    found = compare(values, to="none", resampling=FAST)
    assert found["difference"].dims == ("edit", "head")
    assert found["edit"].values.tolist() == ["e1", "e2"]
    paired = values.sel(edit="e1") - values.sel(edit="none")
    np.testing.assert_allclose(found["difference"].sel(edit="e1"), paired.mean("prompt"))
    assert (found["n"] == 20).all()
    strong, weak = found.sel(edit="e1"), found.sel(edit="e2")
    assert (strong["low"] > 0.4).all()
    assert (strong["high"] < 0.6).all()
    assert (strong["low"] < strong["difference"]).all()
    assert (strong["q_value"] < 0.05).all()
    assert (weak["p_value"] > 0.01).all()
    assert found["difference"].attrs["units"] == "nat"
    assert found.attrs["to"] == "none"


def test_a_figure_of_a_difference_can_say_model_and_prompts():
    values = loss().assign_attrs(model_id="some/model")
    found = compare(values, to="none", resampling=FAST)
    assert caption_text(found["difference"]).startswith("model some/model; n = 20 prompts")


def test_statistics_are_scipys():
    values = loss()
    found = compare(values, to="none", test="wilcoxon")
    d = (values.sel(edit="e1") - values.sel(edit="none")).values
    expected = [stats.wilcoxon(d[:, h]).pvalue for h in range(3)]
    np.testing.assert_allclose(found["p_value"].values[0], expected)
    np.testing.assert_allclose(found["q_value"].values[0], stats.false_discovery_control(expected))
    one = stats.bootstrap((d[:, 0],), np.mean, rng=np.random.default_rng(0))
    np.testing.assert_allclose(found["low"].values[0, 0], one.confidence_interval.low, atol=0.01)


def test_the_ends_of_an_interval_are_in_order_at_any_level():
    values = xr.DataArray([252851469156352.0, 0.0, 0.0], dims="prompt")
    found = compare(values, to=values * 0.5 + 225575463333827.0, resampling=Resampling(31, 0, 0.015625))
    assert float(found["low"]) <= float(found["high"])


def test_one_resample_has_no_spread():
    with pytest.raises(MetricError, match="resample at least twice"):
        Resampling(1)


def test_a_small_sample_is_permuted_exactly():
    values = xr.DataArray([1.0, 2.0, 3.0, 4.0], dims="prompt")
    found = compare(values, to=xr.zeros_like(values), resampling=FAST)
    assert float(found["p_value"]) == 2 / 16
    assert float(found["difference"]) == 2.5


def test_same_seed_same_numbers():
    a, b = (compare(loss(), to="none", resampling=Resampling(500, seed=3)) for _ in range(2))
    xr.testing.assert_identical(a, b)


def test_two_readings_and_a_named_variable():
    ds = from_maps(random_maps((6, 6, 6)))
    other = ds.copy(deep=True)
    other["entropy"] = other["entropy"] - 1.0
    found = compare(ds.mean("query"), to=other.mean("query"), variable="entropy", resampling=FAST)
    np.testing.assert_allclose(found["difference"], 1.0, rtol=1e-6)
    np.testing.assert_allclose(found["low"], found["difference"], rtol=1e-6)
    assert found["difference"].dims == ("layer", "head")
    assert found.attrs["variable"] == "entropy"


def test_works_on_what_a_metric_returns():
    ds = with_edits(from_maps(random_maps((6, 7, 8))))
    found = compare(sink_rate(ds, 0.2, over=("layer", "head")), to="base", resampling=FAST)
    assert found["difference"].values.tolist() == [0.0]
    assert found["p_value"].values.tolist() == [1.0]
    assert found["low"].values.tolist() == found["high"].values.tolist() == [0.0]


def test_gaps_are_left_out_pair_by_pair():
    values = loss(heads=3).copy()
    values[1, 5:, 1] = np.nan
    values[1, 1:, 2] = np.nan
    found = compare(values, to="none", resampling=FAST).isel(edit=0)
    assert found["n"].values.tolist() == [20, 5, 1]
    assert np.isfinite(found["difference"]).all()
    assert np.isfinite(found["p_value"]).values.tolist() == [True, True, False]
    assert np.isfinite(found["low"]).values.tolist() == [True, True, False]
    assert np.isfinite(found["q_value"]).values.tolist() == [True, True, False]


def test_nothing_to_compare_is_nan_with_n_0():
    found = compare(loss() * np.nan, to="none")
    assert np.isnan(found["difference"]).all()
    assert (found["n"] == 0).all()


def test_errors():
    values = loss()
    with pytest.raises(MetricError, match=r"compare\(to='x'\): the labels of the dim 'edit' are \['none', 'e1'\]"):
        compare(values, to="x")
    with pytest.raises(MetricError, match=r"compare\(test='t'\): tests are 'permutation' and 'wilcoxon'"):
        compare(values, to="none", test="t")
    with pytest.raises(MetricError, match=r"compare\(variable=None\): this dataset holds \['a', 'b'\]"):
        compare(xr.Dataset({"a": values, "b": values}), to="none")
    with pytest.raises(MetricError, match="compare: the labels of the inputs differ"):
        compare(values, to=values.isel(prompt=slice(3)))
    with pytest.raises(MetricError, match="compare: the labels of the inputs differ"):
        compare(values.drop_vars("prompt"), to=values.drop_vars("prompt").isel(prompt=slice(3)))
    with pytest.raises(MetricError, match=r"'to' has the dims \['edit'\], which the readings lack"):
        compare(values.isel(edit=0), to=values)
    with pytest.raises(MetricError, match=r"compare\(readings=\): expected a reading .*, got list"):
        compare([1.0], to="none")


def test_rank_correlation_is_scipys():
    rng = np.random.default_rng(0)
    a = xr.DataArray(rng.normal(size=(4, 6)), dims=("layer", "head"), coords={"layer": range(4)})
    b = (a + rng.normal(size=(4, 6))).transpose("head", "layer")
    for method, function in (("spearman", stats.spearmanr), ("kendall", stats.kendalltau)):
        found = rank_correlation(a, b, method=method)
        expected = function(a.values.ravel(), b.transpose("layer", "head").values.ravel())
        np.testing.assert_allclose([found["correlation"], found["p_value"]], expected)
        assert found.attrs["definition"] == method
    by_layer = rank_correlation(a, b, over="head")
    assert by_layer["correlation"].dims == ("layer",)
    assert by_layer["n"].values.tolist() == [6] * 4


def test_rank_correlation_of_constants_is_nan():
    a = xr.DataArray([1.0, 2.0, 3.0, np.nan], dims="head")
    found = rank_correlation(a, xr.ones_like(a))
    assert np.isnan(found["correlation"])
    assert int(found["n"]) == 3


def test_rank_correlation_errors():
    a = xr.DataArray(np.ones((2, 3)), dims=("layer", "head"))
    with pytest.raises(MetricError, match=r"dims differ, \['layer', 'head'\] and \['head'\]"):
        rank_correlation(a, a[0])
    with pytest.raises(MetricError, match="rank_correlation: no definition 'pearson'"):
        rank_correlation(a, a, method="pearson")


def test_what_is_selected_first_is_corrected_alone():
    values = loss((0.0, 0.3), heads=40)
    later = compare(values, to="none", resampling=FAST).sel(head=0)
    first = compare(values, to="none", sel={"head": 0}, resampling=FAST)
    assert first.attrs["family"] == "1 test (1 edit)"
    assert first.attrs["tests"] == 1
    np.testing.assert_allclose(first["q_value"], first["p_value"])
    np.testing.assert_allclose(first["difference"], later["difference"])
    plain = loss((0.0, 0.0), heads=40)
    whole = compare(plain, to="none", resampling=FAST)
    assert whole.attrs["family"] == "40 tests (1 edit, 40 head)"
    assert float(whole["q_value"].sel(head=3).item()) > float(
        compare(plain, to="none", sel={"head": 3}, resampling=FAST)["q_value"].item()
    )


def test_positions_are_selected_where_a_dim_has_no_labels():
    ds = from_maps(random_maps((6, 6, 6, 6, 6, 6)))
    found = compare(ds["key_mass"], to=ds["key_mass"] * 0, sel={"key": 0, "layer": 2}, resampling=FAST)
    assert found["difference"].dims == ("head",)
    np.testing.assert_allclose(found["difference"], ds["key_mass"].sel(layer=2)[..., 0].mean("prompt"), rtol=1e-6)


def test_a_selection_that_is_not_there_says_what_is():
    with pytest.raises(MetricError, match=r"compare\(sel=\{'head': 9\}\): head has no 9; there are \[0, 1, 2\]"):
        compare(loss(), to="none", sel={"head": 9})
    with pytest.raises(MetricError, match=r"\['key'\] are not dims; there are \['edit', 'prompt', 'head'\]"):
        compare(loss(), to="none", sel={"key": 0})


def test_too_few_pairs_say_so():
    with pytest.warns(
        SinkscopeWarning, match=r"with n = 4 pairs no p- or q-value can be below 0\.125.*at least 6 pairs"
    ):
        found = compare(loss(prompts=4), to="none", resampling=FAST)
    assert found.attrs["smallest_p"] == found.attrs["smallest_q"] == 2 / 16
    assert found.attrs["smallest_q_alone"] == 3 * 2 / 16
    assert float(found["p_value"].min()) == found.attrs["smallest_p"]
    many = compare(loss(prompts=20), to="none", resampling=FAST)
    assert many.attrs["smallest_p"] == 2 / 1000
    assert float(many["p_value"].min()) >= many.attrs["smallest_p"]


def test_readings_of_other_prompts_are_no_pairs():
    values = xr.DataArray([1.0, 2.0, 4.0], dims="prompt", coords={"prompt_hash": ("prompt", ["a", "b", "c"])})
    other = values.assign_coords(prompt_hash=("prompt", ["a", "x", "y"]))
    with pytest.raises(MetricError, match=r"compare: prompt 1 of the readings is not prompt 1 of 'to' \(2 of 3 differ"):
        compare(values, to=other)
    assert int(compare(values, to=other.drop_vars("prompt_hash"))["n"]) == 3
    assert int(compare(values, to=values + 1)["n"]) == 3


def test_a_label_of_a_grid_is_no_test_against_itself():
    rng = np.random.default_rng(3)
    loss = xr.DataArray(
        rng.normal(size=(3, 2, 12)), dims=("gamma", "head", "prompt"), coords={"gamma": [0.5, 1.0, 2.0]}, name="loss"
    )
    loss[0] -= 3.0
    found = compare(loss, to={"gamma": 1.0}, resampling=FAST)
    others = loss.sel(gamma=[0.5, 2.0])
    beside = compare(others, to=loss.sel(gamma=1.0, drop=True), resampling=FAST)
    for name in ("difference", "p_value", "q_value"):
        np.testing.assert_allclose(found[name].sel(gamma=[0.5, 2.0]), beside[name])
    assert found.attrs["tests"] == beside.attrs["tests"] == 4
    assert found.attrs["to"] == "gamma = 1.0"
    assert not found["difference"].sel(gamma=1.0).any()
    assert found["q_value"].sel(gamma=1.0).isnull().all()
    # With the untouched runs among the tests the same effect is corrected for two tests more.
    assert float(compare(loss, to=loss.sel(gamma=1.0, drop=True), resampling=FAST)["q_value"][0, 0]) > float(
        found["q_value"][0, 0]
    )
    one = compare(loss, to={"gamma": 1.0}, sel={"gamma": 0.5}, resampling=FAST)
    np.testing.assert_allclose(one["difference"], beside["difference"].sel(gamma=0.5))
    assert one.attrs["tests"] == 2
    assert compare(loss, to={"gamma": 1.0}, sel={"gamma": [1.0, 2.0]}, resampling=FAST).attrs["tests"] == 2


@pytest.mark.parametrize(
    ("to", "wanted"),
    [
        ({"gama": 1.0}, r"name one label of some of the labelled dims \['gamma'\]"),
        ({}, "name one label of some"),
        ({"head": 0}, "name one label of some"),
        ({"gamma": 3.0}, r"gamma has no 3.0; there are \[0.5, 1.0\]"),
        ({"gamma": [0.5, 1.0]}, r"gamma has no \[0.5, 1.0\]"),
        ({"gamma": True}, "gamma has no True"),
    ],
)
def test_a_label_that_a_grid_lacks_is_named(to, wanted):
    loss = xr.DataArray(np.zeros((2, 2, 7)), dims=("gamma", "head", "prompt"), coords={"gamma": [0.5, 1.0]})
    with pytest.raises(MetricError, match=wanted):
        compare(loss, to=to)
    with pytest.raises(MetricError, match="compare along another dim"):
        compare(loss, to={"gamma": 1.0}, over="gamma")


def test_the_baseline_of_a_grid_is_a_variable_of_its_own():
    rng = np.random.default_rng(0)
    plain = xr.DataArray(rng.normal(size=8), dims="prompt", coords={"prompt": np.arange(8)})
    changed = [plain.values + rng.normal(mean, 0.1, size=8) for mean in (0.0, 1.0)]
    swept = xr.Dataset(
        {"loss": (("gamma", "prompt"), changed)}, coords={"gamma": [1.0, 2.0], "prompt": plain["prompt"]}
    )
    swept["loss_baseline"] = plain
    found = compare(swept, to="baseline", resampling=FAST)
    assert found["difference"].sel(gamma=2.0).item() == pytest.approx((changed[1] - plain.values).mean())
    assert found["difference"].dims == ("gamma",)
    assert found.attrs["to"] == "baseline"
    xr.testing.assert_identical(found, compare(swept, to="baseline", variable="loss", resampling=FAST))
    wanted = r"keeps the run without edits as a variable, here 'loss_baseline'.*compare\(swept.mean\('query'\), to="
    with pytest.raises(MetricError, match=wanted):
        compare(swept["loss"], to="baseline")
    with pytest.raises(MetricError, match=wanted):
        compare(swept[["loss"]], to="baseline")


@pytest.mark.parametrize("kind", ["complex128", "datetime64[s]", "U3"])
def test_what_has_no_difference_is_refused(kind):
    """Of complex numbers the difference would be that of their real parts."""
    values = xr.DataArray(np.zeros((2, 7)).astype(kind), dims=("edit", "prompt"), coords={"edit": ["a", "b"]}, name="x")
    with pytest.raises(MetricError, match=r"compare: x are of type .*\. Give real numbers"):
        compare(values, to="a")
