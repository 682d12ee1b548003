import numpy as np
import pytest
import xarray as xr
from made_reading import fake_reading

from sinkscope.errors import MetricError
from sinkscope.metrics import (
    background_overlap,
    background_share,
    image_centric_heads,
    max_visual_attention,
    patch_background,
    split_heads,
)

from .readings import ATTRS, from_maps

ROLES = ["bos", "user", "image", "image", "image", "image", "user", "user"]
ROW = [0.40, 0.05, 0.05, 0.20, 0.10, 0.05, 0.05, 0.10]
UNTOUCHED = [0.40, 0.05, 0.05, 0.40, 0.05, 0.05, 0.0, 0.0]
LITTLE = [0.80, 0.05, 0.05, 0.05, 0.0, 0.0, 0.0, 0.05]


def reading(rows=(ROW, UNTOUCHED, LITTLE)):
    maps = np.zeros((1, len(rows), 8, 8))
    maps[0, :, 7] = rows
    maps[0, :, 6, 0] = 1.0
    return from_maps([maps], roles=[ROLES])


def sinks():
    return xr.DataArray([[True, False, False, True, False, False, False, False]], dims=("prompt", "key"))


def test_image_centric_heads_are_the_sheets_vector():
    found = image_centric_heads(reading(), sinks=sinks())
    last = found.isel(prompt=0, layer=0, query=7)
    np.testing.assert_allclose(last["image_mass"], [0.4, 0.55, 0.1], rtol=1e-6)
    np.testing.assert_allclose(last["non_sink_share"], [0.5, 3 / 11, 0.5], rtol=1e-6)
    assert last["selected"].values.tolist() == [True, False, False]
    assert found.attrs["definition"] == "paper"
    assert found["selected"].dims == ("prompt", "layer", "head", "query")


def test_rows_before_the_end_of_the_image_are_not_judged():
    found = image_centric_heads(reading(), sinks=sinks())
    assert np.isnan(found["image_mass"].isel(query=slice(6))).all()
    assert not found["selected"].isel(query=slice(7)).any()
    assert (found["non_sink_share"].isel(query=6) == 0).all(), "no visual mass: the share is 0"


def test_the_two_readings_differ_off_one_half_and_without_a_visual_sink():
    one = reading([UNTOUCHED])
    assert not image_centric_heads(one, sinks=sinks(), rho=0.8)["selected"].any()
    assert image_centric_heads(one, "released_code", sinks=sinks(), rho=0.8)["selected"].any()
    no_sink = sinks() & False
    assert image_centric_heads(one, sinks=no_sink)["selected"].any()
    assert not image_centric_heads(one, "released_code", sinks=no_sink)["selected"].any()


def test_sinks_are_read_from_phi_at_the_block_input():
    ds = reading()
    phi = np.ones((1, 2, 8))
    phi[0, 0, 3] = 30.0
    ds = ds.assign_coords(site=["embed", "0.post"]).assign(phi=(("prompt", "site", "key"), phi))
    found = image_centric_heads(ds)
    np.testing.assert_allclose(found["non_sink_share"][0, 0, :, 7], [0.5, 3 / 11, 0.5], rtol=1e-6)


def test_image_centric_heads_name_their_probes():
    with pytest.raises(MetricError, match=r"needs 'attention'.*AttentionMap"):
        image_centric_heads(reading().drop_vars("attention"))
    with pytest.raises(MetricError, match=r"needs 'phi'.*Add SinkDims\(\)"):
        image_centric_heads(reading())


def with_max():
    values = np.full((2, 1, 3, 4), np.nan)
    values[0, 0, :, 2:] = [[0.1, 0.3], [0.5, 0.7], [0.0, 0.2]]
    values[1, 0, :, 2:3] = [[0.2], [0.4], [0.6]]
    return xr.Dataset({"max_attention": (("prompt", "layer", "head", "query"), values)}, attrs=ATTRS)


@pytest.mark.parametrize(
    ("reduce", "expected"), [("mean", [0.2, 0.5, 0.35]), ("max", [0.25, 0.55, 0.4]), ("last", [0.25, 0.55, 0.4])]
)
def test_max_visual_attention_reductions(reduce, expected):
    found = max_visual_attention(with_max(), reduce=reduce)
    assert found.dims == ("layer", "head")
    np.testing.assert_allclose(found[0], expected)
    assert (found["n"] == 2).all()


def test_max_visual_attention_errors():
    with pytest.raises(MetricError, match=r"reduce='sum'\): choose one of \['last', 'max', 'mean'\]"):
        max_visual_attention(with_max(), reduce="sum")


