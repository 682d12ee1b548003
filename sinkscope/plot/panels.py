"""Several models, layers or edits side by side: one figure each, one scale of colour, one bar."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib as mpl
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable

from sinkscope.arguments import checked
from sinkscope.errors import SchemaError
from sinkscope.plot.naming import drop_names, names_of
from sinkscope.plot.theme import caption, look, no_figure_left

Drawn = Mapping[str, Any]


@checked(SchemaError)
def panels(
    draw: Callable[..., Axes], arrays: Drawn, *, columns: int = 4, height: float = 1.0, **options: Any
) -> list[Axes]:
    """Draw one figure for each of several arrays or readings, on one scale.

    Colours share their limits and one bar, lines their limits, and only outer axes are labelled; lines are named at the
    end of each row. The caption is that of
    the first; what differs between the panels are their titles.

    Args:
        draw: a figure of this module, such as ``plot.sink_map``.
        arrays: what it draws, by the title of the panel: ten models' readings, one reading's layers, edits. A tuple
            holds several arguments: a picture and what lies on it.
        columns: most panels in a row.
        height: height of a panel, as a multiple of its width.
        options: further arguments of the figure, the same for all; ``caption=False`` and ``size=`` are about the whole.

    Returns:
        The axes, in the order of ``arrays``.

    Raises:
        SchemaError: there is nothing to draw; or as the figure.
    """
    if not arrays:
        raise SchemaError("panels: there is nothing to draw. Give at least one array, by the title of its panel.")
    if columns < 1 or height <= 0:
        raise SchemaError(f"panels(columns={columns}, height={height}): use a column or more, and a height above 0.")
    with look(options.pop("size", None), bool(options.pop("caption", True)), "page"), no_figure_left():
        return _draw(draw, arrays, (columns, height), options)


def _draw(draw: Callable[..., Axes], arrays: Drawn, shape: tuple[int, float], options: dict[str, Any]) -> list[Axes]:
    import matplotlib.pyplot as plt

    columns = min(shape[0], len(arrays))
    rows = math.ceil(len(arrays) / columns)
    width = float(mpl.rcParams["figure.figsize"][0]) * min(1.0 + 0.15 * (columns - 1), 1.6)
    size = (width, rows * (width / columns * shape[1] + 0.25) + 0.4)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False)
    pairs = zip(arrays.items(), grid.flat, strict=False)  # the last row may have room left
    axes = [draw(*_given(array), title=label, ax=ax, **options) for (label, array), ax in pairs]
    for ax in grid.flat[len(axes) :]:
        ax.set_axis_off()
    found: list[ScalarMappable] = [
        each for ax in axes for each in (*ax.images, *ax.collections) if each.colorbar is not None
    ]
    _one_scale(figure, axes, found)
    for index, ax in enumerate(axes):
        if index % columns:
            ax.set_ylabel("")
        if index + columns < len(axes):
            ax.set_xlabel("")
        for axis in (ax.xaxis, ax.yaxis):
            _thin(axis)
        if index + 1 < len(axes) and (index + 1) % columns and names_of(ax):
            drop_names(ax)  # its right neighbour says them
        if index and (legend := ax.get_legend()) is not None:
            legend.remove()
    first = _given(next(iter(arrays.values())))[-1]
    if isinstance(first, xr.Dataset | xr.DataArray):
        caption(figure, first, definition=_shared(arrays))
    return axes


def _given(drawn: Any) -> tuple[Any, ...]:
    return drawn if isinstance(drawn, tuple) else (drawn,)


def _thin(axis: Any, most: int = 6) -> None:
    """Leave out labels that small axes have no room for."""
    places, labels = axis.get_ticklocs(), [label.get_text() for label in axis.get_ticklabels()]
    if len(places) > most and any(labels):
        step = math.ceil(len(places) / most)
        axis.set_ticks(places[::step], labels[::step])


def _one_scale(figure: Any, axes: list[Axes], coloured: list[ScalarMappable]) -> None:
    if coloured:
        limits = [each.get_clim() for each in coloured]
        low, high = min(float(a or 0.0) for a, _ in limits), max(float(b or 0.0) for _, b in limits)
        label = coloured[0].colorbar.ax.get_ylabel()  # type: ignore[union-attr]
        for each in coloured:
            each.colorbar.remove()  # type: ignore[union-attr]
            each.set_clim(low, high)
        bar = figure.colorbar(coloured[0], ax=axes, fraction=0.03, pad=0.02)
        bar.set_label(label)
        bar.outline.set_visible(False)
        return
    ends = [ax.get_ylim() for ax in axes]
    for ax in axes:
        ax.set_ylim(min(low for low, _ in ends), max(high for _, high in ends))


def _shared(arrays: Drawn) -> str:
    """Say what is drawn and how many prompts each has, where the panels are several models."""
    given = [_given(each)[-1] for each in arrays.values()]
    models = {str(each.attrs.get("model_id", "")) for each in given if hasattr(each, "attrs")} - {""}
    return f"{len(arrays)} panels on one scale" + (f"; models {', '.join(sorted(models))}" if len(models) > 1 else "")
