"""The figures of a reading: each selects what it shows and hands it to :mod:`sinkscope.plot`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from sinkscope.metrics.bimodal import bimodality
from sinkscope.report.figures import figure
from sinkscope.report.images import View, question, views
from sinkscope.report.sinks import Sinks

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _groups(array: xr.DataArray, sinks: Sinks | None) -> tuple[xr.DataArray, xr.DataArray]:
    """Split an array with the dims ``prompt`` and ``key`` into the sink's tokens and the others."""
    plain = array.drop_vars([n for n in array.coords if n not in array.dims])
    mask = sinks.mask if sinks is not None else xr.DataArray(np.arange(array.sizes["key"]) == 0, dims="key")
    return plain.where(mask), plain.where(~mask)


def _name(sinks: Sinks | None) -> str:
    return sinks.label if sinks is not None else "the first token"


def both(first: xr.DataArray, second: xr.DataArray) -> xr.DataArray:
    """Join what the sink's tokens and the others gave, as two lines of a figure."""
    return xr.concat([first, second], "tokens").assign_coords(tokens=["sink", "others"])


@figure("Where the sink is", needs=["key_mass"])
def sink_map(ds: xr.Dataset, sinks: Sinks | None) -> Axes:
    """Layers upwards, heads along."""
    from sinkscope import plot

    grid = _groups(ds["key_mass"], sinks)[0].mean(["prompt", "key"])
    says = f"mean attention on {_name(sinks)} from the queries that see it (Gu et al. 2025)"
    return plot.sink_map(plot.described(grid, ds, says))


@figure("The sink over depth", needs=["key_mass"])
def sink_profile(ds: xr.Dataset, sinks: Sinks | None) -> Axes:
    """The sink against one other token."""
    from sinkscope import plot

    sink, others = (part.mean(["prompt", "key"]) for part in _groups(ds["key_mass"], sinks))
    heads = both(sink, others)
    with warnings.catch_warnings():
        # A group without a token is drawn as a gap, not warned of.
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        low, high = (heads.quantile(q, "head") for q in (0.25, 0.75))
    says = f"attention on {_name(sinks)} and on any other token; line: mean over heads, band: their quartiles"
    mean = plot.described(heads.mean("head"), ds, says)
    return plot.layer_profile(mean, band=(low, high), ylabel="mean attention weight", title="Attention by layer")


@figure("Where attention goes", needs=["role_share"])
def role_share(ds: xr.Dataset, sinks: Sinks | None) -> Axes:
    """Shares by the role of the key."""
    from sinkscope import plot

    return plot.role_share_by_layer(ds)


@figure("How its values are drained", needs=["value_norm"])
def value_drain(ds: xr.Dataset, sinks: Sinks | None) -> Axes:
    """Boxes span the quartiles."""
    from sinkscope import plot

    norm = ds["value_norm"].assign_coords(prompt=ds["prompt"].values)
    sink, others = _groups(norm, sinks)
    says = f"l2 norm of the value vectors of {_name(sinks)} and of the other tokens, every key-value head and prompt"
    return plot.value_drain(plot.described(sink, ds, says), others)


@figure("Massive activations over depth", needs=["top_value", "median_abs"])
def top_values(ds: xr.Dataset, sinks: Sinks | None) -> Axes:
    """Log scale."""
    from sinkscope import plot

    return plot.top_values_by_layer(ds)


@figure("Where the massive activations are", needs=["top_value", "top_dim", "top_position"])
def massive_activations(ds: xr.Dataset, sinks: Sinks | None) -> Axes:
    """The prompt and site with the largest entry; the dimension of that entry is marked."""
    from sinkscope import plot

    return plot.massive_activations_picture(ds)


@figure("Norms over depth", needs=["residual_norm"])
def residual_norm(ds: xr.Dataset, sinks: Sinks | None) -> Axes:
    """Log scale."""
    from sinkscope import plot

    sink, others = (part.mean(["prompt", "key"]) for part in _groups(ds["residual_norm"], sinks))
    says = f"l2 norm of the residual stream of {_name(sinks)} and of the other tokens, mean"
    return plot.norm_profile(plot.described(both(sink, others), ds, says))


@figure("Entropy of every head", needs=["entropy"])
def entropy_map(ds: xr.Dataset, sinks: Sinks | None) -> Axes:
    """Dark rows spread their attention."""
    from sinkscope import plot

    return plot.entropy_map(ds)


