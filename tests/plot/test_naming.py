"""Names of lines stand where the lines end, apart from each other and outside the axes."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from sinkscope import plot
from sinkscope.plot.naming import LineNames, apart, drop_names, legend_above, names_of

LINES = xr.DataArray(
    [[0.0, 1.0, 0.50], [0.2, 0.1, 0.51], [1.0, 0.4, np.nan], [0.1, 0.0, 0.0]],
    dims=("arm", "layer"), coords={"arm": ["first", "second", "third", "fourth"]},
)  # fmt: skip


def boxes(axes):
    axes.figure.canvas.draw()
    (names,) = [each for each in axes.artists if isinstance(each, LineNames)]
    return {text.get_text(): text.get_window_extent() for text in names.texts}


def test_names_are_beside_the_axes_by_height_and_do_not_touch():
    axes = plot.layer_profile(LINES, size="page")
    found = boxes(axes)
    assert all(box.x0 > axes.bbox.x1 for box in found.values())
    assert all(box.x1 <= axes.figure.bbox.x1 for box in found.values()), "the layout leaves room for them"
    ordered = sorted(found.values(), key=lambda box: box.y0)
    assert all(lower.y1 <= upper.y0 + 1 for lower, upper in itertools.pairwise(ordered))
    assert max(found, key=lambda name: found[name].y0) == "second"
    assert min(found, key=lambda name: found[name].y0) == "fourth"


def test_a_line_that_ends_early_is_named_at_its_last_point():
    axes = plot.layer_profile(LINES.sel(arm=["third", "fourth"]))
    third = boxes(axes)["third"]
    wanted = axes.transData.transform((0, 0.4))[1]
    assert (third.y0 + third.y1) / 2 == pytest.approx(wanted, abs=third.height)


def test_names_follow_limits_that_change_later_and_can_be_dropped():
    axes = plot.layer_profile(LINES.sel(arm=["first", "fourth"]))
    before = boxes(axes)["first"].y0
    axes.set_ylim(0, 10)
    assert boxes(axes)["first"].y0 < before
    drop_names(axes)
    assert names_of(axes) == []


def test_heights_are_moved_no_more_than_needed():
    assert apart(np.array([5.0, 1.0, 9.0]), 2.0, (0.0, 10.0)).tolist() == [5.0, 1.0, 9.0]
    assert apart(np.array([5.0, 5.0]), 2.0, (0.0, 10.0)).tolist() == [4.0, 6.0]
    assert apart(np.array([10.0, 10.0]), 2.0, (0.0, 10.0)).tolist() == [8.0, 10.0]


def test_a_legend_above_is_between_title_and_axes():
    with plot.theme("page"):
        figure, axes = plt.subplots()
        for i in range(9):
            axes.plot([0, 1], [0, i], label=f"a long name, number {i}")
        axes.set_title("Title", loc="left")
        legend_above(axes)
        figure.canvas.draw()
    box = axes.get_legend().get_window_extent()
    assert axes.bbox.y1 <= box.y0
    (title,) = axes.findobj(lambda artist: getattr(artist, "get_text", str)() == "Title")
    assert title.get_window_extent().y0 >= box.y1 - 2
