"""Names beside what they name: at the ends of lines, or above bars, so that no legend lies on the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox, IdentityTransform
from scipy.optimize import isotonic_regression

from sinkscope.plot.labels import plain

_DASHES = {"--": "╌╌ ", ":": "┈┈ ", "-.": "╌┈ "}
"""Set before the names of broken lines, several of which may have one colour."""


class LineNames(Artist):
    """The names of lines, each in its line's colour at the height where the line ends, right of the axes.

    They are placed when the figure is drawn, so that later changes of limits and scales count; names that would lie on
    each other are moved apart, as little as possible.

    Args:
        axes: the axes of the lines.
        lines: the lines.
        names: one for each line.
    """

    def __init__(self, axes: Axes, lines: Sequence[Line2D], names: Sequence[str]) -> None:
        super().__init__()
        self.lines = list(lines)
        size = _letters()
        self.texts = [
            Text(
                0,
                0,
                _DASHES.get(str(line.get_linestyle()), "") + name,
                color=line.get_color(),
                fontsize=size,
                va="center",
                transform=IdentityTransform(),
            )
            for line, name in zip(lines, names, strict=True)
        ]
        self._of, self._size = axes, size
        axes.add_artist(self)
        self.set_clip_on(False)
        for text in self.texts:
            text.set_figure(axes.figure)

    def _place(self, renderer: Any) -> None:
        box = self._of.bbox
        ends = np.array([_end(line, box) for line in self.lines])
        for text in self.texts:
            text.set_fontsize(self._size)
        gap = 1.08 * max(text.get_window_extent(renderer).height for text in self.texts)
        if gap * (len(ends) - 1) > box.height:  # smaller letters rather than names beyond the axes
            scale = max(0.6, box.height / (gap * (len(ends) - 1)))
            for text in self.texts:
                text.set_fontsize(self._size * scale)
            gap *= scale
        for text, height in zip(self.texts, apart(ends, gap, (box.y0, box.y1)), strict=True):
            text.set_position((box.x1 + 0.5 * self._size * self._of.figure.dpi / 72, height))

    def draw(self, renderer: Any) -> None:
        """Place and draw the names."""
        if self.get_visible() and self.texts:
            self._place(renderer)
            for text in self.texts:
                text.draw(renderer)

    def get_window_extent(self, renderer: Any = None) -> Bbox:
        """Return the box around all names, for the layout of the figure."""
        drawing = renderer or self._of.figure.canvas.get_renderer()  # type: ignore[attr-defined]
        self._place(drawing)
        return Bbox.union([text.get_window_extent(drawing) for text in self.texts])

    def get_tightbbox(self, renderer: Any = None) -> Bbox:
        """As :meth:`get_window_extent`: names are never clipped."""
        return self.get_window_extent(renderer)


def _letters() -> float:
    """Return the size of names in points; outside a theme the setting is a word."""
    return float(FontProperties(size=mpl.rcParams["legend.fontsize"]).get_size_in_points())


def _end(line: Line2D, box: Bbox) -> float:
    """Return the height on the screen at which a line ends, within the axes."""
    points = line.get_transform().transform(np.column_stack(line.get_data(orig=False)).astype(float))
    seen = points[np.isfinite(points).all(axis=1)]
    return float(np.clip(seen[-1, 1], box.y0, box.y1)) if len(seen) else box.y0


def apart(heights: np.ndarray, gap: float, limits: tuple[float, float]) -> np.ndarray:
    """Return heights at least ``gap`` apart, in the same order and near the old ones, within limits if all fit."""
    order = np.argsort(heights, kind="stable")
    steps = gap * np.arange(len(heights))
    low, high = limits[0], max(limits[0], limits[1] - gap * (len(heights) - 1))
    moved = np.clip(isotonic_regression(heights[order] - steps).x, low, high) + steps
    found = np.empty(len(heights))
    found[order] = moved
    return found


def name_lines(axes: Axes, lines: Sequence[Line2D], names: Sequence[str], what: str = "") -> None:
    """Write the name of each line where it ends; nothing is written for a line without a name.

    Args:
        axes: the axes of the lines.
        lines: the lines.
        names: one for each.
        what: what the names are values of, said with each where they are bare numbers (``threshold 0.2``).
    """
    named = [(line, name) for line, name in zip(lines, names, strict=True) if name]
    if named:
        before = f"{plain(what.replace('_', ' '))} " if what and all(_is_number(name) for _, name in named) else ""
        LineNames(axes, [line for line, _ in named], [f"{before}{name}" for _, name in named])


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def names_of(axes: Axes) -> list[str]:
    """Return the names that stand beside the lines of these axes, in the order of the lines."""
    return [text.get_text() for each in axes.artists if isinstance(each, LineNames) for text in each.texts]


def drop_names(axes: Axes) -> None:
    """Take the names of lines and the legend away, for a panel whose neighbour has the same ones."""
    for each in [each for each in axes.artists if isinstance(each, LineNames)]:
        each.remove()
    legend = axes.get_legend()
    if legend is not None:
        legend.remove()


def has_same_legend(axes: Axes) -> bool:
    """Whether another panel of the figure has a legend with the same names, in the same colours and order."""
    mine = [(label, _colour(handle)) for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)]
    others = [other for other in axes.figure.axes if other is not axes and other.get_legend() is not None]
    shown = [
        [(label, _colour(handle)) for handle, label in zip(*other.get_legend_handles_labels(), strict=True)]
        for other in others
    ]
    return mine in shown


def share_legend(figure: Figure, columns: int = 4) -> None:
    """Put one legend above all panels in place of one in each, with the names of the panel that has most.

    Args:
        figure: a figure whose layout is constrained, whose panels have the same names in the same colours.
        columns: most names in a row.
    """
    shared = max((axes.get_legend_handles_labels() for axes in figure.axes), key=lambda found: len(found[1]))
    for axes in figure.axes:
        legend = axes.get_legend()
        if legend is not None:
            legend.remove()
            axes.set_title(axes.get_title(loc="left"))  # legend_above had lifted it
    figure.legend(*shared, loc="outside upper center", ncols=columns)


def _colour(handle: Any) -> Any:
    one: Any = cast("tuple[Any, ...]", handle)[0] if isinstance(handle, tuple) and handle else handle
    return one.get_facecolor() if hasattr(one, "get_facecolor") else getattr(one, "get_color", lambda: None)()


def legend_above(axes: Axes, handles: Sequence[Any] | None = None, *, over: float = 0.0) -> None:
    """Put the legend between the title and the axes, in as many rows as it needs, and lift the title over it.

    Args:
        axes: the axes.
        handles: what is named; everything with a label if left out.
        over: height of what stands on the axes already, as a part of theirs.
    """
    shown = list(axes.get_legend_handles_labels()[0] if handles is None else handles)
    if not shown:
        return
    size = _letters()
    figure = axes.get_figure(root=True)
    assert figure is not None
    room, tall = axes.get_position().size * figure.get_size_inches() * 72
    widths = [(0.55 * len(str(each.get_label())) + 3.4) * size for each in shown]
    columns = next((n for n in range(len(shown), 1, -1) if n * max(widths) <= 1.1 * room), 1)
    axes.legend(handles=shown, loc="lower left", bbox_to_anchor=(0.0, 1.0 + over), ncols=columns, borderaxespad=0.2)
    rows = -(-len(shown) // columns)
    axes.set_title(axes.get_title(loc="left"), pad=over * tall + size * (1.0 + 1.75 * rows))
