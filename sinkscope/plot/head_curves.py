"""Small multiples: one tiny curve per head, all on one scale, readable for hundreds of heads."""

from __future__ import annotations

from typing import Unpack

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection

from sinkscope.errors import SchemaError
from sinkscope.plot.effects import FACTORS
from sinkscope.plot.labels import labels_of, need_dims, need_like, plain, set_ticks
from sinkscope.plot.readings import differences_of_heads, drawn
from sinkscope.plot.theme import CONTROL, MISSING, OTHER, PALETTE, SINK, Look, axes_for

HALF = 0.42
"""Half the width and height of a curve, in cells: neighbours never touch."""
FINE = 25
"""Points of a filled area, so that it changes its colour where the curve crosses zero."""


@drawn("layer", "head", "gamma", takes=differences_of_heads)
def head_curves(
    array: xr.DataArray,
    *,
    marked: xr.DataArray | None = None,
    behind: xr.DataArray | None = None,
    limit: float | None = None,
    title: str = "Each head on its own",
    ax: Axes | None = None,
    **look: Unpack[Look],
) -> Axes:
    """Draw the effect of an edit of each head against the edit's strength: a grid of small curves on one scale.

    The area under a curve is orange above zero and blue below it. A head that was not measured has a grey dash.

    Args:
        array: dims ``layer``, ``head`` and the strength, whose labels must be numbers; signed; NaN: not measured. The
            strengths ``gamma`` and ``alpha`` are factors: their places are logarithmic, with 0 one doubling left of
            the least. Or what ``metrics.compare`` returned: points with a q-value below .05 are marked.
        marked: boolean ``(layer, head)``: these heads get a dot in their upper left corner; with the strength as a
            third dim: a dot on the curve.
        behind: further curves, in grey: an estimate, or a control. Dims of ``array``.
        limit: effect at the edge of a cell, what is larger is cut there; the largest magnitude if left out.
        title: title of the axes.
        ax: axes to draw on.
        look: ``caption=False``, ``size=``: see :class:`~sinkscope.plot.theme.Look`.

    Raises:
        SchemaError: nothing in it, other dims or labels, or strengths that are not finite or stand there twice.
    """
    if not array.size:
        raise SchemaError(f"head_curves: nothing to draw: array has {dict(array.sizes)}. Was a selection empty?")
    x = _strength_of(array)
    grid = need_dims(array, ("layer", "head", x), "head_curves").sortby(x)
    layers, heads = labels_of(grid, "layer"), labels_of(grid, "head")
    strength = _strengths(grid, x, "head_curves")
    others = None if behind is None else need_like(behind, grid, "head_curves(behind=)", (x,)).sortby(x)
    top = _largest(grid, others) if limit is None else float(limit)
    if not top > 0:
        raise SchemaError(f"head_curves(limit={limit!r}): it must lie above 0.")
    axes = axes_for(array, ax, height=min(max(0.8, len(layers) / 20), 2.2))
    axes.set(xlim=(-0.6, len(heads) - 0.4), ylim=(-0.6, len(layers) - 0.4))
    size = _cell(axes, len(layers), len(heads))
    along = _places(strength, x)
    _zero_lines(axes, grid.notnull().any(x).values, size)
    curves = _in_cells(grid.values, along, top)
    if others is not None:
        places = _places(_strengths(others, x, "head_curves(behind=)"), x)
        _lines(axes, _in_cells(others.values, places, top), CONTROL, size)
    _areas(axes, curves)
    _lines(axes, curves, PALETTE[-1], size)
    if marked is not None:
        axes.scatter(*_dots(marked, grid, curves), s=(0.3 * size) ** 2, color="black", linewidths=0, zorder=4)
    set_ticks(axes, "x", heads)
    set_ticks(axes, "y", layers)
    _bare(axes)
    units = str(array.attrs.get("units", ""))
    scale = f"in each cell {x} {strength[0]:g} to {strength[-1]:g}, {-top:.2g} to {top:.2g}"
    axes.set(xlabel=f"head\n{plain(scale)} {plain(units if units != '1' else '')}".rstrip(), ylabel="layer")
    axes.set_title(plain(title))
    return axes


def _bare(axes: Axes) -> None:
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _largest(grid: xr.DataArray, others: xr.DataArray | None) -> float:
    values = np.abs(np.concatenate([each.values.ravel() for each in (grid, others) if each is not None]))
    found = float(np.max(values, where=np.isfinite(values), initial=0.0))
    return found or 1.0


