"""The picture of massive activations: token by dimension by magnitude."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack, cast

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from mpl_toolkits.mplot3d.axes3d import Axes3D

from sinkscope.errors import SchemaError
from sinkscope.plot.labels import need_dims, plain, token_labels
from sinkscope.plot.theme import OTHER, SINK, Look, axes_for, dot, themed

_NEEDS = ("top_value", "top_dim", "top_position")


@themed
def massive_activations_picture(
    ds: xr.Dataset,
    *,
    highlight: Sequence[int] = (),
    max_tokens: int = 10,
    title: str | None = None,
    ax: Axes | None = None,
    **look: Unpack[Look],
) -> Axes:
    """Draw the largest entries of the residual stream as stems: token x dimension x magnitude (Sun et al. 2024).

    Args:
        ds: a reading, of which the prompt and the site with the largest entry are drawn, or one prompt and one site of
            it, ``ds.isel(prompt=0).sel(site="3.post")``: ``top_value``, ``top_dim`` and ``top_position`` with the dim
            ``rank``, ``median_abs`` and the coordinate ``token`` if it has them.
        highlight: dimensions drawn in the sink's colour (those that carry a sink); the largest entry's if left out.
        max_tokens: most positions with a token label: the carriers and the first ones.
        title: title; the site if left out.
        ax: three-dimensional axes to draw on (``projection="3d"``).
        look: ``caption=False``, ``size=``: see :class:`~sinkscope.plot.theme.Look`.

    Raises:
        SchemaError: more than one prompt or site is left, a variable is missing, or ``ax`` is flat.
    """
    missing = [name for name in _NEEDS if name not in ds]
    if missing:
        raise SchemaError(f"massive_activations_picture: {missing} are missing. Run with MassiveActivations().")
    if ax is not None and not isinstance(ax, Axes3D):
        raise SchemaError('massive_activations_picture: ax is flat. Make it with subplot_kw={"projection": "3d"}.')
    ds = _largest(ds)
    value, dim, place = (need_dims(ds[n], ("rank",), "massive_activations_picture").values for n in _NEEDS)
    kept = np.isfinite(value) & np.isfinite(dim) & np.isfinite(place)
    value, dim, place = np.abs(value[kept]), dim[kept].astype(int), place[kept].astype(int)
    source = ds["top_value"].assign_attrs({**ds.attrs, "definition": _caption(ds)})
    axes = cast(Axes3D, axes_for(source, ax, height=1.0, projection="3d"))
    chosen = set(highlight) or ({int(dim[0])} if dim.size else set())
    for z, d, t in zip(value, dim, place, strict=True):
        colour = SINK if d in chosen else OTHER
        axes.plot([t, t], [d, d], [0, z], color=colour, solid_capstyle="round")
        axes.scatter([t], [d], [z], color=colour, s=dot(), depthshade=False)  # type: ignore[arg-type]
    large = dim[value >= 0.05 * value.max()] if dim.size else dim
    _decorate(axes, ds, place, np.concatenate([dim[np.isin(dim, list(chosen))], large]), max_tokens)
    axes.set_title(plain(f"Largest activations at {_site(ds)}" if title is None else title))
    return axes


def _largest(ds: xr.Dataset) -> xr.Dataset:
    """Of a whole reading, take the prompt and the site that hold the largest entry."""
    left = [dim for dim in ("prompt", "site") if dim in ds["top_value"].dims]
    if not left or set(ds["top_value"].dims) - {"prompt", "site", "rank"}:
        return ds
    sizes = abs(ds["top_value"]).max("rank").transpose(*left)
    at = np.unravel_index(int(sizes.fillna(-1).values.argmax()), sizes.shape)
    return ds.isel({dim: int(i) for dim, i in zip(left, at, strict=True)})


def _site(ds: xr.Dataset) -> str:
    return str(ds["site"].item()) if "site" in ds.coords and ds["site"].ndim == 0 else "one site"


def _caption(ds: xr.Dataset) -> str:
    text = f"the {ds.sizes['rank']} largest magnitudes at {_site(ds)}"
    if "median_abs" in ds and ds["median_abs"].ndim == 0:
        text += f"; median magnitude {float(ds['median_abs']):.3g}"
    return text


def _decorate(axes: Axes3D, ds: xr.Dataset, place: np.ndarray, dims: np.ndarray, max_tokens: int) -> None:
    tokens = token_labels(ds["token"].values.tolist(), 9) if "token" in ds.coords and ds["token"].ndim == 1 else None
    last = int(place.max()) if place.size else 0
    length = last + 1 if tokens is None else max(last + 1, sum(t != "∅" for t in tokens))
    shown = _spread([*place.tolist(), *range(0, length, max(1, length // max_tokens))], length / max_tokens)
    axes.set_xticks(shown, [str(t) if tokens is None or t >= len(tokens) else tokens[t] for t in shown])
    axes.set_xlim(0, max(1, length - 1))
    width = int(ds.attrs.get("d_model", 0)) or (int(ds["top_dim"].max()) + 1)
    axes.set_ylim(0, max(1, width - 1))
    marks = _spread(list(dict.fromkeys(dims.tolist())), width / 7)[:6]
    axes.set_yticks(marks or [0, width - 1])
    axes.set_zlim(bottom=0)
    axes.tick_params(axis="x", rotation=75, pad=-3)
    for label in axes.get_xticklabels():
        label.set_verticalalignment("top")
    axes.set_ylabel("dimension")
    axes.set_zlabel("magnitude")
    axes.zaxis.labelpad = axes.yaxis.labelpad = 0.7 * float(mpl.rcParams["font.size"])
    axes.view_init(elev=22, azim=-58)
    axes.set_box_aspect((1.6, 1.1, 0.9), zoom=0.9)  # type: ignore[arg-type]


def _spread(wanted: list[int], gap: float) -> list[int]:
    """Keep positions at least ``gap`` apart, the earlier in the list first: a carrier wins over its neighbours."""
    kept: list[int] = []
    for position in wanted:
        if all(abs(position - other) >= gap for other in kept):
            kept.append(position)
    return sorted(kept)
