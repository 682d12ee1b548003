"""Token strings made safe and visible on a figure, and axis ticks from coordinate labels."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, SymmetricalLogLocator

from sinkscope.arguments import checked
from sinkscope.errors import SchemaError

_VISIBLE = {"\n": "↵", "\r": "␍", "\t": "⇥", " ": "␣", "\u00a0": "⍽"}
_UNSEEN = ("Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp", "Zs", "Mn", "Me")


@functools.cache
def _glyphs() -> frozenset[int]:
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap())


def _escaped(character: str) -> str:
    code = ord(character)
    if code > 0xFFFF:
        return f"\\U{code:08x}"
    return f"\\u{code:04x}" if code > 0xFF else f"\\x{code:02x}"


def _shown(character: str) -> str:
    seen = _VISIBLE.get(character, character)
    if ord(seen) not in _glyphs() or unicodedata.category(seen) in _UNSEEN:
        return _escaped(character)
    return seen


@checked(SchemaError)
def log_scale(axes: Axes, axis: Literal["x", "y"] = "y", linear: float | None = None) -> None:
    """Make an axis logarithmic after the data are drawn, with at least a few numbered ticks within what it shows.

    matplotlib numbers powers of ten alone, so an axis from 1.5 to 9 has no number at all.

    Args:
        axes: axes with their data on them.
        axis: which.
        linear: magnitude below which the axis is linear, so that it holds 0 and numbers below; left out: logarithmic.
    """
    one = axes.xaxis if axis == "x" else axes.yaxis
    set_scale = axes.set_xscale if axis == "x" else axes.set_yscale
    if linear is None:
        set_scale("log")
    else:
        set_scale("symlog", linthresh=linear)
    low, high = sorted(one.get_view_interval())
    least = low if linear is None else max(low, linear)
    steps = [1.0, 2.0, 5.0] if np.log10(max(high, abs(low)) / least) < 2.2 else [1.0]
    locator = LogLocator(subs=steps) if linear is None else SymmetricalLogLocator(base=10, linthresh=linear, subs=steps)
    one.set_major_locator(locator)
    one.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    one.set_minor_formatter(NullFormatter())


def plain(text: str) -> str:
    """Return running text that matplotlib draws as it stands: no mathtext, no glyph that the font lacks."""
    return "".join(c if c in " \n" else _shown(c) for c in text).replace("$", r"\$")


@checked(SchemaError)
def token_label(token: str, max_chars: int = 14) -> str:
    r"""Return a token as a figure label: one line, every character visible, nothing read as mathematics.

    White space becomes a visible sign, control and combining characters and characters that the font has no glyph for
    become ``\uXXXX``, ``$`` is escaped, the empty string is shown as ∅, and a long token is cut with an ellipsis.

    Args:
        token: the token's string, anything at all.
        max_chars: most characters shown.
    """
    shown: list[str] = []
    used = 0
    for character in token:
        piece = _shown(character)
        if used + len(piece) > max_chars and len(token) > len(shown):
            shown.append("…")
            break
        shown.append(piece)
        used += len(piece)
    return "".join(shown).replace("$", r"\$") if token else "∅"


@checked(SchemaError)
def token_labels(tokens: Sequence[str] | np.ndarray, max_chars: int = 14) -> list[str]:
    """Return every token as a figure label (see :func:`token_label`)."""
    return [token_label(str(token), max_chars) for token in tokens]


def labels_of(array: xr.DataArray, dim: str) -> list[str]:
    """Return the labels of ``dim``: its coordinate, or 0..n-1."""
    if dim not in array.dims:
        raise SchemaError(f"{array.name or 'array'}: no dimension {dim!r}; it has {tuple(array.dims)}.")
    values = array[dim].values if dim in array.coords else np.arange(array.sizes[dim])
    return [plain(_heads(str(value))) for value in values.tolist()]


def _heads(label: str) -> str:
    """Write heads that a grid edited as they are named: ``{13: [2, 4]}`` and ``[(13, 2), (13, 4)]``, L13H2, L13H4."""
    if re.fullmatch(r"\{(\d+: \[\d+(, \d+)*\](, )?)+\}", label):
        by_layer = re.findall(r"(\d+): \[([^]]*)\]", label)
        return ", ".join(f"L{layer}H{head}" for layer, heads in by_layer for head in heads.split(", "))
    if re.fullmatch(r"[\[(](\(\d+, \d+\),?( )?)+[\])]", label):
        return ", ".join(f"L{layer}H{head}" for layer, head in re.findall(r"\((\d+), (\d+)\)", label))
    return label


def set_ticks(
    ax: Axes, which: str, labels: Sequence[str], *, at: Sequence[float] | None = None, most: int = 12
) -> None:
    """Put at most ``most`` of ``labels`` on an axis, evenly spread, the first always among them.

    Args:
        ax: the axes.
        which: ``"x"`` or ``"y"``.
        labels: one per position.
        at: the positions; 0..n-1 if left out.
        most: most labels shown.
    """
    positions = list(range(len(labels))) if at is None else list(at)
    step = max(1, -(-len(labels) // most))
    shown = slice(0, len(labels), step)
    if which == "x":
        ax.set_xticks(positions[shown], list(labels[shown]))
    else:
        ax.set_yticks(positions[shown], list(labels[shown]))


def set_token_ticks(ax: Axes, across: Sequence[str], down: Sequence[str], most: int = 28) -> None:
    """Put tokens on both axes, in letters as large as their rows and columns have room for.

    Args:
        ax: the axes.
        across: one label per column, written upright.
        down: one label per row.
        most: most labels shown on an axis.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None
    size = float(mpl.rcParams["xtick.labelsize"])
    inches = np.multiply(ax.get_position().size, figure.get_size_inches())
    room = 0.9 * 72 * inches  # in points; the rest goes to labels and colour bars
    for which, labels, points in (("x", across, room[0]), ("y", down, room[1])):
        set_ticks(ax, which, labels, most=most)
        scale = float(points) / (1.15 * size * min(max(len(labels), 1), most))
        ax.tick_params(axis=which, labelsize=size * min(1.0, max(0.62, scale)))  # type: ignore[arg-type]
    ax.tick_params(axis="x", rotation=90)


