"""Figures into files, for the command line and the demo. Nothing is written if drawing fails."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sinkscope.errors import SchemaError
from sinkscope.files import write

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from sinkscope.report import Sinks

Style = Literal["paper", "slide", "page"]


@contextmanager
def figure_file(target: Path, style: Style) -> Iterator[list[Figure]]:
    """Give a list for one figure, drawn in the theme; it is written to ``target`` when the context ends well."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    from sinkscope.plot import theme

    buffer, holder = io.BytesIO(), []
    try:
        with theme(style):
            yield holder
            holder[0].savefig(buffer, format=target.suffix[1:])
        write(target, buffer.getvalue())
    finally:
        plt.close("all")


def draw_figure(ds: xr.Dataset, name: str, target: Path, *, style: Style = "page", sinks: Sinks | None = None) -> None:
    """Draw one figure of a reading by name.

    Raises:
        SchemaError: there is no such figure, or the reading lacks what it needs.
    """
    from sinkscope.report import draw

    with figure_file(target, style) as holder:
        holder.append(_figure(draw(ds, name, sinks=sinks)))


def draw_effects(change: xr.Dataset, source: xr.Dataset, controls: Sequence[str], target: Path) -> None:
    """Draw what ``metrics.compare`` found for each edit of ``source``, largest loss on top; ``controls`` are marked."""
    from sinkscope import plot

    ordered = change.sortby("difference")
    names = [f"{label} (control)" if label in controls else str(label) for label in ordered["edit"].values]
    ordered = ordered.assign_coords(edit=names)
    effect = ordered["difference"].rename("change of the attention on the first token")
    effect = plot.described(effect, source, "bars: mean over prompts, whiskers: 95% bootstrap interval")
    with figure_file(target, "page") as holder:
        title = "Attention on the first token when a dimension is zeroed there"
        holder.append(_figure(plot.effect_bars(effect, interval=(ordered["low"], ordered["high"]), title=title)))


def draw_changes(change: xr.Dataset, source: xr.Dataset, controls: Sequence[str], target: Path) -> None:
    """Draw what each edit of ``source`` costs in nats a token, on a symmetric logarithmic axis; controls are marked."""
    from sinkscope import plot

    ordered = change.sortby("difference")
    names = [f"{label} (control)" if label in controls else str(label) for label in ordered["edit"].values]
    ordered = ordered.assign_coords(edit=names)
    effect = ordered["difference"].rename("change of the loss per token")
    effect = plot.described(effect, source, "bars: mean over prompts, whiskers: 95% bootstrap interval")
    with figure_file(target, "page") as holder:
        axes = plot.effect_bars(
            effect, interval=(ordered["low"], ordered["high"]), title="What each edit costs the prediction"
        )
        axes.set_xscale("symlog", linthresh=0.1)
        holder.append(_figure(axes))


def draw_comparison(result: xr.Dataset, where: str, target: Path) -> None:
    """Draw what ``metrics.compare`` found at ``where``: a map of layers and heads, a curve over numbers, or bars.

    Raises:
        SchemaError: more dimensions than a figure has.
    """
    from sinkscope import plot

    result = result if result.dims else result.expand_dims(edit=[result.attrs["variable"]])
    dims = [str(dim) for dim in result.dims]
    at = f" at {where}" if where else ""
    title = f"{result.attrs['variable']}{at}, less {result.attrs['to']}"
    ordered = [dim for dim in dims if dim in result.coords and result[dim].dtype.kind in "if" and result.sizes[dim] > 1]
    ordered.sort(key=lambda dim: dim.endswith(("layer", "head")))  # a strength goes along the axis, layers are lines
    with figure_file(target, "page") as holder:
        if {dim.removeprefix("edit_") for dim in dims} == {"layer", "head"}:
            holder.append(_figure(plot.effect_map(result, title=title)))
        elif ordered and len(dims) <= 2:
            reference = 1.0 if ordered[0] in ("gamma", "alpha") else None
            holder.append(_figure(plot.sweep_curve(result, x=ordered[0], reference=reference, title=title)))
        elif len(dims) == 1:
            holder.append(_figure(plot.effect_bars(result, title=title)))
        else:
            raise SchemaError(
                f"compare --figure: {dims} can't be drawn together. Leave layer and head, or a strength and one beside "
                "it: --select DIM=LABEL, --mean DIM."
            )


def draw_stages(traced: xr.Dataset, source: xr.Dataset, target: Path) -> None:
    """Draw the magnitude of the massive dimension at each block's output: first token, other tokens, median entry."""
    import matplotlib.pyplot as plt

    from sinkscope import plot

    others = traced["others"]
    with figure_file(target, "page") as holder:
        figure, axes = plt.subplots(figsize=(8, 4))
        axes.plot(traced["layer"], traced["value"], marker="o", label="first token (median of the prompts)")
        depth = others["layer"].broadcast_like(others)
        axes.plot(depth.values.ravel(), others.values.ravel(), ".", alpha=0.4, label="other tokens, each a dot")
        axes.plot(traced["layer"], traced["median"], label="median of all dimensions")
        axes.set(
            yscale="log", xlabel="block", ylabel="magnitude at its output",
            title=f"Dimension {traced.attrs['dim']} through the blocks",
        )  # fmt: skip
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        plot.caption(figure, source)
        holder.append(figure)


def draw_overview(ds: xr.Dataset, sinks: Sinks | None, target: Path) -> None:
    """Draw three panels side by side: where the sink is, how its values are drained, what grows with depth."""
    import matplotlib.pyplot as plt
    import xarray as xr

    from sinkscope import plot

    values = ds["value_norm"].drop_vars([n for n in ds["value_norm"].coords if n not in ds["value_norm"].dims])
    mask = sinks.mask if sinks is not None else xr.ones_like(ds["token_role"], dtype=bool).cumsum("key") == 1
    label = sinks.label if sinks is not None else "the first token"
    grid = ds["key_mass"].where(mask).mean(["prompt", "key"])
    with figure_file(target, "page") as holder:
        figure, axes = plt.subplots(1, 3, figsize=(13.2, 3.9), width_ratios=[1.15, 1, 1])
        plot.sink_map(grid, title=f"Attention on {label}", ax=axes[0])
        plot.value_drain(values.where(mask), values.where(~mask), title="Length of its value vectors", ax=axes[1])
        plot.top_values_by_layer(
            abs(ds["top_value"]).mean("prompt"), ds["median_abs"].mean("prompt"),
            title="Largest activations", ax=axes[2],
        )  # fmt: skip
        plot.caption(figure, ds)
        holder.append(figure)


def _figure(axes: Any) -> Figure:
    return axes.get_figure(root=True)
