import warnings

import numpy as np
import pytest
import xarray as xr

from sinkscope.errors import MetricError, SinkscopeWarning
from sinkscope.metrics import implicit_sink, proxy_mass, sink_mask, sink_moves, sink_rate, sink_scores, sink_tokens

from .readings import A5, A5_SELF, from_maps, random_maps, with_edits


def two_heads():
    return from_maps([np.stack([A5, A5_SELF])[None]])


@pytest.mark.parametrize(
    ("epsilon", "expected"),
    [(0.2, [100, 50, 100, 50, 50]), (0.3, [50, 50, 100, 50, 50]), (0.5, [50, 0, 0, 0, 50])],
)
def test_sink_rate_is_the_papers_vector(epsilon, expected):
    rate = sink_rate(two_heads(), epsilon, position=None)
    np.testing.assert_allclose(100 * rate, expected)
    assert rate["key"].values.tolist() == [0, 1, 2, 3, 4]
    assert rate.attrs["definition"] == "gu2025"
    assert rate.attrs["reference"] == "gu2025"
    assert rate.attrs["units"] == "share of heads"


def test_sink_rate_at_the_first_token_is_a_scalar_that_counts_its_heads():
    rate = sink_rate(two_heads())
    assert rate.shape == ()
    assert float(rate) == 0.5
    assert rate.attrs["n"] == int(rate["n"]) == 2


def test_sink_rate_threshold_is_strict():
    ds = two_heads()
    ds["key_mass"] = ds["key_mass"] * 0 + 0.25
    assert float(sink_rate(ds, 0.25)) == 0.0
    assert float(sink_rate(ds, 0.2499)) == 1.0


def test_sink_rate_keeps_dims_that_are_not_averaged_over():
    ds = from_maps(random_maps())
    by_layer, by_head = sink_rate(ds, 0.3, over=("prompt", "head")), sink_rate(ds, 0.3, over="prompt")
    assert by_layer.dims == ("layer",)
    assert by_head.dims == ("layer", "head")
    mass = ds["key_mass"].values[..., 0]
    np.testing.assert_allclose(by_head, (mass > 0.3).mean(0))
    np.testing.assert_allclose(by_layer, (mass > 0.3).mean((0, 2)))
    np.testing.assert_allclose(float(sink_rate(ds)), (mass > 0.3).mean())


def test_sink_rate_leaves_out_prompts_that_are_too_short():
    ds = from_maps(random_maps((6, 3)))
    rate = sink_rate(ds, 0.1, position=[2, 4])
    assert rate["n"].values.tolist() == [24, 12]
    np.testing.assert_allclose(rate[1], (ds["key_mass"].values[0, ..., 4] > 0.1).mean())


def test_sink_rate_over_nothing_is_nan_with_n_0():
    ds = from_maps(random_maps((6, 3))).isel(prompt=[1])
    rate = sink_rate(ds, position=5)
    assert np.isnan(rate)
    assert int(rate["n"]) == 0


def test_sink_rate_keeps_the_edit_dim():
    ds = with_edits(from_maps(random_maps()))
    ds["key_mass"].loc[{"edit": "masked"}] = ds["key_mass"].sel(edit="masked") * 0
    rate = sink_rate(ds, 0.01)
    assert rate.dims == ("edit",)
    assert float(rate.sel(edit="masked")) == 0.0
    assert float(rate.sel(edit="base")) > 0


def test_sink_rate_says_which_position_does_not_exist():
    with pytest.raises(MetricError, match=r"sink_rate\(position=9\): the longest prompt has positions 0\.\.4"):
        sink_rate(two_heads(), position=9)


def test_a_missing_variable_names_the_probe_to_add():
    with pytest.raises(MetricError, match=r"sink_rate needs 'key_mass'; .*Add KeyMass\(\) to the probes"):
        sink_rate(two_heads().drop_vars("key_mass"))


def test_something_else_than_a_reading_is_refused():
    with pytest.raises(MetricError, match=r"sink_rate\(ds=\): expected a reading \(xarray\.Dataset\), got ndarray"):
        sink_rate(np.zeros(3))


def test_an_unknown_definition_lists_the_known_ones():
    with pytest.raises(MetricError, match=r"sink_tokens: no definition 'gu'.*act_relative.*act_absolute"):
        sink_mask(two_heads(), "gu")


def test_an_unknown_dim_lists_those_there_are():
    with pytest.raises(MetricError, match=r"sink_rate\(over=\['batch'\]\): \['batch'\] are not dims"):
        sink_rate(two_heads(), over="batch")


