"""Distributions: how numbers are spread, sinks against others, one mode against two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from scipy import stats

from sinkscope.errors import SchemaError
from sinkscope.plot.labels import plain
from sinkscope.plot.naming import legend_above
from sinkscope.plot.profiles import finish_depth
from sinkscope.plot.readings import drawn, first_and_others, largest_attention
from sinkscope.plot.theme import MANY, OTHER, PALETTE, SINK, Look, axes_for, thin


@drawn(takes=first_and_others("value_norm", "l2 norm of the value vectors, every key-value head and prompt"))
def value_drain(
    sink: xr.DataArray,
    others: xr.DataArray | None = None,
    *,
    ylabel: str = "l2 norm of the value vector",
    title: str = "Values of the sink and of other tokens",
    ax: Axes | None = None,
    **look: Unpack[Look],
) -> Axes:
    """Draw two boxes per layer: value norms of the sink token, and of the others (Guo et al. 2024; Gu et al. 2025).

    A box spans the quartiles, its line is the median, whiskers reach 1.5 interquartile ranges; points beyond them are
    not drawn.

    Args:
        sink: dims ``layer`` and any others (prompts, key-value heads); each number is one observation. Or a reading,
            alone: its first token against the others.
        others: likewise for the other tokens.
        ylabel: label of the y axis.
        title: title of the axes.
        ax: axes to draw on.
        look: ``caption=False``, ``size=``: see :class:`~sinkscope.plot.theme.Look`.
    """
    if others is None:
        raise SchemaError("value_drain: others are missing. Pass norms of the sink and of the others, or a reading.")
    for array, name in ((sink, "sink"), (others, "others")):
        if "layer" not in array.dims:
            raise SchemaError(f"value_drain: {name} has no dimension 'layer'; it has {tuple(array.dims)}.")
    axes = axes_for(sink, ax)
    for array, shift, colour in ((others, 0.2, OTHER), (sink, -0.2, SINK)):
        samples = _samples(array)
        axes.boxplot(
            samples, positions=[i + shift for i in range(len(samples))], widths=0.34, showfliers=False,
            patch_artist=True, manage_ticks=False,
            boxprops={"facecolor": colour, "alpha": 0.75, "edgecolor": colour}, whiskerprops={"color": colour},
            capprops={"visible": False}, medianprops={"color": "black", "linewidth": thin()},
        )  # fmt: skip
    finish_depth(axes, sink, "layer")
    axes.set(ylabel=plain(ylabel), title=plain(title))
    axes.set_ylim(bottom=0)
    legend_above(axes, [Patch(color=SINK, label="sink token"), Patch(color=OTHER, label="other tokens")])
    return axes


def _samples(array: xr.DataArray) -> list[np.ndarray]:
    rows = array.transpose("layer", ...).values.reshape(array.sizes["layer"], -1)
    return [row[np.isfinite(row)] for row in rows]


@drawn(takes=largest_attention)
def max_attention_histogram(
    array: xr.DataArray,
    fit: Mapping[str, Any] | xr.Dataset | None = None,
    *,
    bins: int = 40,
    names: Sequence[str] = ("sink heads", "vision heads"),
    title: str = "Largest attention of each head",
    ax: Axes | None = None,
    **look: Unpack[Look],
) -> Axes:
    """Draw the histogram of one number per head, with the mixture fitted to it and the valley that splits it.

    Args:
        array: numbers of any dims, one per head (and prompt); NaN is left out. Or a reading: ``max_attention``.
        fit: what ``metrics.bimodality`` found (one verdict), or plain numbers: ``means``, ``weights``, ``sds`` of the
            components, ``valley`` (NaN: none was found), ``bimodal`` (optional). Nothing is fitted here.
        bins: bars of the histogram.
        names: names of the component with the lower and with the higher mean.
        title: title of the axes.
        ax: axes to draw on.
        look: ``caption=False``, ``size=``: see :class:`~sinkscope.plot.theme.Look`.
    """
    values = array.values[np.isfinite(array.values)]
    found = _numbers(fit) if isinstance(fit, xr.Dataset) else fit
    axes = axes_for(array, ax)
    if values.size:
        one = found is not None and not found.get("bimodal", True)
        _bars(axes, values, bins, _split(found), ", one hump: no split" if one else "")
    if found is not None:
        _mixture(axes, found, names)
    axes.set(xlabel=plain(str(array.attrs.get("long_name", array.name or "largest attention weight"))),
             ylabel="density", title=plain(title))  # fmt: skip
    if values.size or fit is not None:
        axes.legend()
    return axes


MUTED = "#7C8A94"
"""Colour of heads that are not split."""


def _split(fit: Mapping[str, Any] | None) -> float:
    """Return the valley that splits the heads, NaN where they are one class."""
    if fit is None or not fit.get("bimodal", True):
        return float("nan")
    return float(fit.get("valley", np.nan))


def _bars(axes: Axes, values: np.ndarray, bins: int, valley: float, said: str = "") -> None:
    """Draw the histogram, each class in its colour, and under it one tick for each number.

    ``said`` is told of the heads where they are one class.
    """
    heights, edges = np.histogram(values, bins=bins, density=True)
    middle = (edges[:-1] + edges[1:]) / 2
    sides = (
        ((middle < valley, SINK), (middle >= valley, OTHER)) if np.isfinite(valley) else ((middle == middle, MUTED),)
    )
    where = (" below the valley", " above it") if len(sides) > 1 else (said,)
    for (side, colour), place in zip(sides, where, strict=True):
        count = int(_in(values, valley, colour).sum())
        axes.bar(
            middle[side], heights[side], width=np.diff(edges)[side], color=colour, alpha=0.38, linewidth=0,
            label=f"heads{place} (n = {count})",
        )  # fmt: skip
    colours = [colour for side, colour in sides for _ in range(int(_in(values, valley, colour).sum()))]
    ordered = np.concatenate([values[_in(values, valley, colour)] for _, colour in sides])
    strip = axes.inset_axes((0.0, -0.055, 1.0, 0.045), sharex=axes)
    faint, many = max(0.08, min(0.8, 60 / values.size)), values.size > MANY
    strip.vlines(ordered, 0, 1, colors=colours, linewidth=0.3, alpha=faint, rasterized=many)
    strip.set_axis_off()
    axes.spines["bottom"].set_position(("axes", -0.06))
    low, high = edges[0], edges[-1]
    margin = 0.04 * (high - low)
    axes.set_xlim(max(0.0, low - margin) if low >= 0 else low - margin, high + margin)


def _in(values: np.ndarray, valley: float, colour: str) -> np.ndarray:
    """Say which numbers a colour stands for."""
    if not np.isfinite(valley):
        return np.ones(values.shape, dtype=bool)
    return values < valley if colour == SINK else values >= valley


def _numbers(found: xr.Dataset) -> dict[str, Any]:
    if found["valley"].ndim:
        raise SchemaError(
            f"max_attention_histogram: the fit has the dimensions {tuple(found['valley'].dims)}, one histogram needs "
            "one verdict. Select one, or pool: bimodality(values)."
        )
    columns = {"means": "mean", "weights": "weight", "sds": "std"}
    numbers: dict[str, Any] = {k: [float(found[f"{side}_{v}"]) for side in ("low", "high")] for k, v in columns.items()}
    return numbers | {"valley": float(found["valley"]), "bimodal": bool(found["bimodal"])}


def _mixture(axes: Axes, fit: Mapping[str, Any], names: Sequence[str]) -> None:
    means, weights, sds = (np.atleast_1d(np.asarray(fit[k], dtype=float)) for k in ("means", "weights", "sds"))
    if not np.isfinite(means).all():
        return
    low, high = axes.get_xlim()
    x = np.linspace(low, high, 500)
    order = np.argsort(means)
    bimodal = bool(fit.get("bimodal", True))
    for i, k in enumerate(order):
        label = names[i] if bimodal and i < len(names) else f"component {i + 1}"
        axes.plot(x, weights[k] * stats.norm.pdf(x, means[k], sds[k]), color=PALETTE[1 - i % 2], label=plain(label))
    valley = float(fit.get("valley", np.nan))
    if np.isfinite(valley) and bimodal:
        axes.axvline(valley, color="black", linestyle="--", linewidth=thin(), label=f"valley {valley:.3g}")
