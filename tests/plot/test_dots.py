import numpy as np
import pytest
import xarray as xr

from sinkscope import metrics, tasks
from sinkscope.errors import SchemaError
from sinkscope.plot import interval_dots
from sinkscope.plot.theme import PALETTE


def table():
    return xr.DataArray(
        [[0.5, 0.25], [0.1, np.nan], [-0.2, 0.75]], dims=("way", "model"), name="change",
        coords={"way": ["masked", "scaled", "moved"], "model": ["a", "b"]}, attrs={"units": "nat"},
    )  # fmt: skip


def dots(axes):
    return [np.asarray(each.get_offsets()) for each in axes.collections if hasattr(each, "get_sizes")]


def whiskers(axes):
    return [np.array(each.get_segments()) for each in axes.collections if hasattr(each, "get_segments")]


def test_a_dot_per_row_and_series_at_its_value_the_first_row_on_top():
    axes = interval_dots(table())
    first, second = dots(axes)
    assert first[:, 0] == pytest.approx([0.5, 0.1, -0.2])
    assert second[[0, 2], 0] == pytest.approx([0.25, 0.75])
    assert np.ma.masked_invalid(second[:, 0]).count() == 2
    assert axes.transData.transform(first[0])[1] > axes.transData.transform(first[2])[1]
    assert (first[:, 1] < second[:, 1]).all(), "series do not lie on each other"
    assert [text.get_text() for text in axes.get_yticklabels()] == ["masked", "scaled", "moved"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert axes.get_xlabel() == "change [nat]"


def test_whiskers_reach_the_limits_and_controls_stand_below_in_grey():
    one = table().isel(model=0)
    axes = interval_dots(one, interval=(one - 0.1, one + 0.3), controls=one * 0 + 0.02, reference=0.4)
    (ends,) = whiskers(axes)
    assert ends[:, 0, 0] == pytest.approx(one.values - 0.1)
    assert ends[:, 1, 0] == pytest.approx(one.values + 0.3)
    own, control = dots(axes)
    assert control[:, 0] == pytest.approx([0.02] * 3)
    assert (control[:, 1] > own[:, 1]).all()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["control"]
    (line,) = axes.lines
    assert (line.get_linestyle(), line.get_xdata()[0]) == (":", 0.4)


def test_what_a_comparison_or_a_rate_returned_is_drawn_with_its_interval():
    right = xr.DataArray(
        np.random.default_rng(0).random((2, 40)) < [[0.3], [0.8]], dims=("way", "prompt"), coords={"way": ["a", "b"]}
    ).astype(float)
    share = tasks.rate(right)
    axes = interval_dots(share)
    assert dots(axes)[0][:, 0] == pytest.approx(share["value"].values)
    assert whiskers(axes)[0][:, 1, 0] == pytest.approx(share["high"].values)
    assert axes.get_legend() is None
    assert not axes.lines, "a share has no place of no effect"
    found = metrics.compare(right, to=xr.zeros_like(right))
    axes = interval_dots(found, title="Change")
    assert whiskers(axes)[0][:, 0, 0] == pytest.approx(found["low"].values)
    assert axes.get_title(loc="left") == "Change"
    assert len(axes.lines) == 1


def test_given_axes_are_used_and_series_have_the_colours_of_the_theme():
    first = interval_dots(table().isel(model=0))
    again = interval_dots(table(), ax=first)
    assert again is first
    faces = [each.get_facecolor()[0] for each in first.collections if hasattr(each, "get_sizes")]
    wanted = [[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in PALETTE[:2]]
    assert [face[:3] for face in faces[1:]] == [pytest.approx(colour) for colour in wanted]


def test_other_dims_are_refused():
    with pytest.raises(SchemaError, match=r"Select one of 'layer' with \.isel"):
        interval_dots(table().expand_dims(layer=2, axis=2))
    with pytest.raises(SchemaError, match=r"interval_dots\(interval=\)"):
        interval_dots(table(), interval=(table().isel(way=0), table()))


def test_limits_and_controls_go_by_their_labels():
    values = table().isel(model=0)
    turned = values.isel(way=[2, 0, 1])
    axes = interval_dots(values, interval=(turned - 0.1, turned + 0.1), controls=turned / 2)
    assert whiskers(axes)[0][:, :, 0] == pytest.approx(np.stack([values - 0.1, values + 0.1], 1))
    assert dots(axes)[-1][:, 0] == pytest.approx(values.values / 2)
    other = values.assign_coords(way=["masked", "scaled", "swapped"])
    for wrong in (other, values.isel(way=[0, 1])):
        with pytest.raises(SchemaError, match=r"interval_dots\(controls=\): . labels of 'way' beside 3 that are drawn"):
            interval_dots(values, controls=wrong)


def test_nothing_is_refused_and_a_dim_may_have_any_name():
    with pytest.raises(SchemaError, match="interval_dots: nothing to draw"):
        interval_dots(table().isel(way=[]))
    assert len(dots(interval_dots(table().isel(model=0).rename(way="series")))) == 1