def test_sink_tokens_by_each_definition():
    ds = two_heads()
    first = np.array([0.66, 0.125, 0.35, 0.05, 0.05])
    np.testing.assert_array_equal(sink_mask(ds, min_queries=1)[0, 0, 0], first > 0.3)
    np.testing.assert_array_equal(sink_mask(ds, "act_absolute", min_queries=1)[0, 0, 0], first > 0.1)
    assert not sink_mask(ds, "act_relative", min_queries=1).any(), "5 / 5 is 1, and no key mass is above 1"
    np.testing.assert_array_equal(sink_mask(ds, "act_relative", threshold=1.0, min_queries=1)[0, 0, 0], first > 0.2)


def test_sink_tokens_relative_rule_uses_each_prompts_own_length():
    uniform = [np.tril(np.ones((t, t)))[None, None] / np.arange(1, t + 1)[:, None] for t in (10, 4)]
    found = sink_mask(from_maps(uniform), "act_relative", threshold=2.0, min_queries=1)
    assert found.dtype == bool
    mass = from_maps(uniform)["key_mass"].values[:, 0, 0]
    np.testing.assert_array_equal(found[0, 0, 0], mass[0] > 2 / 10)
    np.testing.assert_array_equal(found[1, 0, 0, :4], mass[1, :4] > 2 / 4)


def test_sink_tokens_are_never_padding_and_keep_roles():
    ds = from_maps(random_maps())
    found = sink_mask(ds, threshold=-1.0, min_queries=1)
    assert found.dims == ("prompt", "layer", "head", "key")
    assert found.sum("key").values[:, 0, 0].tolist() == [12, 8, 5]
    assert "token_role" in found.coords


def test_sink_tokens_survives_netcdf(tmp_path):
    sink_mask(two_heads(), min_queries=1).to_netcdf(tmp_path / "s.nc", engine="h5netcdf")
    with xr.open_dataarray(tmp_path / "s.nc", engine="h5netcdf") as back:
        assert back.attrs["threshold"] == 0.3


def test_implicit_sink_is_what_the_row_lacks():
    ds = from_maps([np.stack([A5, 0.75 * A5])[None], np.stack([A5, 0.25 * A5])[None][..., :3, :3]])
    missing = implicit_sink(ds)
    assert missing.dims == ("layer", "head")
    np.testing.assert_allclose(missing[0], [0.0, (5 * 0.25 + 3 * 0.75) / 8], atol=1e-7)
    assert missing["n"].values.tolist() == [[8, 8]]


def test_implicit_sink_names_its_probe():
    with pytest.raises(MetricError, match=r"implicit_sink needs 'row_sum'.*Add RowSum\(\)"):
        implicit_sink(two_heads().drop_vars("row_sum"))


def test_sink_tokens_leave_out_keys_that_few_queries_see():
    maps = [np.eye(10)[None, None], np.eye(4)[None, None]]
    ds = from_maps(maps).assign_attrs(causal=1)
    found = sink_mask(ds, threshold=0.05, min_queries=3)[:, 0, 0]
    assert found.values.tolist() == [[True] * 8 + [False] * 2, [True] * 2 + [False] * 8]
    assert sink_mask(ds, threshold=0.05, min_queries=1)[:, 0, 0].sum("key").values.tolist() == [10, 4]
    encoder = from_maps(maps).assign_attrs(causal=0)
    assert sink_mask(encoder, threshold=0.05, min_queries=3)[:, 0, 0].sum("key").values.tolist() == [10, 4]


