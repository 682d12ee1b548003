import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from sinkscope import plot
from sinkscope.errors import SchemaError
from sinkscope.plot.theme import SINK


def entries() -> xr.DataArray:
    sizes = np.ones((3, 8))
    sizes[0, 5], sizes[0, 2], sizes[2, 1] = -1000.0, 200.0, 10.0
    return xr.DataArray(sizes, dims=("key", "dim"), coords={"token": ("key", ["The", " cat", "."])}, name="11.post")


def test_heights_are_decades_above_the_median_and_massive_dimensions_are_named():
    axes = plot.activation_surface(entries())
    others, sinks = axes.collections
    assert sorted(segment[1][2] for segment in sinks._segments3d) == pytest.approx([np.log10(200), 3.0])
    assert [segment[1][2] for segment in others._segments3d] == pytest.approx([1.0]), "what is at the median has no bar"
    assert [text.get_text() for text in axes.texts] == [" dim 5, 2"]
    assert axes.texts[0].get_color() == SINK
    assert [label.get_text() for label in axes.get_zticklabels()] == ["1", "10", "10²", "10³"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["The", "␣cat", "."]


def test_dimensions_can_be_chosen_and_the_axis_shared():
    axes = plot.activation_surface(entries(), named=[1], top=1e5)
    assert [text.get_text() for text in axes.texts] == [" dim 1"]
    assert axes.get_zlim()[1] == pytest.approx(5.0)


def test_what_cannot_be_drawn_is_said():
    with pytest.raises(SchemaError, match="activation_surface: the median magnitude is 0"):
        plot.activation_surface(entries() * 0)
    with pytest.raises(SchemaError, match="activation_surface: ax is flat"):
        plot.activation_surface(entries(), ax=plt.subplots()[1])
