import numpy as np
import pytest
import xarray as xr

from sinkscope.errors import MetricError
from sinkscope.metrics import sink_mask, value_drain

from .readings import from_maps, random_maps, with_edits


def reading(kv_heads=2):
    ds = from_maps(random_maps((6, 4), layers=2, heads=4))
    rng = np.random.default_rng(1)
    norm = rng.uniform(1, 2, (2, 2, kv_heads, 6))
    norm[..., 0] = 0.1
    norm[1, ..., 4:] = np.nan
    ds["value_norm"] = (("prompt", "layer", "kv_head", "key"), norm.astype("float32"))
    return ds.assign_coords(kv_of_head=("head", np.arange(4) * kv_heads // 4))


def test_drain_is_the_sink_over_the_median_of_the_others():
    ds = reading()
    drain = value_drain(ds)
    norm = ds["value_norm"].values.astype(float)
    expected = np.mean(
        [norm[0, ..., 0] / np.median(norm[0, ..., 1:], -1), norm[1, ..., 0] / np.median(norm[1, ..., 1:4], -1)], 0
    )
    assert drain.dims == ("layer", "kv_head")
    np.testing.assert_allclose(drain, expected)
    assert (drain < 0.11).all()
    assert drain.attrs["units"] == "ratio"
    assert drain["n"].values.tolist() == [[2, 2], [2, 2]]


def test_drain_keeps_prompts_and_edits():
    ds = with_edits(reading())
    assert value_drain(ds, over=()).dims == ("edit", "prompt", "layer", "kv_head")


def test_sinks_by_head_are_joined_to_the_kv_head_that_serves_them():
    ds = reading()
    sinks = xr.zeros_like(sink_mask(ds, min_queries=1))
    sinks[0, :, 3, 2] = True  # head 3 is served by kv head 1
    drain = value_drain(ds, sinks, over=())
    norm = ds["value_norm"].values.astype(float)
    assert np.isnan(drain.sel(prompt=0).isel(kv_head=0)).all()
    others = np.delete(norm[0, 0, 1], 2)
    np.testing.assert_allclose(drain.values[0, 0, 1], norm[0, 0, 1, 2] / np.median(others))
    assert drain["n"].values[1].sum() == 0


def test_several_sinks_count_by_their_mean():
    ds = reading()
    sinks = xr.DataArray(np.arange(6) < 2, dims="key")
    norm = ds["value_norm"].values.astype(float)
    np.testing.assert_allclose(
        value_drain(ds, sinks, over=()).values[0, 0, 0], norm[0, 0, 0, :2].mean() / np.median(norm[0, 0, 0, 2:])
    )


def test_one_token_prompts_have_no_drain():
    ds = reading().isel(key=[0], query=[0])
    drain = value_drain(ds)
    assert np.isnan(drain).all()
    assert drain.attrs["n"] == 0


def test_errors():
    ds = reading()
    with pytest.raises(MetricError, match=r"value_drain\(sinks=7\): the longest prompt has positions 0\.\.5"):
        value_drain(ds, 7)
    with pytest.raises(MetricError, match=r"sinks have dims \['layer'\], expected a 'key' dim"):
        value_drain(ds, xr.DataArray([True, False], dims="layer"))
    with pytest.raises(MetricError, match=r"lacks the coordinate 'kv_of_head'.*sinks\.any\('head'\)"):
        value_drain(ds.drop_vars("kv_of_head"), sink_mask(ds, min_queries=1))
    with pytest.raises(MetricError, match="the labels of the inputs differ"):
        value_drain(ds, sink_mask(ds, min_queries=1).any("head").isel(prompt=[0]))
    with pytest.raises(MetricError, match="needs the coordinate 'token_role'"):
        value_drain(ds.drop_vars("token_role"))
