import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_rgba

from sinkscope import plot
from sinkscope.errors import SchemaError
from sinkscope.plot.naming import names_of
from sinkscope.plot.theme import OTHER, ROLE_COLOURS, SINK


def two_groups(depth="layer"):
    labels = [0, 1, 2] if depth == "layer" else ["embed", "0.mid", "0.post"]
    return xr.DataArray(
        [[1.0, 2.0, 4.0], [1.0, 1.0, 0.0]], dims=("group", depth), coords={"group": ["sink", "others"], depth: labels}
    )


def test_layer_profile_draws_a_line_per_label():
    array = two_groups()
    ax = plot.layer_profile(array, band=(array - 0.5, array + 0.5), ylabel="norm")
    assert [line.get_ydata().tolist() for line in ax.lines] == array.values.tolist()
    assert [line.get_color() for line in ax.lines] == [SINK, OTHER]
    assert names_of(ax) == ["sink", "others"]
    corners = ax.collections[0].get_paths()[0].vertices
    assert (corners[:, 1].min(), corners[:, 1].max()) == (0.5, 4.5)
    assert ax.get_ylim()[0] == 0
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("layer", "norm")


def test_layer_profile_of_one_line_has_no_legend():
    ax = plot.layer_profile(xr.DataArray([0.2, -0.4], dims="layer", name="share", attrs={"units": "nat"}))
    assert ax.lines[0].get_ydata().tolist() == [0.2, -0.4]
    assert names_of(ax) == []
    assert ax.get_ylim()[0] < -0.4
    assert ax.get_ylabel() == "share [nat]"


def test_layer_profile_refuses_two_more_dims():
    with pytest.raises(SchemaError, match=r"one line per label of one dimension beside 'layer'.*\.mean\('group'\)"):
        plot.layer_profile(two_groups().expand_dims("prompt", -1))
    with pytest.raises(SchemaError, match=r"draws over \('layer', 'site'\), this array has \('head',\)"):
        plot.layer_profile(xr.DataArray([1.0], dims="head"))


def test_norm_profile_is_logarithmic_and_leaves_zero_out():
    ax = plot.norm_profile(two_groups("site"))
    assert ax.get_yscale() == "log"
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [1.0, 1.0, np.nan])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["embed", "0.mid", "0.post"]


def test_top_values_draw_three_ranks_and_the_median():
    top = xr.DataArray([[9.0, 5.0, 4.0, 3.0], [900.0, 50.0, 4.0, 3.0]], dims=("site", "rank"))
    ax = plot.top_values_by_layer(top, xr.DataArray([0.5, 0.0], dims="site"))
    assert [line.get_ydata().tolist() for line in ax.lines[:3]] == [[9.0, 900.0], [5.0, 50.0], [4.0, 4.0]]
    np.testing.assert_array_equal(ax.lines[3].get_ydata(), [0.5, np.nan])
    assert names_of(ax) == ["top 1", "top 2", "top 3", "median"]
    assert ax.get_yscale() == "log"


def test_role_shares_are_stacked_to_the_row_sum():
    share = xr.DataArray(
        [[0.7, 0.3, 0.0], [0.2, 0.5, np.nan]], dims=("layer", "role"), coords={"role": ["bos", "text", "image"]}
    )
    ax = plot.role_share_by_layer(share)
    bars = [(p.get_y(), p.get_height()) for p in ax.patches]
    np.testing.assert_allclose(bars, [(0.0, 0.7), (0.0, 0.2), (0.7, 0.3), (0.2, 0.5)])
    assert ax.patches[0].get_facecolor() == to_rgba(ROLE_COLOURS["bos"])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["text", "bos"], "a role with no share is left out"
    assert ax.get_ylim() == (0.0, 1.0)