def heads():
    low, high = [0.02, 0.03, 0.04, 0.05, 0.06], [0.30, 0.35, 0.40, 0.45, 0.50]
    return xr.DataArray([low + high], dims=("layer", "head"), coords={"layer": [5], "head": np.arange(10)})


def test_split_heads_at_the_valley():
    found = split_heads(heads())
    assert found["kind"].values[0].tolist() == ["resink"] * 5 + ["vision"] * 5
    assert float(found["valley"]) == pytest.approx(0.1089, abs=1e-4)
    assert found.attrs["verdict"] == "bimodal"


def test_split_heads_takes_a_reading():
    evenly_spread = fake_reading(sink=False)
    values = evenly_spread["max_attention"].mean("query")
    xr.testing.assert_identical(split_heads(evenly_spread), split_heads(values))
    with pytest.raises(MetricError, match="split_heads needs 'max_attention'"):
        split_heads(evenly_spread[["key_mass"]])


def test_split_heads_splits_nothing_where_there_is_one_hump():
    rng = np.random.default_rng(0)
    rng.normal(size=100)
    found = split_heads(xr.DataArray(rng.normal(0.2, 0.05, (4, 25)), dims=("layer", "head")))
    assert (found["kind"] == "unsplit").all()
    assert np.isnan(found["valley"])
    assert found.attrs["verdict"] == "unimodal"


def test_split_heads_by_entropy_among_the_rest():
    entropy = xr.DataArray([[0.5, 0.55, 3.0, 3.1, 3.05, *[9.0] * 5]], dims=("layer", "head"), coords={"layer": [5]})
    low = xr.DataArray(np.linspace(0.02, 0.06, 30), dims="head")
    vmax = xr.concat([low, low + 0.4], dim="head")
    ent = xr.DataArray(np.r_[np.linspace(0.5, 0.6, 15), np.linspace(3, 3.2, 15), np.full(30, 1.0)], dims="head")
    found = split_heads(vmax, ent)
    assert found["kind"].values.tolist() == ["resink_isolated"] * 15 + ["resink_global"] * 15 + ["vision"] * 30
    assert 0.6 < float(found["entropy_valley"]) < 3.0
    with pytest.raises(MetricError, match="the labels of the inputs differ"):
        split_heads(heads(), entropy.assign_coords(layer=[6]))


def test_background_overlap_beside_all_visual_tokens():
    at = sinks().assign_coords(token_role=(("prompt", "key"), [ROLES]))
    at = at | at.copy(data=[[False] * 5 + [True] + [False] * 2])
    ground = xr.DataArray([[True, True, False, True, True, False, False, False]], dims=("prompt", "key"))
    found = background_overlap(at, ground)
    assert float(found["sinks_on_background"]) == 0.5
    assert float(found["tokens_on_background"]) == 0.5
    assert int(found["n_sinks"]) == 2
    assert int(found["n_tokens"]) == 4
    none = background_overlap(at & False, ground)
    assert np.isnan(none["sinks_on_background"])
    assert none.attrs["n"] == 0
    with pytest.raises(MetricError, match="needs the coordinate 'token_role'"):
        background_overlap(sinks(), ground)


def test_background_share_is_of_visual_attention():
    ds = reading([ROW])
    ground = xr.DataArray([[True, False, False, True, False, False, True, True]], dims=("prompt", "key"))
    found = background_share(ds, ground)
    mass = ds["key_mass"].values[0, 0, 0]
    assert found.dims == ("layer",)
    np.testing.assert_allclose(found, [mass[3] / mass[2:6].sum()], rtol=1e-6)


def test_patch_background_rules():
    mask = np.zeros((4, 6), bool)
    mask[0, 0] = True  # a quarter of patch (0, 0)
    mask[2:, 2:4] = True  # all of patch (1, 1)
    np.testing.assert_array_equal(patch_background(mask, 2, 3), [[1, 1, 1], [1, 0, 1]])
    np.testing.assert_array_equal(patch_background(mask, 2, 3, rule="any"), [[0, 1, 1], [1, 0, 1]])
    assert patch_background(np.ones((7, 5)), 3, 2).shape == (3, 2)


def test_patch_background_errors():
    with pytest.raises(MetricError, match=r"a mask of shape \(2, 2\) cannot be cut into 3 x 3 patches"):
        patch_background(np.ones((2, 2)), 3, 3)
    with pytest.raises(MetricError, match=r"patch_background\(rule='all'\): choose 'majority' or 'any'"):
        patch_background(np.ones((4, 4)), 2, 2, rule="all")