@figure("One class of heads or two", needs=["max_attention"])
def max_attention(ds: xr.Dataset, sinks: Sinks | None) -> Axes:
    """Mixture of two normals."""
    from sinkscope import plot

    values = ds["max_attention"].mean("query").rename("largest attention weight on the chosen keys")
    says = "largest weight on the chosen keys, mean over queries, one number per prompt, layer and head (Kan et al.)"
    names = ("low heads", "high heads")
    return plot.max_attention_histogram(plot.described(values, ds, says), bimodality(values), names=names)


@figure("Attention on image patches", needs=["key_mass", "grid_row"])
def image_patches(ds: xr.Dataset, sinks: Sinks | None) -> Axes:
    """Patches where they lie on the image."""
    from sinkscope import plot

    found = views(ds)
    if found:
        return _one_view(ds, found[0], None)
    placed = np.isfinite(ds["grid_row"].transpose("prompt", "key").values)
    prompt = int(placed.any(axis=1).argmax())
    mass = ds["key_mass"].isel(prompt=prompt).mean(["layer", "head"])
    cells = list(zip(ds["grid_row"].values[prompt].tolist(), ds["grid_col"].values[prompt].tolist(), strict=True))
    first = {cell: i for i, cell in reversed(list(enumerate(cells)))}
    mass = mass.where(xr.DataArray([first[cell] == i for i, cell in enumerate(cells)], dims="key"))
    rows, columns = (int(np.nanmax(ds[name].values[prompt])) + 1 for name in ("grid_row", "grid_col"))
    blank = np.ones((rows * 16, columns * 16, 3))
    says = (
        f"mean attention on each patch of the first image of prompt {ds['prompt'].values[prompt]}, all layers and heads"
    )
    return plot.patch_overlay(blank, plot.described(mass.rename("attention weight"), ds, says), title="Patches")


def _one_view(ds: xr.Dataset, view: View, ax: Axes | None, limits: tuple[float, float] | None = None) -> Axes:
    """Mean attention on the tokens of one picture, on the picture if it is known, else on a blank of its size."""
    from sinkscope import plot

    mass = ds["key_mass"].isel(prompt=view.prompt).mean(["layer", "head"])
    mass = mass.where(xr.DataArray(np.isin(np.arange(mass.sizes["key"]), view.keys), dims="key"))
    mass = mass.rename("attention weight").assign_attrs(long_name="attention weight")
    prompt = ds["prompt"].values[view.prompt]
    says = f"mean attention on each patch of {view.label} of prompt {prompt}, all layers and heads"
    blank = np.ones((int(np.ceil(view.size[1])), int(np.ceil(view.size[0])), 3))
    picture = blank if view.picture is None else np.asarray(view.picture)
    title = question(ds, view.prompt, 34) or f"prompt {prompt}"
    return plot.patch_overlay(picture, plot.described(mass, ds, says), limits=limits, title=title, ax=ax)


@figure("An attention map", needs=["attention"])
def attention_map(ds: xr.Dataset, sinks: Sinks | None) -> Axes:
    """The first map that was asked for."""
    from sinkscope import plot

    stored = ds["attention"].isel(prompt=0)
    known = stored.notnull().any(["query", "key"]).transpose("layer", "head").values
    layer, head = (int(i) for i in np.argwhere(known)[0]) if known.any() else (0, 0)
    one = stored.isel(layer=layer, head=head, query=slice(0, 40), key=slice(0, 40))
    return plot.attention_map(plot.described(one, ds, "attention map of prompt 0, at most 40 tokens"))


def gallery(ds: xr.Dataset, found: Sequence[View]) -> Axes:
    """Mean attention on up to six pictures, on one scale."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    from sinkscope import plot

    firsts = {view.prompt: view for view in reversed(found)}
    shown = [firsts[prompt] for prompt in sorted(firsts)][:6]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    width = mpl.rcParams["figure.figsize"][0] * 1.35
    figure, axes = plt.subplots(rows, columns, figsize=(width, 0.35 + rows * width / columns), squeeze=False)
    mass = ds["key_mass"].mean(["layer", "head"]).transpose("prompt", "key").values
    top = max(float(np.nanmax(mass[view.prompt][view.keys])) for view in shown)
    for number, (axis, view) in enumerate(zip(axes.flat, shown, strict=False)):
        drawn = _one_view(ds, view, axis, (0.0, top)).collections[0]
        if number % columns < columns - 1 and number < len(shown) - 1:
            drawn.colorbar.remove()  # type: ignore[union-attr]
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    says = "mean attention on each patch, all layers and heads, one scale for all pictures"
    plot.caption(figure, ds, definition=says)
    return axes[0, 0]
