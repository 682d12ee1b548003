"""Profiles: how a number changes over the depth of the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from sinkscope.errors import SchemaError
from sinkscope.plot.labels import labels_of, log_scale, need_dims, plain, set_ticks
from sinkscope.plot.naming import name_lines
from sinkscope.plot.readings import drawn, largest_entries, shares_of_roles, two_lines
from sinkscope.plot.theme import OTHER, PALETTE, ROLE_COLOURS, SINK, Look, axes_for

_DEPTHS = ("layer", "site")


def depth_of(array: xr.DataArray, function: str) -> str:
    """Return the dimension that runs over depth: ``layer`` or ``site``."""
    for dim in _DEPTHS:
        if dim in array.dims:
            return dim
    raise SchemaError(f"{function}: draws over {_DEPTHS}, this array has {tuple(array.dims)}. Keep one of them.")


def _series(array: xr.DataArray, depth: str, function: str) -> tuple[xr.DataArray, list[str]]:
    others = [str(d) for d in array.dims if d != depth]
    if len(others) > 1:
        raise SchemaError(
            f"{function}: draws one line per label of one dimension beside {depth!r}; this array has {others}. "
            f"Average over the rest, for example .mean({others[0]!r})."
        )
    if not others:
        return array.expand_dims("line").transpose("line", depth), [""]
    return array.transpose(others[0], depth), labels_of(array, others[0])


def _colour(name: str, index: int) -> str:
    fixed = {"sink": SINK, "others": OTHER, "other": OTHER, **ROLE_COLOURS}
    return fixed.get(name, PALETTE[index % len(PALETTE)])


@drawn("layer")
def layer_profile(
    array: xr.DataArray,
    *,
    band: tuple[xr.DataArray, xr.DataArray] | None = None,
    ylabel: str = "",
    log: bool = False,
    title: str = "",
    ax: Axes | None = None,
    **look: Unpack[Look],
) -> Axes:
    """Draw one line per label over layers or sites, each with a band if one is given.

    Args:
        array: dims ``(layer,)`` or ``(site,)``, and at most one more, whose labels become the lines.
        band: lower and upper limit, with the dims of ``array``; say in the caption what they are.
        ylabel: label of the y axis; the array's name and units if left out.
        log: draw y on a log scale (values at or below 0 are left out).
        title: title of the axes.
        ax: axes to draw on.
        look: ``caption=False``, ``size=``: see :class:`~sinkscope.plot.theme.Look`.

    Raises:
        SchemaError: no ``layer`` or ``site`` dimension, or two or more others.
    """
    depth = depth_of(array, "layer_profile")
    lines, names = _series(array, depth, "layer_profile")
    axes = axes_for(array, ax)
    x = np.arange(lines.sizes[depth])
    limits = None if band is None else [_series(edge, depth, "layer_profile(band=)")[0].values for edge in band]
    for i, name in enumerate(names):
        colour = _colour(name, i)
        y = np.where(lines.values[i] > 0, lines.values[i], np.nan) if log else lines.values[i]
        axes.plot(x, y, marker="o", color=colour, label=name or None)
        if limits is not None:
            axes.fill_between(x, limits[0][i], limits[1][i], color=colour, alpha=0.18, linewidth=0)
    if log:
        log_scale(axes)
    elif np.nanmin(lines.values, initial=0.0) >= 0:
        axes.set_ylim(bottom=0)
    finish_depth(axes, array, depth)
    axes.set(ylabel=plain(ylabel or _named(array)), title=plain(title))
    name_lines(axes, axes.lines[-len(names) :], names, str(lines.dims[0]))
    return axes


def finish_depth(axes: Axes, array: xr.DataArray, depth: str) -> None:
    """Put the labels of layers or sites on the x axis."""
    labels = labels_of(array, depth)
    set_ticks(axes, "x", labels, most=14 if depth == "layer" else 10)
    if depth == "site":
        axes.tick_params(axis="x", rotation=90)
    axes.set_xlabel("layer" if depth == "layer" else "site in the residual stream")
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.grid(axis="y")


def _named(array: xr.DataArray) -> str:
    name = str(array.attrs.get("long_name", array.name or ""))
    units = array.attrs.get("units")
    return f"{name} [{units}]" if units and units != "1" else name


@drawn(takes=two_lines("residual_norm", "l2 norm of the residual stream of the first token and of the others, mean"))
def norm_profile(
    array: xr.DataArray,
    *,
    log: bool = True,
    title: str = "Norm of the residual stream",
    ax: Axes | None = None,
    **look: Unpack[Look],
) -> Axes:
    """Draw norms over depth, one line per group of tokens (Gu et al. 2025, figure 2: sink against others).

    Args:
        array: dims ``(site,)`` or ``(layer,)`` and at most one more with the groups (``sink``, ``others``). Or a
            reading: its first token against the others.
        log: log scale.
        title: title of the axes.
        ax: axes to draw on.
        look: ``caption=False``, ``size=``: see :class:`~sinkscope.plot.theme.Look`.
    """
    return layer_profile(array, ylabel="l2 norm", log=log, title=title, ax=ax)


@drawn(takes=largest_entries)
def top_values_by_layer(
    top: xr.DataArray,
    median: xr.DataArray | None = None,
    *,
    ranks: int = 3,
    title: str = "Largest activations",
    ax: Axes | None = None,
    **look: Unpack[Look],
) -> Axes:
    """Draw the largest magnitudes of the residual stream and their median over depth (Sun et al. 2024, figure 4).

    Args:
        top: magnitudes, dims ``(site, rank)`` or ``(layer, rank)``: the mean over prompts, say. Or a reading, alone.
        median: median magnitude, dims ``(site,)`` or ``(layer,)``.
        ranks: how many of the largest to draw.
        title: title of the axes.
        ax: axes to draw on.
        look: ``caption=False``, ``size=``: see :class:`~sinkscope.plot.theme.Look`.
    """
    if median is None:
        raise SchemaError("top_values_by_layer: the median is missing. Pass it too, or a reading.")
    depth = depth_of(top, "top_values_by_layer")
    values = need_dims(top, (depth, "rank"), "top_values_by_layer").values
    middle = need_dims(median, (depth,), "top_values_by_layer(median=)").values
    axes = axes_for(top, ax)
    x = np.arange(values.shape[0])
    for rank in range(min(ranks, values.shape[1])):
        axes.plot(x, _positive(values[:, rank]), marker="o", markerfacecolor="white", color=PALETTE[rank % 7],
                  label=f"top {rank + 1}")  # fmt: skip
    axes.plot(x, _positive(middle), marker="v", color=PALETTE[7], label="median")
    axes.set_yscale("log")
    finish_depth(axes, top, depth)
    axes.set(ylabel="magnitude of an entry", title=plain(title))
    drawn_lines = axes.lines[-1 - min(ranks, values.shape[1]) :]
    name_lines(axes, drawn_lines, [str(line.get_label()) for line in drawn_lines])
    return axes


def _positive(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, np.nan)


@drawn("layer", "role", takes=shares_of_roles)
def role_share_by_layer(
    array: xr.DataArray, *, title: str = "Where attention goes", ax: Axes | None = None, **look: Unpack[Look]
) -> Axes:
    """Draw the share of attention on each role as stacked bars, one per layer.

    What is missing to 1 went to no token: an implicit sink (a learned sink logit, softmax-off-by-one).

    Args:
        array: a reading, or dims ``(layer, role)``; attention weight, mean over prompts, heads and queries.
        title: title of the axes.
        ax: axes to draw on.
        look: ``caption=False``, ``size=``: see :class:`~sinkscope.plot.theme.Look`.
    """
    grid = need_dims(array, ("layer", "role"), "role_share_by_layer")
    roles = labels_of(grid, "role")
    axes = axes_for(array, ax)
    x = np.arange(grid.sizes["layer"])
    bottom = np.zeros(len(x))
    for i, role in enumerate(roles):
        share = np.nan_to_num(grid.values[:, i])
        if not share.any():
            continue
        axes.bar(x, share, bottom=bottom, width=0.86, color=_colour(role, i), label=role)
        bottom = bottom + share
    finish_depth(axes, grid, "layer")
    axes.grid(visible=False)
    axes.set(ylabel="share of attention", ylim=(0, max(1.0, float(bottom.max()))), title=plain(title))
    legend_beside(axes)
    return axes


def legend_beside(axes: Axes, names: Sequence[str] = ()) -> None:
    """Put the legend to the right of the axes, in the order that bars are stacked."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles[::-1], list(names) or labels[::-1], loc="upper left", bbox_to_anchor=(1.01, 1.0),
                    borderaxespad=0.0)  # fmt: skip
