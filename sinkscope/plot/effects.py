"""Effects of edits: bars with intervals and controls, and curves over the strength of an edit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from sinkscope.errors import SchemaError
from sinkscope.plot.labels import labels_of, need_like, plain, same_labels
from sinkscope.plot.naming import legend_above, name_lines
from sinkscope.plot.readings import differences, drawn
from sinkscope.plot.theme import CONTROL, OTHER, PALETTE, Look, axes_for, dot, thin

Interval = tuple[xr.DataArray, xr.DataArray]


def axis_label(array: xr.DataArray, otherwise: str) -> str:
    """Return name and units of what is drawn, for its axis."""
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
    **look: Unpack[Look],
) -> Axes:
    """Draw one bar per edit with its interval, and the controls beside it as grey points.

    Args:
        effect: dims ``(edit,)``; the paired difference to the run without an edit. Or what ``metrics.compare``
            returned: its difference and interval.
        interval: lower and upper limit, dims ``(edit,)``.
        controls: dims ``(edit,)`` or ``(edit, draw)``: the same edit on random tokens or heads. Labels must match.
        title: title of the axes.
        ax: axes to draw on.
        look: ``caption=False``, ``size=``: see :class:`~sinkscope.plot.theme.Look`.
    """
    dim = _only_dim(effect, "effect_bars")
    names = labels_of(effect, dim)
    axes = axes_for(effect, ax, height=max(0.6, 0.28 + 0.14 * len(names)))
    y = np.arange(len(names))
    axes.barh(y, effect.values, height=0.62, color=OTHER)
    if interval is not None:
        low, high = (need_like(edge, effect, "effect_bars(interval=)").values for edge in interval)
        axes.errorbar(
            effect.values,
            y,
            xerr=[effect.values - low, high - effect.values],
            fmt="none",
            ecolor="black",
            capsize=2.4 * thin(),
        )
    if controls is not None:
        beside = same_labels(controls, effect, dim, "effect_bars(controls=)")
        points = beside.transpose(dim, ...).values.reshape(len(names), -1)
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
    axes.axvline(0, color="black", linewidth=thin())
    axes.set_yticks(y, names)
    axes.invert_yaxis()
    axes.set(xlabel=axis_label(effect, "effect"), title=plain(title))
    if controls is not None:
        legend_above(axes)
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
    **look: Unpack[Look],
) -> Axes:
    """Draw a metric against the strength of an edit, one line per group of layers, each with a band.

    Args:
        array: dims ``(x,)`` and at most one more, whose labels become the lines (groups of layers, say); lines that
            begin with ``random`` or ``control`` are grey and broken. Or what ``metrics.compare`` returned.
        x: the dimension along the x axis; its coordinate must be numbers. ``gamma`` and ``alpha`` are factors: their
            axis is logarithmic, with a place of its own for 0.
        interval: lower and upper limit, with the dims of ``array``.
        reference: value of ``x`` at which the edit does nothing (a dotted line), or None.
        title: title of the axes.
        ax: axes to draw on.
        look: ``caption=False``, ``size=``: see :class:`~sinkscope.plot.theme.Look`.
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
    for i, (name, style) in enumerate(zip(names, _looks(names), strict=True)):
        axes.plot(positions, values[i], marker="o", label=name or None, **style)
        if edges is not None:
            axes.fill_between(positions, edges[0][i], edges[1][i], color=style["color"], alpha=0.18, linewidth=0)
    lines = axes.lines[-len(names) :]
    if x in FACTORS:
        _factors(axes, positions)
    if reference is not None:
        axes.axvline(reference, color="black", linestyle=":", linewidth=thin())
    axes.grid(axis="y")
    axes.set(xlabel=plain(x), ylabel=axis_label(array, "metric"), title=plain(title))
    name_lines(axes, lines, names, others[0] if others else "")
    return axes


FACTORS = ("gamma", "alpha")
"""Dimensions that hold factors: drawn on a logarithmic axis, so that a half and a double are as far from no edit."""


def _looks(names: Sequence[str]) -> list[dict[str, Any]]:
    """Give each line its look: colours of their own, and grey broken lines for random controls."""
    dashes, colours = iter(("--", ":", "-.") * len(names)), iter(PALETTE * len(names))
    grey = [name.startswith(("random", "control")) for name in names]
    return [{"color": CONTROL, "linestyle": next(dashes)} if is_grey else {"color": next(colours)} for is_grey in grey]


def _factors(axes: Axes, positions: np.ndarray) -> None:
    """Set the x axis to a logarithmic one, with a place of its own for 0 (the token hidden), parted by a sign."""
    above = positions[positions > 0]
    if not above.size:
        return
    if (positions <= 0).any():
        axes.set_xscale("symlog", linthresh=float(above.min()), linscale=0.5)
        at = (0.5 * float(above.min()), 0.0)
        axes.annotate("//", at, xycoords=("data", "axes fraction"), ha="center", va="center", annotation_clip=False)
    else:
        axes.set_xscale("log")
    if positions.size <= 9:
        axes.set_xticks(positions, [f"{value:g}" for value in positions])
    axes.minorticks_off()


@drawn(takes=differences)
def masking_curve(
    array: xr.DataArray,
    *,
    interval: Interval | None = None,
    title: str = "Masking tokens",
    ax: Axes | None = None,
    **look: Unpack[Look],
) -> Axes:
    """Draw a metric against the number of masked tokens, one line per choice of tokens (sinks, random, relevant).

    Args:
        array: dims ``(masked,)`` (how many, or which share) and at most one more with the choices.
        interval: lower and upper limit, with the dims of ``array``.
        title: title of the axes.
        ax: axes to draw on.
        look: ``caption=False``, ``size=``: see :class:`~sinkscope.plot.theme.Look`.
    """
    axes = sweep_curve(array, x="masked", interval=interval, reference=None, title=title, ax=ax)
    axes.set_xlabel("masked tokens")
    return axes
