import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_rgba

from sinkscope import plot
from sinkscope.errors import SchemaError


def grid(values, **attrs):
    values = np.asarray(values)
    coords = {"layer": np.arange(values.shape[0]) + 2, "head": np.arange(values.shape[1])}
    return xr.DataArray(values, dims=("layer", "head"), coords=coords, name="effect", attrs=attrs)


def test_sink_map_draws_the_numbers():
    ax = plot.sink_map(grid([[0.1, 0.2, 0.3], [0.4, np.nan, 0.6]]))
    image = ax.images[0]
    np.testing.assert_allclose(image.get_array().filled(-1), [[0.1, 0.2, 0.3], [0.4, -1, 0.6]])
    assert image.get_clim() == (0.0, 1.0)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("head", "layer")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["2", "3"]
    assert ax.get_ylim() == (-0.5, 1.5), "layer 0 lies at the bottom"


def test_sink_map_takes_any_order_of_dims():
    values = np.arange(6.0).reshape(2, 3) / 6
    np.testing.assert_allclose(plot.sink_map(grid(values).T).images[0].get_array(), values)


def test_missing_heads_are_grey():
    image = plot.sink_map(grid([[np.nan, 0.5]])).images[0]
    assert image.get_cmap().get_bad() == pytest.approx(to_rgba("#D9D9D9"))


def test_sink_map_refuses_prompts():
    with pytest.raises(SchemaError, match=r"sink_map: draws \('layer', 'head'\), this array has \('prompt',"):
        plot.sink_map(grid([[0.1]]).expand_dims("prompt"))


def test_entropy_map_runs_from_zero_to_the_largest():
    ax = plot.entropy_map(grid([[0.5, 2.5]]))
    assert ax.images[0].get_clim() == (0.0, 2.5)
    assert ax.get_figure().axes[1].get_ylabel() == "entropy [nat]"


def test_entropy_map_without_numbers():
    assert plot.entropy_map(grid([[np.nan, np.nan]])).images[0].get_clim() == (0.0, 1.0)


def test_effect_map_is_symmetric_and_marks_heads():
    values = [[0.1, -0.4], [0.0, 0.2]]
    ax = plot.effect_map(grid(values, units="nat"), marked=grid([[False, True], [False, True]]))
    assert ax.images[0].get_clim() == (-0.4, 0.4)
    assert ax.collections[0].get_offsets().tolist() == [[1.0, 0.0], [1.0, 1.0]]
    assert ax.get_figure().axes[1].get_ylabel() == "effect [nat]"


def test_the_layers_and_heads_of_a_grid_are_layers_and_heads():
    edited = grid([[0.1, -0.4], [0.0, 0.2]]).rename(layer="edit_layer", head="edit_head")
    ax = plot.effect_map(edited, marked=edited > 0.15)
    assert ax.images[0].get_array().tolist() == [[0.1, -0.4], [0.0, 0.2]]
    assert ax.collections[0].get_offsets().tolist() == [[1.0, 1.0]]


def test_head_class_map_has_one_colour_per_class():
    ax = plot.head_class_map(grid([["sink", "vision"], ["", "sink"]]))
    assert ax.images[0].get_array().tolist() == [[0, 1], [-1, 0]]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["sink", "vision", "not classified"]


def attention(count=4, real=3):
    values = np.tril(np.ones((count, count))) / np.arange(1, count + 1)[:, None]
    values[real:] = np.nan
    values[:, real:] = np.nan
    coords = {"token": ("key", ["<s>", " $5", "\n", ""]), "layer": 3, "head": 1}
    return xr.DataArray(values, dims=("query", "key"), coords=coords)


def test_attention_map_cuts_the_padding_and_labels_tokens():
    ax = plot.attention_map(attention())
    np.testing.assert_allclose(ax.images[0].get_array(), [[1, 0, 0], [0.5, 0.5, 0], [1 / 3] * 3])
    assert ax.images[0].get_clim() == (0.0, 1.0)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["<s>", r"␣\$5", "↵"]
    assert ax.get_title(loc="left") == "Layer 3, head 1"


def test_attention_map_takes_tokens_by_hand():
    _, axes = plt.subplots()
    ax = plot.attention_map(attention(), tokens=["a", "b", "c", "d"], title="mine", ax=axes)
    assert ax is axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b", "c"]
    assert ax.get_title(loc="left") == "mine"