def same_labels(array: xr.DataArray, drawn: xr.DataArray, dim: str, function: str) -> xr.DataArray:
    """Return ``array`` with the labels of ``dim`` in the order that ``drawn`` has them.

    What lies beside another array is drawn by position, so that another order would put it beside the wrong one.

    Raises:
        SchemaError: other labels, or another number of them where one of the arrays has none.
    """
    wanted, given = drawn[dim].values.tolist(), array[dim].values.tolist()
    if wanted == given:
        return array
    labelled = dim in array.coords and dim in drawn.coords
    if len(wanted) != len(given) or (labelled and set(wanted) != set(given)):
        odd = [each for each in given if each not in wanted] or [each for each in wanted if each not in given]
        which = f", such as {odd[0]!r} in one of the two alone" if labelled and odd else ""
        raise SchemaError(
            f"{function}: {len(given)} labels of {dim!r} beside {len(wanted)} that are drawn{which}. Select the same "
            "in both."
        )
    return array.sel({dim: wanted}) if labelled and len(set(wanted)) == len(wanted) else array


def need_like(array: xr.DataArray, drawn: xr.DataArray, function: str, free: Sequence[str] = ()) -> xr.DataArray:
    """Return ``array`` with the dims and labels of ``drawn``, in the same order; the labels of ``free`` may differ.

    Raises:
        SchemaError: as :func:`need_dims` and :func:`same_labels`.
    """
    found = need_dims(array, tuple(map(str, drawn.dims)), function)
    for dim in map(str, drawn.dims):
        found = found if dim in free else same_labels(found, drawn, dim, function)
    return found


def need_dims(array: xr.DataArray, dims: tuple[str, ...], function: str) -> xr.DataArray:
    """Return ``array`` transposed to ``dims``; the layers and heads that a grid edited count as layers and heads.

    Raises:
        SchemaError: it has other dims; the message says which to select or to reduce.
    """
    of_grid = {f"edit_{dim}": dim for dim in dims if dim not in array.dims and f"edit_{dim}" in array.dims}
    array = array.rename(of_grid) if of_grid else array
    found = tuple(str(d) for d in array.dims)
    if set(found) != set(dims):
        extra = [d for d in found if d not in dims]
        todo = (
            f"Select one of {extra[0]!r} with .isel, or average over it with .mean({extra[0]!r})."
            if extra
            else f"Pass an array with the dimensions {dims}."
        )
        raise SchemaError(f"{function}: draws {dims}, this array has {found}. {todo}")
    return array.transpose(*dims)
