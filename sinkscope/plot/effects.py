"""Effects of edits: bars with intervals and controls, and curves over the strength of an edit."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from sinkscope.errors import SchemaError
from sinkscope.plot.labels import labels_of, need_dims, plain
from sinkscope.plot.readings import differences, drawn
from sinkscope.plot.theme import CONTROL, OTHER, PALETTE, axes_for, dot, thin

Interval = tuple[xr.DataArray, xr.DataArray]


def _label(array: xr.DataArray, otherwise: str) -> str:
    name = str(array.attrs.get("long_name", array.name or otherwise))
    units = array.attrs.get("units")
    return plain(f"{name} [{units}]" if units and units != "1" else name)


@drawn("edit", takes=differences)
def effect_bars(
    effect: xr.DataArray,
    *,
    interval: Interval | None = None,
    controls: xr.DataArray | None = None,
    title: str = "Effect of each edit",
    ax: Axes | None = None,
) -> Axes:
    """Draw one bar per edit with its interval, and the controls beside it as grey points.

    Args:
        effect: dims ``(edit,)``; the paired difference to the run without an edit. Or what ``metrics.compare``
            returned: its difference and interval.
        interval: lower and upper limit, dims ``(edit,)``.
        controls: dims ``(edit,)`` or ``(edit, draw)``: the same edit on random tokens or heads. Labels must match.
        title: title of the axes.
        ax: axes to draw on.
    """
    dim = _only_dim(effect, "effect_bars")
    names = labels_of(effect, dim)
    axes = axes_for(effect, ax, height=max(0.6, 0.28 + 0.14 * len(names)))
    y = np.arange(len(names))
    axes.barh(y, effect.values, height=0.62, color=OTHER)
    if interval is not None:
        low, high = (need_dims(edge, (dim,), "effect_bars(interval=)").values for edge in interval)
        axes.errorbar(
            effect.values,
            y,
            xerr=[effect.values - low, high - effect.values],
            fmt="none",
            ecolor="black",
            capsize=2.4 * thin(),
        )
    if controls is not None:
        points = controls.transpose(dim, ...).values.reshape(len(names), -1)
        where = np.repeat(y, points.shape[1])
        axes.scatter(
            points.ravel(),
            where,
            marker="D",
            s=dot(1.3),
            color=CONTROL,
            edgecolors="white",
            linewidths=thin() / 2,
            label="control",
            zorder=3,
        )
        axes.legend()
    axes.axvline(0, color="black", linewidth=thin())
    axes.set_yticks(y, names)
    axes.invert_yaxis()
    axes.set(xlabel=_label(effect, "effect"), title=plain(title))
    return axes


def _only_dim(array: xr.DataArray, function: str) -> str:
    if array.ndim != 1:
        raise SchemaError(
            f"{function}: draws one dimension (edit), this array has {tuple(array.dims)}. Reduce the rest."
        )
    return str(array.dims[0])


@drawn(takes=differences)
def sweep_curve(
    array: xr.DataArray,
    *,
    x: str = "gamma",
    interval: Interval | None = None,
    reference: float | None = 1.0,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw a metric against the strength of an edit, one line per group of layers, each with a band.

    Args:
        array: dims ``(x,)`` and at most one more, whose labels become the lines (groups of layers, say). Or what
            ``metrics.compare`` returned.
        x: the dimension along the x axis; its coordinate must be numbers.
        interval: lower and upper limit, with the dims of ``array``.
        reference: value of ``x`` at which the edit does nothing (a dotted line), or None.
        title: title of the axes.
        ax: axes to draw on.
    """
    others = [str(d) for d in array.dims if d != x]
    if x not in array.dims or len(others) > 1:
        raise SchemaError(
            f"sweep_curve(x={x!r}): draws {x!r} and at most one more dimension, this array has {tuple(array.dims)}. "
            "Name x, and average over the rest."
        )
    order = array.transpose(*others, x)
    positions = array[x].values.astype(float)
    axes = axes_for(array, ax)
    names = labels_of(array, others[0]) if others else [""]
    values = order.values.reshape(len(names), -1)
    edges = None if interval is None else [e.transpose(*others, x).values.reshape(len(names), -1) for e in interval]
    for i, name in enumerate(names):
        colour = PALETTE[i % len(PALETTE)]
        axes.plot(positions, values[i], marker="o", color=colour, label=name or None)
        if edges is not None:
            axes.fill_between(positions, edges[0][i], edges[1][i], color=colour, alpha=0.18, linewidth=0)
    if reference is not None:
        axes.axvline(reference, color="black", linestyle=":", linewidth=thin())
    axes.grid(axis="y")
    axes.set(xlabel=plain(x), ylabel=_label(array, "metric"), title=plain(title))
    if others:
        axes.legend(title=plain(others[0].replace("_", " ")))
    return axes


@drawn(takes=differences)
def masking_curve(
    array: xr.DataArray, *, interval: Interval | None = None, title: str = "Masking tokens", ax: Axes | None = None
) -> Axes:
    """Draw a metric against the number of masked tokens, one line per choice of tokens (sinks, random, relevant).

    Args:
        array: dims ``(masked,)`` (how many, or which share) and at most one more with the choices.
        interval: lower and upper limit, with the dims of ``array``.
        title: title of the axes.
        ax: axes to draw on.
    """
    axes = sweep_curve(array, x="masked", interval=interval, reference=None, title=title, ax=ax)
    axes.set_xlabel("masked tokens")
    return axes