def _cell(axes: Axes, layers: int, heads: int) -> float:
    """Return the shorter side of a cell in points, about: dots and lines follow it."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    width, height = axes.get_position().size * figure.get_size_inches() * 72
    return float(min(width / heads, height / layers))


def _places(strength: np.ndarray, x: str) -> np.ndarray:
    """Return where each strength lies in a cell, from -HALF to HALF."""
    at = strength
    if x in FACTORS and (strength > 0).any() and (strength >= 0).all():
        least = strength[strength > 0].min()
        at = np.log2(np.where(strength > 0, strength, least / 2))
    span = at.max() - at.min()
    return np.zeros_like(at) if not span else HALF * (2 * (at - at.min()) / span - 1)


def _in_cells(values: np.ndarray, along: np.ndarray, top: float) -> np.ndarray:
    """Return the curves in the coordinates of the axes: (layer, head, point, 2)."""
    height = np.arange(values.shape[0])[:, None, None] + HALF * np.clip(values / top, -1, 1)
    across = np.arange(values.shape[1])[:, None] + along
    return np.stack([np.broadcast_to(across, values.shape), height], axis=-1)


def _measured(curves: np.ndarray) -> list[np.ndarray]:
    """Return the curves without the points that were not measured, heads with fewer than two points left out."""
    flat = curves.reshape(-1, *curves.shape[2:])
    kept = [curve[np.isfinite(curve[:, 1])] for curve in flat]
    return [curve for curve in kept if len(curve) > 1]


def _lines(axes: Axes, curves: np.ndarray, colour: str, size: float) -> None:
    width = min(0.65 * float(mpl.rcParams["lines.linewidth"]), 0.07 * size)
    axes.add_collection(LineCollection(_measured(curves), colors=colour, linewidths=width), autolim=False)


def _areas(axes: Axes, curves: np.ndarray) -> None:
    above: list[np.ndarray] = []
    below: list[np.ndarray] = []
    for curve in _measured(curves):
        zero = np.round(curve[0, 1])
        at = np.union1d(np.linspace(curve[0, 0], curve[-1, 0], FINE), curve[:, 0])
        height = np.interp(at, curve[:, 0], curve[:, 1])
        for into, edge in ((above, np.maximum(height, zero)), (below, np.minimum(height, zero))):
            if (edge != zero).any():
                into.append(np.column_stack([[*at, at[-1], at[0]], [*edge, zero, zero]]))
    for areas, colour in ((above, SINK), (below, OTHER)):
        axes.add_collection(PolyCollection(areas, facecolors=colour, linewidths=0, alpha=0.6), autolim=False)


def _zero_lines(axes: Axes, measured: np.ndarray, size: float) -> None:
    """Draw zero in every cell, as a short dash where nothing was measured."""
    layer, head = np.indices(measured.shape)
    half = np.where(measured, HALF, 0.3 * HALF)
    ends = np.stack([np.stack([head - half, layer], -1), np.stack([head + half, layer], -1)], axis=2)
    lines = LineCollection(ends.reshape(-1, 2, 2).tolist(), colors=MISSING, linewidths=min(0.6, 0.05 * size))
    axes.add_collection(lines, autolim=False)


def _strength_of(array: xr.DataArray) -> str:
    """The dim of the strengths: the one named so, else the one beside layers and heads."""
    others = [str(dim) for dim in array.dims if str(dim).removeprefix("edit_") not in ("layer", "head")]
    return next((dim for dim in others if dim in FACTORS), others[0] if others else "gamma")


def _strengths(grid: xr.DataArray, x: str, function: str) -> np.ndarray:
    try:
        strength = grid[x].values.astype(float)
    except (TypeError, ValueError) as error:
        raise SchemaError(f"{function}: the labels of {x!r} are no numbers. Give it the strengths.") from error
    if not np.isfinite(strength).all() or len(np.unique(strength)) < len(strength):
        raise SchemaError(
            f"{function}: the labels of {x!r} are {strength.tolist()[:8]}. Give finite strengths, each of them once."
        )
    return strength


def _dots(marked: xr.DataArray, grid: xr.DataArray, curves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if marked.dtype.kind != "b":
        raise SchemaError(f"head_curves(marked=): expected True or False for each head, got {marked.dtype} numbers.")
    x = str(grid.dims[2])
    if x in marked.dims:
        chosen = need_like(marked, grid, "head_curves(marked=)").values
        return tuple(curves[chosen].T)  # type: ignore[return-value]
    chosen = need_like(marked, grid.isel({x: 0}, drop=True), "head_curves(marked=)").values
    layer, head = np.nonzero(chosen)
    return head - 0.8 * HALF, layer + 0.8 * HALF
