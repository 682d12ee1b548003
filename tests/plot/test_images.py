import numpy as np
import pytest
import xarray as xr

from sinkscope import plot
from sinkscope.errors import SchemaError

IMAGE = np.zeros((40, 60, 3))


def patches():
    coords = {"grid_row": ("key", [np.nan, 0, 0, 1, 1]), "grid_col": ("key", [np.nan, 0, 1, 0, 1])}
    return xr.DataArray([9.0, 1.0, 2.0, 3.0, np.nan], dims="key", coords=coords, name="attention")


def extents(ax):
    return [[*path.vertices.min(0), *path.vertices.max(0)] for path in ax.collections[0].get_paths()]


def test_patches_lie_on_their_pixels():
    ax = plot.patch_overlay(IMAGE, patches())
    assert extents(ax) == [[0, 0, 30, 20], [30, 0, 60, 20], [0, 20, 30, 40]]
    assert ax.collections[0].get_array().tolist() == [1.0, 2.0, 3.0], "text and unmeasured tokens are left out"
    assert ax.collections[0].get_clim() == (0.0, 3.0)
    assert (ax.get_xlim(), ax.get_ylim()) == ((0, 60), (40, 0))


def test_pixel_boxes_win_over_the_grid():
    boxes = np.array([[np.nan] * 4, [5, 2, 15, 12], [15, 2, 25, 12], [5, 12, 15, 22]])
    ax = plot.patch_overlay(IMAGE, patches(), boxes=boxes)
    assert extents(ax) == [[5, 2, 15, 12], [15, 2, 25, 12], [5, 12, 15, 22]]
    with pytest.raises(SchemaError, match=r"boxes have the shape \(9, 4\), expected \(up to 5 tokens, 4\)"):
        plot.patch_overlay(IMAGE, patches(), boxes=np.zeros((9, 4)))


def test_overlay_without_patches_says_so():
    with pytest.raises(SchemaError, match="coordinates grid_row and grid_col are missing"):
        plot.patch_overlay(IMAGE, xr.DataArray([1.0], dims="key"))
    nowhere = patches().assign_coords(grid_row=("key", [np.nan] * 5))
    with pytest.raises(SchemaError, match="no token of this prompt is an image patch"):
        plot.patch_overlay(IMAGE, nowhere)


def test_phi_against_attention_by_role():
    phi = xr.DataArray([30.0, 1.0, np.nan], dims="key", coords={"token_role": ("key", ["bos", "text", "pad"])})
    ax = plot.phi_vs_attention(phi, xr.DataArray([0.8, 0.1, np.nan], dims="key"), threshold=20)
    assert [c.get_offsets().tolist() for c in ax.collections] == [[[30.0, 0.8]], [[1.0, 0.1]]]
    assert ax.lines[0].get_xdata() == [20, 20]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["bos", "text", "tau = 20"]