def test_short_prompts_warn_because_even_attention_passes():
    even = from_maps([np.tril(np.ones((t, t)))[None, None] / np.arange(1, t + 1)[:, None] for t in (8, 30)])
    with pytest.warns(SinkscopeWarning, match=r"sink_rate: 1 of 2 prompts have 8 tokens or fewer, .* epsilon = 0\.3"):
        rate = sink_rate(even, over=("layer", "head"))
    assert rate.values.tolist() == [1.0, 0.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sink_rate(even.isel(prompt=[1]))
        sink_rate(even, 0.9)


def test_thresholds_that_are_no_numbers_are_refused():
    with pytest.raises(MetricError, match=r"sink_rate\(epsilon=nan\): give a finite number"):
        sink_rate(two_heads(), float("nan"))
    with pytest.raises(MetricError, match=r"sink_mask\(threshold=inf\): give a finite number"):
        sink_mask(two_heads(), threshold=float("inf"))


def test_sink_tokens_is_a_table_of_tokens():
    ds = from_maps([np.stack([A5, A5_SELF])[None]] * 2)
    ds["token"] = (("prompt", "key"), np.array([list("^abcd"), list("^xbcd")]))
    table = sink_tokens(ds, min_queries=1)
    assert list(table.columns) == ["token", "role", "position", "share", "mass", "even", "n"]
    first = table.set_index(["token", "position"])
    # A5 gives position 0 .66 and position 2 .35; A5_SELF gives position 2 a third of .7 + .2 + .1, and the last .6
    assert first.loc[("^", 0), "share"] == 0.5
    assert first.loc[("^", 0), "n"] == 2
    assert first.loc[("^", 0), "mass"] == pytest.approx((0.66 + 0.26) / 2)
    assert first.loc[("^", 0), "even"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 5)
    assert first.loc[("b", 2), "n"] == 2
    assert first.loc[("d", 4), "share"] == 0.5
    assert table["share"].is_monotonic_decreasing
    assert table.attrs["definition"] == "gu2025"


def test_the_last_tokens_of_a_decoder_are_left_out_by_default():
    near = 0.5 * np.eye(40) + 0.5 * np.eye(40, k=-1)
    near[0] = np.eye(40)[0]
    ds = from_maps([near[None, None]])
    assert sorted(sink_tokens(ds, min_queries=1)["position"]) == [37, 38, 39]
    assert len(sink_tokens(ds)) == 0


def masked(ds, target):
    """The reading after the first token was masked: its mass goes to ``target``, or is spread evenly."""
    mass = ds["key_mass"].copy(deep=True)
    mass[..., 0] = 0.05
    if target is None:
        mass[..., 1:] = 0.12
    else:
        mass[..., target] = 0.7
    return ds.assign(key_mass=mass)


def test_a_masked_sink_that_moves_is_told_with_its_place():
    ds = from_maps([np.stack([A5, A5])[None]] * 3)
    moved = sink_moves(ds, masked(ds, 1))
    assert (int(moved["origin"]), int(moved["target"]), bool(moved["moved"])) == (0, 1, True)
    np.testing.assert_array_equal(moved["rate_before"], [0, 0, 0])
    np.testing.assert_array_equal(moved["rate"], [1, 1, 1])
    assert not bool(sink_moves(ds, masked(ds, None))["moved"])
    assert not bool(sink_moves(ds, ds)["moved"])
    edits = xr.concat([masked(ds, 1), masked(ds, None)], dim=xr.Variable("edit", ["all", "late"]))
    assert sink_moves(ds, edits)["moved"].values.tolist() == [True, False]
    with pytest.raises(MetricError, match="sink_moves needs 'key_mass'"):
        sink_moves(ds, ds.drop_vars("key_mass"))


def test_proxy_mass_divides_rows_and_equals_key_mass_where_they_sum_to_one():
    ds = from_maps([np.stack([A5, A5_SELF])[None]])
    np.testing.assert_allclose(proxy_mass(ds), ds["key_mass"], rtol=1e-6)
    sigmoid = ds.assign(attention=ds["attention"] * np.array([32.0, 4.0, 9.0, 1.0, 2.0])[:, None])
    np.testing.assert_allclose(proxy_mass(sigmoid), ds["key_mass"], rtol=1e-6)
    assert proxy_mass(sigmoid).attrs["definition"] == "proxy"
    silent = ds.assign(attention=ds["attention"] * np.array([0.0, 0.0, 0.0, 1.0, 1.0])[:, None])
    np.testing.assert_allclose(proxy_mass(silent).values[0, 0, 0, 0], (0.5 + 0.4) / 2)
    with pytest.raises(MetricError, match=r"proxy_mass needs 'attention'.*Add AttentionMap"):
        proxy_mass(ds.drop_vars("attention"))


def test_sink_scores_are_the_largest_column_means_in_falling_order():
    scores = sink_scores(two_heads(), top=3)
    assert scores.dims == ("prompt", "layer", "head", "rank")
    columns = [np.tril(m).sum(0) / np.arange(5, 0, -1) for m in (A5, A5_SELF)]
    np.testing.assert_allclose(scores[0, 0], [np.sort(each)[::-1][:3] for each in columns])
    assert scores.attrs["reference"] == "binkowski2026"


def test_sink_scores_of_prompts_of_any_length_are_alike():
    ds = from_maps(random_maps((6, 3)))
    scores = sink_scores(ds, top=8)
    assert scores.sizes["rank"] == 8
    assert scores.notnull().sum("rank").isel(layer=0, head=0).values.tolist() == [6, 3]
    alone = sink_scores(from_maps(random_maps((6, 3))[1:]), top=8)
    np.testing.assert_allclose(scores[1], alone[0])
    with pytest.raises(MetricError, match=r"sink_scores\(top=0\): use a whole number"):
        sink_scores(ds, top=0)
