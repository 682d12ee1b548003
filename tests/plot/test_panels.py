"""Panels share one scale and one bar, and take whatever their figure takes."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from sinkscope import plot
from sinkscope.errors import SchemaError
from sinkscope.plot.naming import names_of


def grid(top: float, **attrs: object) -> xr.DataArray:
    values = np.linspace(0, top, 12).reshape(3, 4)
    return xr.DataArray(values, dims=("layer", "head"), attrs={"n_prompts": 5, **attrs})


def test_maps_share_their_colours_and_one_bar() -> None:
    axes = plot.panels(
        plot.entropy_map, {"a": grid(1.0, model_id="a"), "b": grid(4.0, model_id="b"), "c": grid(2.0)}, columns=2
    )
    assert [ax.get_title(loc="left") for ax in axes] == ["a", "b", "c"]
    assert {ax.images[0].get_clim() for ax in axes} == {(0.0, 4.0)}
    figure = axes[0].get_figure()
    assert figure is not None
    bars = [ax for ax in figure.axes if ax.get_label() == "<colorbar>"]
    assert len(bars) == 1
    assert bars[0].get_ylabel() == "entropy [nat]"
    assert axes[1].get_ylabel() == ""
    assert axes[0].get_ylabel() == "layer"
    assert "n = 5 prompts; 3 panels on one scale; models a, b" in figure.get_supxlabel()


def test_lines_share_their_axis_and_the_last_of_a_row_names_them() -> None:
    lines = xr.DataArray(np.ones((2, 5)), dims=("tokens", "layer"), coords={"tokens": ["sink", "others"]})
    axes = plot.panels(plot.layer_profile, {"a": lines, "b": 7 * lines}, ylabel="norm")
    assert axes[0].get_ylim() == axes[1].get_ylim()
    assert axes[0].get_ylim()[1] >= 7
    assert names_of(axes[0]) == []
    assert names_of(axes[1]) == ["sink", "others"]
    plt.close("all")


def test_a_panel_may_have_a_picture_and_what_lies_on_it() -> None:
    place = {"grid_row": ("key", [0.0, 0.0]), "grid_col": ("key", [0.0, 1.0])}
    weights = xr.DataArray([0.1, 0.4], dims="key", coords=place, attrs={"model_id": "m"})
    picture = np.full((8, 16, 3), 200, dtype=np.uint8)
    axes = plot.panels(plot.patch_overlay, {"a": (picture, weights), "b": (picture, 2 * weights)}, caption=False)
    assert {ax.collections[0].get_clim() for ax in axes} == {(0.0, 0.8)}
    assert axes[0].get_figure().get_supxlabel() == ""  # type: ignore[union-attr]


def test_nothing_and_what_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(SchemaError, match="panels: there is nothing to draw"):
        plot.panels(plot.sink_map, {})
    with pytest.raises(SchemaError, match=r"expected an xarray\.DataArray or a reading, got a str"):
        plot.panels(plot.sink_map, {"a": "b"})
