import numpy as np
import pytest
import xarray as xr

from sinkscope.errors import MetricError
from sinkscope.metrics import bimodality, valley_threshold
from sinkscope.metrics.bimodal import judge

TEN = [0.02, 0.03, 0.04, 0.05, 0.06, 0.30, 0.35, 0.40, 0.45, 0.50]


def samples():
    rng = np.random.default_rng(0)
    two = np.concatenate([rng.normal(0.05, 0.02, 60), rng.normal(0.40, 0.05, 40)])
    return two, rng.normal(0.2, 0.05, 100)


def test_ten_values_by_the_bic_gain():
    found = bimodality(TEN)
    assert bool(found["bimodal"])
    assert float(found["low_mean"]) == pytest.approx(0.04, abs=1e-4)
    assert float(found["high_mean"]) == pytest.approx(0.40, abs=1e-4)
    assert float(found["valley"]) == pytest.approx(0.1089, abs=1e-4)
    assert float(found["ashman_d"]) == pytest.approx(7.059, abs=1e-3)
    assert float(found["bic_gain"]) == pytest.approx(14.78, abs=1e-2)
    assert float(found["coefficient"]) == pytest.approx(0.4638, abs=1e-4), "below 5/9: it misses this case"
    assert float(found["dip_p"]) == pytest.approx(0.068, abs=1e-3), "and so does the dip test"
    assert found.attrs["verdict"] == "bimodal"
    assert found.attrs["n"] == 10


def test_hundred_values_with_two_humps():
    found = bimodality(samples()[0])
    assert bool(found["bimodal"])
    assert float(found["valley"]) == pytest.approx(0.1484, abs=1e-4)
    assert float(found["ashman_d"]) == pytest.approx(8.977, abs=1e-3)
    assert float(found["bic_gain"]) == pytest.approx(222.8, abs=0.1)
    assert float(found["coefficient"]) == pytest.approx(0.844, abs=1e-3)
    assert float(found["dip"]) == pytest.approx(0.1122, abs=1e-4)
    assert float(found["dip_p"]) == 0.0


def test_one_hump_is_flagged_although_ashman_would_split_it():
    one = samples()[1]
    found = bimodality(one)
    assert not bool(found["bimodal"])
    assert not bool(found["interior"])
    assert float(found["ashman_d"]) == pytest.approx(2.072, abs=1e-3)
    assert float(found["bic_gain"]) == pytest.approx(-9.21, abs=1e-2)
    assert float(found["dip_p"]) == pytest.approx(0.944, abs=1e-3)
    assert float(found["valley"]) == pytest.approx(0.1484, abs=1e-4)
    assert found.attrs["verdict"] == "unimodal"
    assert np.isnan(valley_threshold(one))


def test_one_verdict_per_layer_and_nan_is_ignored():
    two, one = samples()
    values = xr.DataArray(
        np.stack([np.append(two, np.nan), np.append(one, np.nan)]), dims=("layer", "head"), coords={"layer": [3, 7]}
    )
    values.attrs["units"] = "attention weight"
    found = bimodality(values, over="head")
    assert found["bimodal"].values.tolist() == [True, False]
    assert found["layer"].values.tolist() == [3, 7]
    assert found["n"].values.tolist() == [100, 100]
    assert found.attrs["verdict"] == "mixed"
    valley = valley_threshold(values, over="head")
    assert float(valley.sel(layer=3)) == pytest.approx(0.1484, abs=1e-4)
    assert np.isnan(valley.sel(layer=7))
    assert valley.attrs["units"] == "attention weight"


@pytest.mark.parametrize("values", [[], [0.1, 0.9, 0.1], [0.5] * 50, [np.nan] * 6])
def test_too_little_is_never_bimodal(values):
    found = bimodality(np.array(values))
    assert not bool(found["bimodal"])
    assert np.isnan(found["valley"])
    assert found.attrs["n"] == np.isfinite(values).sum()


def test_ties_do_not_warn():
    assert bool(bimodality([0.0] * 20 + [1.0] * 20)["bimodal"])


def test_a_reading_gives_its_largest_weights_and_one_without_them_says_which_probe() -> None:
    values = xr.DataArray(
        np.random.default_rng(0).uniform(size=(4, 3, 5, 6)), dims=("prompt", "layer", "head", "query")
    )
    ds = xr.Dataset({"max_attention": values})
    xr.testing.assert_identical(bimodality(ds), bimodality(values.mean("query")))
    with pytest.raises(
        MetricError, match=r"bimodality needs 'max_attention'; this reading holds \['entropy'\]. Add MaxA"
    ):
        bimodality(ds.rename(max_attention="entropy"))


def test_more_numbers_than_the_dip_test_has_a_table_for():
    rng = np.random.default_rng(0)
    one = rng.normal(0.2, 0.05, 90_000)
    two = np.concatenate([rng.normal(0.05, 0.02, 50_000), rng.normal(0.40, 0.05, 40_000)])
    assert judge(one).bimodal is False
    found = judge(two)
    assert found.bimodal is True
    assert found.n == 90_000
    assert found.dip_p < 0.001
