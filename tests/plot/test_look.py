"""Every figure has a title, a caption that can be left out, and three sizes."""

import inspect

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes

from sinkscope import plot
from sinkscope.errors import SchemaError
from sinkscope.plot.theme import settings

SAID = {"model_id": "a model", "n_prompts": 3}
GRID = xr.DataArray(np.linspace(0, 1, 12).reshape(3, 4), dims=("layer", "head"), attrs=SAID)
LINES = xr.DataArray(
    np.ones((2, 3)), dims=("arm", "gamma"), coords={"gamma": [0.5, 1, 2], "arm": ["a", "b"]}, attrs=SAID
)
LAYERS = xr.DataArray(np.ones((2, 3)), dims=("arm", "layer"), coords={"arm": ["a", "b"]}, attrs=SAID)
KEYS = xr.DataArray(
    [0.2, 0.5], dims="key", coords={"grid_row": ("key", [0.0, 0]), "grid_col": ("key", [0.0, 1])}, attrs=SAID
)
BARS = xr.DataArray([0.5, -0.1], dims="edit", coords={"edit": ["a", "b"]}, attrs=SAID)
STREAM = xr.Dataset(
    {"top_value": ("rank", [20.0, 2.0]), "top_dim": ("rank", [5, 3]), "top_position": ("rank", [0, 1])}, attrs=SAID
)
FIGURES = {
    "activation_surface": (xr.DataArray(np.eye(3, 4) + 1, dims=("key", "dim"), attrs=SAID),),
    "attention_map": (xr.DataArray(np.eye(3), dims=("query", "key"), attrs=SAID),),
    "effect_bars": (BARS,), "effect_map": (GRID,), "entropy_map": (GRID,), "grouped_bars": (LAYERS,),
    "head_curves": (LINES.expand_dims(layer=3).rename(arm="head"),),
    "interval_dots": (BARS,),
    "head_class_map": (GRID.copy(data=np.full((3, 4), "sink")),), "layer_profile": (LAYERS,),
    "masking_curve": (LINES.rename(gamma="masked"),), "massive_activations_picture": (STREAM,),
    "max_attention_histogram": (GRID,), "norm_profile": (LAYERS,),
    "pair_map": (xr.DataArray(np.eye(3), dims=("query", "key"), attrs=SAID),),
    "patch_overlay": (np.full((8, 16, 3), 200, dtype=np.uint8), KEYS), "phi_vs_attention": (KEYS, KEYS),
    "role_share_by_layer": (LAYERS.rename(arm="role"),), "sink_map": (GRID,), "sweep_curve": (LINES,),
    "top_values_by_layer": (LAYERS.rename(arm="rank"), LAYERS.isel(arm=0)), "value_drain": (LAYERS, LAYERS),
}  # fmt: skip
"""Every figure of its own with the least that it draws; what draws on others' axes or several figures is not here."""
OTHERS = {"mark_patches", "panels"}


def drawing_functions() -> set[str]:
    return {name for name in plot.__all__ if "ax" in inspect.signature(getattr(plot, name)).parameters} | {"panels"}


def test_every_public_figure_is_tried_here() -> None:
    assert set(FIGURES) == drawing_functions() - OTHERS


@pytest.mark.parametrize("name", FIGURES)
def test_title_caption_and_size(name: str) -> None:
    figure = getattr(plot, name)
    for kind in ("paper", "page", "slide"):
        drawn: Axes = figure(*FIGURES[name], title="What is seen", size=kind, caption=kind != "slide")
        root = drawn.get_figure(root=True)
        assert root.get_size_inches()[0] == pytest.approx(settings(kind)["figure.figsize"][0])
        assert "What is seen" in (drawn.get_title(), drawn.get_title(loc="left"))
        said = root.get_supxlabel()
        assert said.startswith("model a model; n = 3 prompts") if kind != "slide" else said == ""
    assert {"title", "caption", "size", "ax"} <= set(inspect.signature(figure).parameters)


def test_what_is_no_switch_is_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'captions'"):
        plot.sink_map(GRID, captions=False)
    with pytest.raises(SchemaError, match=r"theme\('poster'\): there is no such theme"):
        plot.sink_map(GRID, size="poster")
    with pytest.raises(SchemaError, match=r"sink_map\(caption=3\): expected True or False, got 3"):
        plot.sink_map(GRID, caption=3)
    with pytest.raises(SchemaError, match=r"sink_map\(size='slide', ax=\): axes that are given have a size"):
        plot.sink_map(GRID, size="slide", ax=plot.sink_map(GRID))
