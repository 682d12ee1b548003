"""The numbers that a drawn figure shows, read from its axes: the CSV beside each picture of the page."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.patches import Rectangle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_ROWS = 20_000
"""Most rows of one table; a figure with more numbers than that is a picture of its reading, which holds them."""
Row = tuple[str, str, Any, Any, Any]


def table(figure: Figure) -> str:
    """Return what a figure shows as CSV, one row per mark: panel, series, x, y, value (empty where a mark has none)."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["panel", "series", "x", "y", "value"])
    for count, row in enumerate(_rows(figure)):
        if count >= MAX_ROWS:
            break
        writer.writerow([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row])
    return buffer.getvalue()


def _rows(figure: Figure) -> Iterator[Row]:
    for axes in figure.axes:
        if axes.get_label() == "<colorbar>":
            continue
        name = axes.get_title(loc="left") or axes.get_title()
        yield from _lines(axes, name)
        yield from _images(axes, name)
        yield from _marks(axes, name)


def _lines(axes: Axes, name: str) -> Iterator[Row]:
    for line in axes.get_lines():
        x, y = (np.asarray(v, dtype=object) for v in line.get_data(orig=True))
        for a, b in zip(x.tolist(), y.tolist(), strict=True):
            yield name, _label(line.get_label()), a, b, ""


def _images(axes: Axes, name: str) -> Iterator[Row]:
    for image in axes.get_images():
        values = np.ma.filled(np.ma.asarray(image.get_array(), dtype=float), np.nan)
        if values.ndim == 2:  # others are photographs
            for (row, column), value in np.ndenumerate(values):
                yield name, "", column, row, float(value)


def _marks(axes: Axes, name: str) -> Iterator[Row]:
    for bar in axes.patches:
        if isinstance(bar, Rectangle):
            yield name, _label(bar.get_label()), bar.get_x() + bar.get_width() / 2, bar.get_y() + bar.get_height(), ""
    for collection in axes.collections:
        offsets = np.ma.filled(np.ma.asarray(collection.get_offsets(), dtype=float), np.nan)
        values = collection.get_array()
        if values is not None and len(values) != len(offsets):  # cells at their places on a picture
            for i, value in enumerate(np.ma.filled(np.ma.asarray(values, dtype=float).ravel(), np.nan).tolist()):
                yield name, "cells", i, "", value
        elif values is not None or len(offsets) > 1:
            for i, (x, y) in enumerate(offsets.tolist()):
                yield name, _label(collection.get_label()), x, y, "" if values is None else float(values[i])


def _label(label: Any) -> str:
    """Return a mark's own label; matplotlib numbers those without one."""
    text = str(label)
    return "" if text.startswith("_") else text
