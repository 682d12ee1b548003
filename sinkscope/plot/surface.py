"""The whole residual stream at one site: a bar for every entry, token by dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack, cast

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from mpl_toolkits.mplot3d.art3d import Line3DCollection
from mpl_toolkits.mplot3d.axes3d import Axes3D

from sinkscope.errors import SchemaError
from sinkscope.plot.labels import need_dims, plain, token_labels
from sinkscope.plot.readings import drawn
from sinkscope.plot.theme import OTHER, SINK, Look, axes_for, thin

MOST_NAMED = 4
POWERS = "⁰¹²³⁴⁵⁶⁷⁸⁹"


@drawn("key", "dim")
def activation_surface(
    array: xr.DataArray,
    *,
    named: Sequence[int] | None = None,
    top: float | None = None,
    title: str = "Every entry of the residual stream",
    ax: Axes | None = None,
    **look: Unpack[Look],
) -> Axes:
    """Draw every entry at one site as a bar, token x dimension x magnitude (Sun et al. 2024, figure 1).

    Heights are multiples of the median magnitude on a logarithmic axis, so that ordinary entries are seen beside the
    massive ones, and models can be compared; what is below the median has no bar.

    Args:
        array: magnitudes of one prompt at one site, dims ``(key, dim)``; the coordinate ``token`` (key) labels tokens.
        named: dimensions whose bars are drawn in the sink's colour and named; if left out those of the entries above a
            tenth of the largest, four at most.
        top: multiple of the median at which the axis ends; the largest if left out.
        title: title of the axes.
        ax: three-dimensional axes to draw on (``projection="3d"``).
        look: ``caption=False``, ``size=``: see :class:`~sinkscope.plot.theme.Look`.

    Raises:
        SchemaError: other dims, nothing but zeros, ``top`` not above 1, or ``ax`` is flat.
    """
    grid = need_dims(array, ("key", "dim"), "activation_surface")
    if ax is not None and not isinstance(ax, Axes3D):
        raise SchemaError('activation_surface: ax is flat. Make it with subplot_kw={"projection": "3d"}.')
    if top is not None and not top > 1:
        raise SchemaError(f"activation_surface(top={top!r}): the axis starts at 1, the median. Give a larger multiple.")
    size = np.abs(grid.values.astype(float))
    middle = float(np.nanmedian(size))
    if not middle > 0:
        raise SchemaError("activation_surface: the median magnitude is 0, there is nothing to draw. Take another site.")
    height = np.log10(np.maximum(np.nan_to_num(size) / middle, 1.0))
    chosen = _largest(size) if named is None else [int(d) for d in named if 0 <= d < size.shape[1]]
    axes = cast(Axes3D, axes_for(array, ax, height=1.1, projection="3d"))
    for colour, width, kept in (
        (OTHER, 0.35, _columns(size, chosen, False)),
        (SINK, 1.0, _columns(size, chosen, True)),
    ):
        token, dim = np.nonzero((height > 0) & kept)
        if not token.size:
            continue
        foot, head = np.zeros(token.size), height[token, dim]
        bars = np.stack([np.stack([token, dim, foot], 1), np.stack([token, dim, head], 1)], 1).astype(float)
        axes.add_collection3d(Line3DCollection(list(bars), colors=colour, linewidths=width * thin(), rasterized=True))
    _name(axes, height, chosen)
    _decorate(axes, grid, float(np.log10(top)) if top is not None else float(height.max()))
    axes.set_title(plain(title), y=0.98)
    return axes


def _columns(size: np.ndarray, chosen: Sequence[int], inside: bool) -> np.ndarray:
    return np.broadcast_to(np.isin(np.arange(size.shape[1]), list(chosen)) == inside, size.shape)


def _largest(size: np.ndarray) -> list[int]:
    peaks = np.nanmax(size, axis=0)
    order = np.argsort(-peaks, kind="stable")[:MOST_NAMED]
    return [int(d) for d in order if peaks[d] >= 0.1 * peaks.max()]


def _name(axes: Axes3D, height: np.ndarray, chosen: Sequence[int]) -> None:
    """Write the number of each chosen dimension over its highest bar; names that would lie on each other are joined."""
    size = 0.9 * float(mpl.rcParams["xtick.labelsize"])
    by_token: dict[int, list[int]] = {}
    for dim in chosen:
        by_token.setdefault(int(height[:, dim].argmax()), []).append(dim)
    for token, dims in by_token.items():
        best = max(dims, key=lambda dim: height[token, dim])
        name = f"dim {', '.join(str(d) for d in dims)}"
        axes.text(token, best, height[token, best] * 1.02, f" {name}", color=SINK, fontsize=size, zorder=10)


def _decorate(axes: Axes3D, grid: xr.DataArray, top: float) -> None:
    length, width = grid.shape
    tokens = (
        token_labels(grid["token"].values.tolist(), 7) if "token" in grid.coords else [str(i) for i in range(length)]
    )
    step = max(1, -(-length // 9))
    shown = list(range(0, length, step))
    axes.set_xticks(shown, [tokens[i] for i in shown])
    axes.set(xlim=(0, max(1, length - 1)), ylim=(0, max(1, width - 1)), ylabel="dimension", zlabel="times the median")
    decades = max(1, int(np.ceil(top - 0.05)))
    axes.set_zlim(0, max(decades, top))
    axes.zaxis.set_ticks(
        range(decades + 1), ["1", "10", *(f"10{POWERS[k]}" for k in range(2, decades + 1))][: decades + 1]
    )
    axes.tick_params(axis="x", rotation=65, pad=-4)
    axes.tick_params(axis="y", pad=-2)
    axes.tick_params(axis="z", pad=0)  # type: ignore[arg-type]
    for label in axes.get_xticklabels():
        label.set_verticalalignment("top")
    size = float(mpl.rcParams["font.size"])
    axes.yaxis.labelpad, axes.zaxis.labelpad = 0.2 * size, -0.1 * size
    axes.locator_params(axis="y", nbins=5)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_pane_color((1, 1, 1, 0))  # type: ignore[union-attr]
        # There is no other way to colour the grid of axes in space.
        axis._axinfo["grid"]["color"] = "#E6E6E6"  # type: ignore[union-attr]
    axes.view_init(elev=24, azim=-52)
    axes.set_box_aspect((1.25, 1.35, 0.95), zoom=0.96)  # type: ignore[arg-type]
