"""A number for every pair of query and key that is no attention weight: cosines, products of norms, logits."""

from __future__ import annotations

from typing import Unpack

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes

from sinkscope.plot.labels import labels_of, need_dims, plain, set_token_ticks, token_labels
from sinkscope.plot.readings import drawn
from sinkscope.plot.theme import DIVERGING, MISSING, SEQUENTIAL, Look, axes_for


@drawn("query", "key")
def pair_map(
    array: xr.DataArray,
    *,
    signed: bool = False,
    limit: float | None = None,
    label: str = "",
    title: str = "",
    ax: Axes | None = None,
    **look: Unpack[Look],
) -> Axes:
    """Draw a number per query and key, tokens along both axes (Gu et al. 2025, figure 2; Sun et al. 2024, figure 5).

    Args:
        array: dims ``(query, key)``; NaN where the query cannot see it. The coordinate ``token`` (key) labels both.
        signed: white at zero and a scale that is symmetric, for cosines and logits.
        limit: number with the darkest colour; the largest magnitude if left out.
        label: label of the colour bar; name and units of the array if left out.
        title: title of the axes.
        ax: axes to draw on.
        look: ``caption=False``, ``size=``: see :class:`~sinkscope.plot.theme.Look`.
    """
    grid = need_dims(array, ("query", "key"), "pair_map")
    axes = axes_for(array, ax, height=1.35)
    finite = np.abs(grid.values[np.isfinite(grid.values)])
    top = limit if limit is not None else float(finite.max()) if finite.size else 1.0
    colours = colormaps.get_cmap(DIVERGING if signed else SEQUENTIAL).with_extremes(bad=MISSING)
    low = -top if signed else 0.0
    image = axes.imshow(np.ma.masked_invalid(grid.values), aspect="auto", cmap=colours, vmin=low, vmax=top)
    figure = axes.get_figure()
    assert figure is not None
    bar = figure.colorbar(image, ax=axes, fraction=0.06, pad=0.02)
    bar.set_label(plain(label or str(array.attrs.get("long_name", array.name or ""))))
    bar.outline.set_visible(False)  # type: ignore[operator]
    named = "token" in grid.coords and grid["token"].dims == ("key",)
    labels = token_labels(grid["token"].values, 9) if named else labels_of(grid, "key")
    set_token_ticks(axes, labels, labels if named else labels_of(grid, "query"))
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set(xlabel="key", ylabel="query", title=plain(title))
    return axes
