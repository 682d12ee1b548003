"""Dots with intervals: one row per label, estimates of one or several series beside each other, controls in grey."""

from __future__ import annotations

from typing import Unpack

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from sinkscope.errors import SchemaError
from sinkscope.plot.effects import axis_label
from sinkscope.plot.labels import labels_of, need_dims, need_like, plain
from sinkscope.plot.naming import legend_above
from sinkscope.plot.readings import drawn, estimates
from sinkscope.plot.theme import CONTROL, PALETTE, Look, axes_for, dot, thin

ONE = "series of one"


@drawn("row", takes=estimates)
def interval_dots(
    array: xr.DataArray,
    *,
    interval: tuple[xr.DataArray, xr.DataArray] | None = None,
    controls: xr.DataArray | None = None,
    reference: float | None = 0.0,
    title: str = "",
    ax: Axes | None = None,
    **look: Unpack[Look],
) -> Axes:
    """Draw estimates as dots with their intervals, one row per label, the first on top.

    Args:
        array: dims ``(row,)`` of any name, and at most one more whose labels become series beside each other; NaN: no
            dot. Or what ``metrics.compare``, ``tasks.rate`` or ``analysis.with_intervals`` returned.
        interval: lower and upper limit, with the dims of ``array``; NaN where there is none.
        controls: the same estimate under the control, with the dims of ``array``: grey diamonds below the dots.
        reference: a dotted line: no effect, chance, an even share; None: no line.
        title: title of the axes.
        ax: axes to draw on.
        look: ``caption=False``, ``size=``: see :class:`~sinkscope.plot.theme.Look`.

    Raises:
        SchemaError: ``array`` has more than two dims or nothing in it, or limits or controls have other dims or labels.
    """
    if not array.size:
        raise SchemaError(f"interval_dots: nothing to draw: array has {dict(array.sizes)}. Was a selection empty?")
    grid = array if array.ndim != 1 else array.expand_dims(ONE, axis=1)
    dims = (str(grid.dims[0]), str(grid.dims[1])) if grid.ndim > 1 else ("row", "series")
    grid = need_dims(grid, dims, "interval_dots")
    values = grid.values.astype(float)
    rows, series = labels_of(grid, dims[0]), labels_of(grid, dims[1])
    edges = None if interval is None else [_like(edge, array, "interval") for edge in interval]
    beside = None if controls is None else _like(controls, array, "controls")
    axes = axes_for(array, ax, height=max(0.5, 0.25 + 0.1 * len(rows) * max(1, len(series) / 2)))
    step = 0.6 / max(len(series), 1)
    for i, name in enumerate(series):
        y = np.arange(len(rows)) + (i - (len(series) - 1) / 2) * step
        colour = PALETTE[i % len(PALETTE)]
        if edges is not None:
            axes.hlines(y, edges[0][:, i], edges[1][:, i], color=colour, linewidth=2 * thin())
        axes.scatter(values[:, i], y, s=dot(1.6), color=colour, label=name if len(series) > 1 else None, zorder=3)
        if beside is not None:
            look_of = {"color": CONTROL, "edgecolors": "white", "linewidths": thin() / 2, "zorder": 3}
            below = y + min(0.22, 0.4 * step)
            axes.scatter(beside[:, i], below, marker="D", s=dot(1.3), label=None if i else "control", **look_of)
    if reference is not None:
        axes.axvline(reference, color="black", linestyle=":", linewidth=thin())
    axes.set_yticks(np.arange(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.set(xlabel=axis_label(array, "estimate"), title=plain(title))
    legend_above(axes)
    return axes


def _like(array: xr.DataArray, estimates: xr.DataArray, which: str) -> np.ndarray:
    found = need_like(array, estimates, f"interval_dots({which}=)").values.astype(float)
    return found[:, None] if found.ndim == 1 else found
