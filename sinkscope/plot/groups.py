"""Groups side by side: one bar per series in each group, with intervals and single observations."""

from __future__ import annotations

import textwrap
from typing import Unpack

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from sinkscope.plot.labels import labels_of, need_dims, need_like, plain
from sinkscope.plot.naming import has_same_legend, legend_above
from sinkscope.plot.readings import drawn
from sinkscope.plot.theme import CONTROL, OTHER, PALETTE, ROLE_COLOURS, SINK, Look, axes_for, dot, thin

_FIXED = {"sink": SINK, "others": OTHER, "other": OTHER, "control": CONTROL, "neighbour": CONTROL, **ROLE_COLOURS}


@drawn()
def grouped_bars(
    array: xr.DataArray,
    *,
    interval: tuple[xr.DataArray, xr.DataArray] | None = None,
    ylabel: str = "",
    reference: float | None = None,
    title: str = "",
    ax: Axes | None = None,
    **look: Unpack[Look],
) -> Axes:
    """Draw bars in groups, one colour per series: arms of an experiment under several conditions.

    Panels of one figure with the same series have one legend, that of the first.

    Args:
        array: two dims: the groups along x, then the series (with one dim, all bars are one series). NaN: no bar.
        interval: lower and upper limit, with the dims of ``array``; NaN where there is none.
        ylabel: label of the y axis; name and units of the array if left out.
        reference: a dotted horizontal line: chance, uniform attention.
        title: title of the axes.
        ax: axes to draw on.
        look: ``caption=False``, ``size=``: see :class:`~sinkscope.plot.theme.Look`.

    Raises:
        SchemaError: ``array`` has more than two dims, or the limits have others.
    """
    grid = array if array.ndim != 1 else array.expand_dims("series", axis=1)
    dims = tuple(str(d) for d in grid.dims)[:2]
    values = need_dims(grid, dims, "grouped_bars").values
    edges = None if interval is None else [_like(edge, grid) for edge in interval]
    groups, series = labels_of(grid, dims[0]), labels_of(grid, dims[1])
    axes = axes_for(array, ax)
    width = 0.82 / len(series)
    for i, name in enumerate(series):
        x = np.arange(len(groups)) + (i - (len(series) - 1) / 2) * width
        colour = _FIXED.get(name, PALETTE[i % len(PALETTE)])
        axes.bar(x, values[:, i], width=0.92 * width, color=colour, label=name)
        if edges is not None:
            spread = np.abs([values[:, i] - edges[0][:, i], edges[1][:, i] - values[:, i]])
            axes.errorbar(x, values[:, i], yerr=spread, fmt="none", ecolor="black", elinewidth=thin(), capsize=dot(0.1))
    if reference is not None:
        axes.axhline(reference, color="black", linestyle=":", linewidth=thin())
    axes.axhline(0, color="black", linewidth=thin())
    axes.set_xticks(np.arange(len(groups)), _wrapped(axes, groups))
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.set(ylabel=plain(ylabel or _named(array)), title=plain(title))
    if array.ndim > 1 and len(series) > 1 and not has_same_legend(axes):
        legend_above(axes)
    return axes


def _wrapped(axes: Axes, groups: list[str]) -> list[str]:
    """Break names that are wider than their group between words, so that neighbours do not lie on each other."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    room = axes.get_position().width * figure.get_size_inches()[0] * 72 / len(groups)
    letters = int(room / (0.56 * float(mpl.rcParams["xtick.labelsize"])))
    return [textwrap.fill(name, max(letters, 6), break_long_words=False) for name in groups]


def _like(edge: xr.DataArray, grid: xr.DataArray) -> np.ndarray:
    whole = edge if edge.ndim != 1 or grid.ndim == 1 else edge.expand_dims("series", axis=1)
    return need_like(whole, grid, "grouped_bars(interval=)").values


def _named(array: xr.DataArray) -> str:
    name = str(array.attrs.get("long_name", array.name or ""))
    units = array.attrs.get("units")
    return f"{name} [{units}]" if units and units != "1" else name
