import io

import numpy as np
import pytest
import xarray as xr
from matplotlib.lines import Line2D
from scipy import stats

from sinkscope import plot
from sinkscope.errors import SchemaError
from sinkscope.metrics.bimodal import bimodality
from sinkscope.plot.theme import MANY


def norms(values):
    return xr.DataArray(np.asarray(values, dtype=float), dims=("prompt", "layer"))


def test_value_drain_draws_the_medians():
    ax = plot.value_drain(norms([[1, 2], [3, np.nan], [5, 4]]), norms([[10, 20], [30, 40], [50, 60]]))
    black = [line for line in ax.lines if line.get_color() == "black" and line.get_visible()]
    medians = [(float(np.mean(line.get_xdata())), line.get_ydata()[0]) for line in black]
    assert medians == [
        (pytest.approx(0.2), 30),
        (pytest.approx(1.2), 40),
        (pytest.approx(-0.2), 3),
        (pytest.approx(0.8), 3),
    ]
    assert ax.get_ylim()[0] == 0
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["sink token", "other tokens"]


def test_value_drain_needs_layers():
    with pytest.raises(SchemaError, match="value_drain: others has no dimension 'layer'"):
        plot.value_drain(norms([[1.0]]), xr.DataArray([1.0], dims="prompt"))


FIT = {"means": [0.4, 0.05], "weights": [0.4, 0.6], "sds": [0.05, 0.02], "valley": 0.15, "bimodal": True}


def heads():
    r = np.random.default_rng(0)
    return xr.DataArray(np.r_[r.normal(0.05, 0.02, 60), r.normal(0.4, 0.05, 40), np.nan], dims="head")


def all_marked(legend):
    """Whether every entry of a legend has a line or a patch beside it."""
    return all(
        handle.get_linestyle() not in ("None", " ", "") if isinstance(handle, Line2D) else handle.get_width() > 0
        for handle in legend.legend_handles
    )


def test_histogram_draws_the_mixture_it_was_given():
    ax = plot.max_attention_histogram(heads(), FIT, bins=20)
    assert sum(p.get_height() * p.get_width() for p in ax.patches) == pytest.approx(1.0)
    assert len(ax.patches) == 20
    low, high, valley = ax.lines
    x = low.get_xdata()
    np.testing.assert_allclose(low.get_ydata(), 0.6 * stats.norm.pdf(x, 0.05, 0.02))
    np.testing.assert_allclose(high.get_ydata(), 0.4 * stats.norm.pdf(x, 0.4, 0.05))
    assert valley.get_xdata() == [0.15, 0.15]
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert texts == [
        "sink heads", "vision heads", "valley 0.15", "heads below the valley (n = 60)", "heads above it (n = 40)",
    ]  # fmt: skip
    assert all_marked(ax.get_legend())


def test_histogram_says_when_it_is_not_bimodal():
    ax = plot.max_attention_histogram(heads(), {**FIT, "bimodal": False})
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert texts == ["component 1", "component 2", "heads, one hump: no split (n = 100)"]
    assert len(ax.lines) == 2, "two components, no valley"
    assert all_marked(ax.get_legend())


def test_histogram_takes_what_the_metric_returns():
    found = bimodality(heads())
    low, high, valley = plot.max_attention_histogram(heads(), found).lines
    assert low.get_ydata().max() > high.get_ydata().max()
    assert valley.get_xdata() == [float(found.valley)] * 2
    with pytest.raises(SchemaError, match=r"the fit has the dimensions \('layer',\), one histogram needs one verdict"):
        plot.max_attention_histogram(heads(), found.expand_dims("layer"))


def test_histogram_of_nothing():
    ax = plot.max_attention_histogram(xr.DataArray([np.nan], dims="head"))
    assert not ax.patches


@pytest.mark.parametrize("count", [500, 50_000])
def test_a_strip_of_very_many_heads_is_a_picture_in_the_svg(count):
    values = xr.DataArray(np.random.default_rng(0).gamma(1.0, 0.05, count), dims="head")
    kept = io.BytesIO()
    plot.max_attention_histogram(values).figure.savefig(kept, format="svg")
    assert (b"<image" in kept.getvalue()) == (count > MANY)
    assert kept.getbuffer().nbytes < 300_000
