import numpy as np
import pytest
import xarray as xr
from scipy import stats

from sinkscope.errors import MetricError
from sinkscope.metrics import smallest_effect


def test_an_effect_of_that_size_is_found_as_often_as_said():
    rng = np.random.default_rng(0)
    noise = rng.normal(scale=2.0, size=(4000, 20))
    noise *= 2.0 / noise.std(1, ddof=1, keepdims=True).mean()
    least = float(smallest_effect(xr.DataArray(noise, dims=("run", "prompt")), tests=10).mean())
    p = stats.ttest_1samp(noise + least, 0, axis=1).pvalue
    assert (p < 0.05 / 10).mean() == pytest.approx(0.8, abs=0.04)


def test_more_tests_need_a_larger_effect_and_two_pairs_tell_nothing():
    rng = np.random.default_rng(1)
    values = xr.DataArray(rng.normal(size=(270, 16)), dims=("head", "prompt"), attrs={"units": "nat"})
    many, one = smallest_effect(values), smallest_effect(values, tests=1)
    assert (many > 1.5 * one).all()
    assert (many.attrs["tests"], many.attrs["units"]) == (270, "nat")
    assert smallest_effect(values.isel(prompt=slice(2))).isnull().all()
    with pytest.raises(MetricError, match=r"smallest_effect\(over=\['query'\]\)"):
        smallest_effect(values, over="query")
