"""Maps: a number per layer and head, or per query and key, as colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap
from matplotlib.image import AxesImage
from matplotlib.patches import Patch

from sinkscope.plot.labels import labels_of, need_dims, plain, set_ticks, set_token_ticks, token_labels
from sinkscope.plot.readings import differences_of_heads, drawn, entropy_of_heads, first_map, on_first_token
from sinkscope.plot.theme import DIVERGING, MISSING, OTHER, PALETTE, SEQUENTIAL, SINK, Look, axes_for, dot


def _image(ax: Axes, values: np.ndarray, limits: tuple[float, float], cmap: str | Colormap, bar: str) -> AxesImage:
    colours = colormaps.get_cmap(cmap).with_extremes(bad=MISSING)
    image = ax.imshow(np.ma.masked_invalid(values), aspect="auto", cmap=colours, vmin=limits[0], vmax=limits[1])
    figure = ax.get_figure()
    assert figure is not None
    colorbar = figure.colorbar(image, ax=ax, fraction=0.06, pad=0.02)
    colorbar.set_label(bar)
    colorbar.outline.set_visible(False)  # type: ignore[operator]
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.tick_params(length=0)
    return image


def _layer_head(array: xr.DataArray, function: str) -> tuple[xr.DataArray, list[str], list[str]]:
    grid = need_dims(array, ("layer", "head"), function)
    return grid, labels_of(grid, "layer"), labels_of(grid, "head")


def _head_axes(ax: Axes, layers: Sequence[str], heads: Sequence[str], title: str) -> None:
    set_ticks(ax, "x", heads)
    set_ticks(ax, "y", layers)
    # Layer 0 below: the residual stream is drawn upwards in the field.
    ax.set_ylim(-0.5, len(layers) - 0.5)
    ax.set(xlabel="head", ylabel="layer", title=plain(title))


@drawn("layer", "head", takes=on_first_token)
def sink_map(
    array: xr.DataArray,
    *,
    vmax: float = 1.0,
    title: str = "Attention on the sink",
    label: str = "mean attention weight",
    ax: Axes | None = None,
    **look: Unpack[Look],
) -> Axes:
    """Draw the mean attention that one key gets, for every layer and head (Gu et al. 2025, head-wise heat map).

    Args:
        array: dims ``(layer, head)``, for example ``ds.key_mass.isel(key=0).mean("prompt")``; attention weight 0 to 1.
            Or a reading: its first token is drawn.
        vmax: weight with the darkest colour; 1 keeps figures of different models comparable.
        title: title of the axes.
        label: label of the colour bar.
        ax: axes to draw on; a new captioned figure if left out.
        look: ``caption=False``, ``size=``: see :class:`~sinkscope.plot.theme.Look`.
    """
    grid, layers, heads = _layer_head(array, "sink_map")
    axes = axes_for(array, ax, height=1.0)
    _image(axes, grid.values, (0.0, vmax), SEQUENTIAL, plain(label))
    _head_axes(axes, layers, heads, title)
    return axes


@drawn("layer", "head", takes=entropy_of_heads)
def entropy_map(
    array: xr.DataArray,
    *,
    vmax: float | None = None,
    title: str = "Attention entropy",
    ax: Axes | None = None,
    **look: Unpack[Look],
) -> Axes:
    """Draw the mean entropy of the attention rows for every layer and head.

    Args:
        array: a reading, or dims ``(layer, head)``, in nats (or normalised: then say so in ``attrs["units"]``).
        vmax: entropy with the darkest colour; the largest value if left out.
        title: title of the axes.
        ax: axes to draw on.
        look: ``caption=False``, ``size=``: see :class:`~sinkscope.plot.theme.Look`.
    """
    grid, layers, heads = _layer_head(array, "entropy_map")
    axes = axes_for(array, ax)
    top = _largest(grid.values) if vmax is None else vmax
    _image(axes, grid.values, (0.0, top), SEQUENTIAL, f"entropy [{array.attrs.get('units', 'nat')}]")
    _head_axes(axes, layers, heads, title)
    return axes


@drawn("layer", "head", takes=differences_of_heads)
def effect_map(
    array: xr.DataArray,
    *,
    marked: xr.DataArray | None = None,
    limit: float | None = None,
    title: str = "Effect of each head",
    ax: Axes | None = None,
    **look: Unpack[Look],
) -> Axes:
    """Draw a signed effect for every layer and head; white is no effect, and the colour scale is symmetric.

    Args:
        array: dims ``(layer, head)``; ``attrs["units"]`` labels the colour bar. Or what ``metrics.compare`` returned:
            heads whose q-value is below .05 are marked.
        marked: boolean ``(layer, head)``; these heads get a dot (for example: significant after correction).
        limit: effect with the darkest colour; the largest magnitude if left out.
        title: title of the axes.
        ax: axes to draw on.
        look: ``caption=False``, ``size=``: see :class:`~sinkscope.plot.theme.Look`.
    """
    grid, layers, heads = _layer_head(array, "effect_map")
    axes = axes_for(array, ax)
    top = _largest(np.abs(grid.values)) if limit is None else limit
    name = str(array.attrs.get("long_name", array.name or "effect"))
    units = array.attrs.get("units")
    _image(axes, grid.values, (-top, top), DIVERGING, plain(f"{name} [{units}]" if units else name))
    if marked is not None:
        rows, columns = np.nonzero(need_dims(marked, ("layer", "head"), "effect_map(marked=)").values)
        axes.scatter(columns, rows, s=dot(0.7), color="black", linewidths=0)
    _head_axes(axes, layers, heads, title)
    return axes


@drawn("layer", "head")
def head_class_map(
    array: xr.DataArray, *, title: str = "Classes of heads", ax: Axes | None = None, **look: Unpack[Look]
) -> Axes:
    """Draw the class of every head as a colour with a legend; an empty name is drawn as not classified.

    Args:
        array: strings, dims ``(layer, head)``: sink head, vision head, ...
        title: title of the axes.
        ax: axes to draw on.
        look: ``caption=False``, ``size=``: see :class:`~sinkscope.plot.theme.Look`.
    """
    grid, layers, heads = _layer_head(array, "head_class_map")
    names = sorted({str(name) for name in grid.values.ravel().tolist()} - {""})
    axes = axes_for(array, ax)
    index = {name: i for i, name in enumerate(names)}
    codes = np.vectorize(lambda name: index.get(str(name), -1), otypes=[float])(grid.values)
    others = iter(colour for colour in PALETTE * len(names) if colour not in (SINK, OTHER))
    fixed = dict(zip([_class_colour(name) for name in names][::-1], names[::-1], strict=True))  # one class a colour
    own = {name: colour for colour, name in fixed.items() if colour}
    colours = [MISSING, *(own.get(name) or next(others) for name in names)]
    norm = BoundaryNorm(np.arange(-1.5, len(names) + 0.5), len(names) + 1)
    axes.imshow(codes, aspect="auto", cmap=ListedColormap(colours), norm=norm)
    handles = [Patch(color=colours[i + 1], label=plain(name)) for name, i in index.items()]
    if (codes < 0).any():
        handles.append(Patch(color=MISSING, label="not classified"))
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    _head_axes(axes, layers, heads, title)
    return axes


def _class_colour(name: str) -> str:
    """Sinks and vision heads have the colours that they have in the histogram; other classes get others."""
    return SINK if "sink" in name else OTHER if "vision" in name else ""


@drawn("query", "key", takes=first_map)
def attention_map(
    array: xr.DataArray,
    tokens: Sequence[str] | None = None,
    *,
    vmax: float = 1.0,
    title: str | None = None,
    ax: Axes | None = None,
    **look: Unpack[Look],
) -> Axes:
    """Draw the attention map of one prompt, layer and head, with the tokens along both axes.

    Args:
        array: dims ``(query, key)``; attention weight 0 to 1. Rows and columns of NaN (beyond the prompt) are cut. Or a
            reading: its first map is drawn.
        tokens: one string per key; taken from the coordinate ``token`` if left out. Anything may be in them.
        vmax: weight with the darkest colour.
        title: title of the axes; layer and head from the coordinates if left out.
        ax: axes to draw on.
        look: ``caption=False``, ``size=``: see :class:`~sinkscope.plot.theme.Look`.
    """
    grid = need_dims(array, ("query", "key"), "attention_map")
    count = _real_length(grid.values)
    grid = grid.isel(query=slice(0, count), key=slice(0, count))
    texts: Any = tokens if tokens is not None else grid.coords.get("token")
    labels = labels_of(grid, "key") if texts is None else token_labels(np.asarray(texts)[:count].tolist())
    axes = axes_for(array, ax, height=1.35)
    _image(axes, grid.values, (0.0, vmax), SEQUENTIAL, "attention weight")
    set_token_ticks(axes, labels, labels)
    axes.set(xlabel="key", ylabel="query", title=plain(_where(array) if title is None else title))
    return axes


def _where(array: xr.DataArray) -> str:
    parts = [f"{d} {array[d].item()}" for d in ("layer", "head") if d in array.coords and array[d].ndim == 0]
    return ", ".join(parts).capitalize() or "Attention"


def _largest(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    top = float(finite.max()) if finite.size else 0.0
    return top if top > 0 else 1.0


def _real_length(values: np.ndarray) -> int:
    measured = np.flatnonzero(np.isfinite(values).any(axis=1))
    return int(measured[-1]) + 1 if measured.size else values.shape[0]
