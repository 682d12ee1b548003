import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from sinkscope.errors import SchemaError
from sinkscope.plot import grouped_bars


def table():
    return xr.DataArray(
        [[0.5, 0.25], [0.1, np.nan], [0.0, 0.75]], dims=("input", "model"), name="rate",
        coords={"input": ["natural", "random", "repeated"], "model": ["a", "b"]}, attrs={"units": "share of heads"},
    )  # fmt: skip


def test_one_bar_per_group_and_series_with_its_height():
    axes = grouped_bars(table())
    heights = [[bar.get_height() for bar in group] for group in axes.containers]
    assert np.array_equal(np.array(heights).T, table().values, equal_nan=True)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["natural", "random", "repeated"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert axes.get_ylabel() == "rate [share of heads]"


def test_bars_of_a_group_stand_beside_each_other():
    first, second = grouped_bars(table()).containers
    for left, right in zip(first, second, strict=True):
        assert left.get_x() + left.get_width() <= right.get_x() + 1e-9


def test_whiskers_reach_the_limits():
    values = table()
    axes = grouped_bars(values, interval=(values - 0.1, values + 0.2), reference=0.3)
    segments = [c for c in axes.collections if len(c.get_segments()) == 3]
    ends = np.array([seg[:, 1] for seg in segments[0].get_segments()])
    assert ends[:, 0] == pytest.approx(values.values[:, 0] - 0.1)
    assert ends[:, 1] == pytest.approx(values.values[:, 0] + 0.2)
    assert any(line.get_linestyle() == ":" and line.get_ydata()[0] == 0.3 for line in axes.lines)


def test_one_dimension_is_one_series_without_a_legend():
    values = table().isel(model=0)
    axes = grouped_bars(values, interval=(values, values + 0.1))
    assert [bar.get_height() for bar in axes.containers[0]] == [0.5, 0.1, 0.0]
    assert axes.get_legend() is None


def test_panels_of_the_same_series_have_one_legend():
    figure, (left, right, other) = plt.subplots(1, 3)
    for ax, values in ((left, table()), (right, 2 * table()), (other, table().assign_coords(model=["a", "c"]))):
        grouped_bars(values, ax=ax, title="a table")
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["a", "b"]
    assert right.get_legend() is None, "the names and colours are those of its neighbour"
    assert [text.get_text() for text in other.get_legend().get_texts()] == ["a", "c"]
    plt.close(figure)


def test_three_dimensions_are_refused():
    with pytest.raises(SchemaError, match=r"Select one of 'layer' with \.isel"):
        grouped_bars(table().expand_dims(layer=2, axis=2))


def test_limits_go_by_their_labels():
    values = table().isel(model=0)
    turned = values.isel(input=[2, 0, 1])
    lines = [
        np.array(grouped_bars(values, interval=(each - 0.1, each + 0.1)).collections[0].get_segments())
        for each in (values, turned)
    ]
    np.testing.assert_allclose(*lines)


def test_long_names_of_groups_do_not_lie_on_each_other():
    names = ["text alone", "random token in front", "beginning-of-text token in front", "beginning-of-text token at 8"]
    axes = grouped_bars(xr.DataArray([0.7, 0.7, 0.6, 0.7], {"arm": names}, "arm"), size="page")
    axes.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    assert [text.get_text().replace("\n", " ") for text in axes.get_xticklabels()] == names
