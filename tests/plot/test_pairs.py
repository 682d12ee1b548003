import itertools

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr

from sinkscope.errors import SchemaError
from sinkscope.plot import attention_map, pair_map


def cosines():
    values = np.array([[0.5, np.nan, np.nan], [-0.25, 0.1, np.nan], [0.9, 0.0, -0.3]])
    return xr.DataArray(values, dims=("query", "key"), name="cosine", coords={"token": ("key", ["<s>", " a$", "\n"])})


def test_the_numbers_drawn_are_those_given_and_the_unseen_are_masked():
    axes = pair_map(cosines(), signed=True, limit=1.0)
    image = axes.images[0]
    assert np.array_equal(np.ma.filled(image.get_array(), np.nan), cosines().values, equal_nan=True)
    assert image.get_clim() == (-1.0, 1.0)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["<s>", r"␣a\$", "↵"]
    assert axes.get_figure().axes[1].get_ylabel() == "cosine"


def test_an_unsigned_map_starts_at_zero():
    axes = pair_map(abs(cosines()), label="product of norms")
    assert axes.images[0].get_clim() == (0.0, 0.9)
    assert axes.get_figure().axes[1].get_ylabel() == "product of norms"


def test_without_tokens_positions_are_the_labels():
    axes = pair_map(cosines().drop_vars("token"))
    assert [text.get_text() for text in axes.get_yticklabels()] == ["0", "1", "2"]


def test_nothing_finite_still_draws():
    assert pair_map(cosines() * np.nan).images[0].get_clim() == (0.0, 1.0)


def test_other_dims_are_refused():
    with pytest.raises(SchemaError, match="pair_map: draws"):
        pair_map(cosines().rename(key="layer"))


@pytest.mark.parametrize(("count", "shrinks"), [(6, False), (14, False), (60, True)])
def test_tokens_are_as_large_as_their_rows_allow(count, shrinks):
    grid = xr.DataArray(
        np.eye(count), dims=("query", "key"), coords={"token": ("key", [f"t{i}" for i in range(count)])}
    )
    for draw in (pair_map, attention_map):
        axes = draw(grid, size="page")
        axes.figure.canvas.draw()
        full = mpl.rcParamsDefault["font.size"] * 0.88  # the theme's letters, which have 10 points as matplotlib's do
        sizes = {text.get_fontsize() for text in (*axes.get_xticklabels(), *axes.get_yticklabels())}
        assert (min(sizes) < full) is shrinks
        rows = [text.get_window_extent() for text in axes.get_yticklabels()]
        assert all(below.y1 <= above.y0 + 1 for above, below in itertools.pairwise(rows))
