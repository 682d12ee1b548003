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


def placed():
    edges = {"box_left": [np.nan, 4, 20], "box_top": [np.nan, 2, 2], "box_right": [np.nan, 20, 36],
             "box_bottom": [np.nan, 18, 18]}  # fmt: skip
    coords = {name: ("key", values) for name, values in edges.items()}
    grid = {"grid_row": ("key", [np.nan, 0, 0]), "grid_col": ("key", [np.nan, 0, 1])}
    return xr.DataArray([9.0, 1.0, 2.0], dims="key", coords=coords | grid, name="attention")


def test_the_readings_own_boxes_win_over_rows_and_columns():
    ax = plot.patch_overlay(IMAGE, placed())
    assert extents(ax) == [[4, 2, 20, 18], [20, 2, 36, 18]], "a crop: the patches do not tile the image"
    with pytest.raises(
        SchemaError, match=r"the tokens reach to 36 x 18 pixels \(width x height\), the image has 30 x 40"
    ):
        plot.patch_overlay(np.zeros((40, 30, 3)), placed())
    nowhere = placed().assign_coords(box_left=("key", [np.nan] * 3))
    with pytest.raises(SchemaError, match="no token of this prompt is an image patch"):
        plot.patch_overlay(IMAGE, nowhere)


def test_low_values_leave_the_image_as_it_is():
    colours = plot.patch_overlay(IMAGE, placed()).collections[0]
    assert colours.to_rgba(0.0)[3] == 0.0
    assert colours.to_rgba(2.0)[3] == pytest.approx(0.85, abs=0.01)


def test_overlay_without_patches_says_so():
    with pytest.raises(SchemaError, match="coordinates grid_row and grid_col are missing"):
        plot.patch_overlay(IMAGE, xr.DataArray([1.0], dims="key"))
    nowhere = patches().assign_coords(grid_row=("key", [np.nan] * 5))
    with pytest.raises(SchemaError, match="no token of this prompt is an image patch"):
        plot.patch_overlay(IMAGE, nowhere)


def test_patches_are_framed_and_ringed_where_they_lie():
    ax = plot.patch_overlay(IMAGE, placed())
    boxes = np.array([[4.0, 2, 20, 18], [np.nan] * 4])
    plot.mark_patches({"top": boxes, "sinks": boxes + 2, "none": np.empty((0, 4))}, ax=ax)
    frame, ring = ax.patches
    assert (frame.get_xy(), frame.get_width(), frame.get_height()) == ((4, 2), 16, 16)
    assert (ring.get_center(), ring.get_width()) == ((14, 12), 1.3 * 16), "around the patch, not on it"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["top", "sinks"]


def test_phi_against_attention_by_role():
    phi = xr.DataArray([30.0, 1.0, np.nan], dims="key", coords={"token_role": ("key", ["bos", "text", "pad"])})
    ax = plot.phi_vs_attention(phi, xr.DataArray([0.8, 0.1, np.nan], dims="key"), threshold=20)
    assert [c.get_offsets().tolist() for c in ax.collections] == [[[30.0, 0.8]], [[1.0, 0.1]]]
    assert ax.lines[0].get_xdata() == [20, 20]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["bos (n = 1)", "text (n = 1)", "tau = 20"]
    above, beside = ax.child_axes
    assert [len(margin.patches) for margin in (above, beside)] == [2, 2], "a histogram of each role"
    assert above.get_xlim() == ax.get_xlim()
    assert beside.get_ylim() == ax.get_ylim()


def test_groups_that_are_no_roles_have_colours_of_their_own():
    phi = xr.DataArray([3.0, 1.0], dims="key", coords={"token_role": ("key", ["shape", "background"])})
    first, second = plot.phi_vs_attention(phi, xr.DataArray([0.8, 0.1], dims="key"), threshold=5.32013).collections
    assert first.get_facecolor()[0].tolist() != second.get_facecolor()[0].tolist()
    assert first.axes.get_legend().get_texts()[-1].get_text() == "tau = 5.32"
