"""Numbers on image patches, and phi against attention."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Unpack

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import ListedColormap
from matplotlib.patches import Ellipse, Rectangle
from matplotlib.patheffects import withStroke

from sinkscope.errors import SchemaError
from sinkscope.plot.labels import need_dims, plain
from sinkscope.plot.naming import legend_above
from sinkscope.plot.readings import drawn
from sinkscope.plot.theme import MANY, OTHER, PALETTE, ROLE_COLOURS, SINK, Look, axes_for, dot, themed, thin


def _given(values: xr.DataArray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) > values.sizes["key"]:
        raise SchemaError(
            f"patch_overlay: boxes have the shape {boxes.shape}, expected (up to {values.sizes['key']} tokens, 4). "
            "Pass the boxes of the same prompt."
        )
    edges = np.full((values.sizes["key"], 4), np.nan)
    edges[: len(boxes)] = boxes
    return edges, np.asarray(np.isfinite(edges).all(axis=1))


RAMP = colormaps["RdPu"]
NOWHERE = "patch_overlay: no token of this prompt is an image patch. Choose a prompt with an image."
OVERLAY = ListedColormap([(*RAMP(x)[:3], 0.85 * min(1.0, 1.4 * x)) for x in np.linspace(0, 1, 256)], "overlay")
"""Colours laid on a picture: nothing where the value is lowest, so that what lies beneath stays to be seen."""
BOX = ("box_left", "box_top", "box_right", "box_bottom")
"""Coordinates of a reading that say where a token lies, in pixels of the original image."""


def _placed(values: xr.DataArray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    edges = np.stack([values[name].values.astype(float) for name in BOX], axis=1)
    kept = np.asarray(np.isfinite(edges).all(axis=1))
    if not kept.any():
        raise SchemaError(NOWHERE)
    reach = edges[kept].max(axis=0, initial=0.0)[2:]
    if reach[0] > width + 0.5 or reach[1] > height + 0.5:
        raise SchemaError(
            f"patch_overlay: the tokens reach to {reach[0]:g} x {reach[1]:g} pixels (width x height), the image has "
            f"{width} x {height}. Pass the original image of this prompt."
        )
    return edges, kept


def _tiled(values: xr.DataArray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    if "grid_row" not in values.coords or "grid_col" not in values.coords:
        raise SchemaError(
            "patch_overlay: the coordinates grid_row and grid_col are missing. Use a reading of prompts with images, "
            "one prompt of it."
        )
    row, column = (values[name].values.astype(float) for name in ("grid_row", "grid_col"))
    kept = np.asarray(np.isfinite(row) & np.isfinite(column))
    if not kept.any():
        raise SchemaError(NOWHERE)
    tall, wide = height / (row[kept].max() + 1), width / (column[kept].max() + 1)
    return np.stack([column * wide, row * tall, (column + 1) * wide, (row + 1) * tall], axis=1), kept


@themed
def patch_overlay(
    image: np.ndarray,
    values: xr.DataArray,
    *,
    boxes: np.ndarray | None = None,
    limits: tuple[float, float] | None = None,
    title: str = "",
    ax: Axes | None = None,
    **look: Unpack[Look],
) -> Axes:
    """Draw one number per image patch over the image, each patch where it lies; low numbers leave the image as it is.

    Args:
        image: pixels, ``(height, width)`` or ``(height, width, 3 or 4)``.
        values: dims ``(key,)``, one prompt of a reading. Its coordinates ``box_left``, ``box_top``, ``box_right`` and
            ``box_bottom`` say where each token lies on the original image; without them ``grid_row`` and ``grid_col``
            do, for patches that tile the whole image. NaN: not a patch. Of several images or resolutions keep one
            with ``values.where(...)``.
        boxes: left, top, right and bottom of each token in pixels instead, shape ``(key, 4)``, as in
            ``prompts.grids[i].box``.
        limits: values with the lightest and darkest colour; 0 and the largest if left out.
        title: title of the axes.
        ax: axes to draw on.
        look: ``caption=False``, ``size=``: see :class:`~sinkscope.plot.theme.Look`.
    """
    line = need_dims(values, ("key",), "patch_overlay")
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise SchemaError(f"patch_overlay: an image is (height, width) or (height, width, colour), got {image.shape}.")
    height, width = image.shape[:2]
    if boxes is not None:
        edges, kept = _given(line, np.asarray(boxes, dtype=float))
    else:
        placed = all(name in line.coords for name in BOX)
        edges, kept = (_placed if placed else _tiled)(line, width, height)
    kept = kept & np.isfinite(line.values)
    numbers = line.values[kept]
    axes = axes_for(values, ax, height=0.25 + 1.05 * height / width)
    axes.imshow(image, cmap="gray" if image.ndim == 2 else None, extent=(0, width, height, 0))
    patches = [Rectangle((a, b), c - a, d - b) for a, b, c, d in edges[kept]]
    collection = PatchCollection(patches, cmap=OVERLAY, linewidths=0)
    collection.set_array(numbers)
    collection.set_clim(*(limits or (0.0, float(numbers.max()) if numbers.size and numbers.max() > 0 else 1.0)))
    axes.add_collection(collection)
    figure = axes.get_figure()
    assert figure is not None
    bar = figure.colorbar(collection, ax=axes, fraction=0.05, pad=0.02)
    bar.set_label(textwrap.fill(plain(str(values.attrs.get("long_name", values.name or "value"))), 32))
    axes.spines[:].set_visible(False)
    bar.outline.set_visible(False)  # type: ignore[operator]
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], title=plain(title))
    return axes


@themed
def mark_patches(sets: Mapping[str, np.ndarray], *, ax: Axes, legend: bool = True) -> Axes:
    """Mark sets of patches on a picture that ``patch_overlay`` drew: frames, then rings, then dashed rings.

    A mark is an outline with a white edge, around the patch rather than on it: it is seen on any picture and hides none
    of what lies inside.

    Args:
        sets: left, top, right and bottom of each patch in pixels, shape ``(patch, 4)``, by what the legend calls them;
            up to three. Patches without a place (NaN) are not drawn.
        ax: axes with the picture.
        legend: say below the picture what the marks are; False for all pictures of a row but one.
    """
    looks = ((Rectangle, OTHER, "-", 1.0), (Ellipse, SINK, "-", 1.3), (Ellipse, SINK, ":", 1.3))
    for (label, boxes), (shape, colour, line, scale) in zip(sets.items(), looks, strict=False):
        for index, (left, top, right, bottom) in enumerate(boxes[np.isfinite(boxes).all(axis=1)].tolist()):
            wide, high = scale * (right - left), scale * (bottom - top)
            at = (left, top) if shape is Rectangle else ((left + right) / 2, (top + bottom) / 2)
            mark = shape(at, wide, high, fill=False, edgecolor=colour, linestyle=line, linewidth=1.6 * thin())
            mark.set_path_effects([withStroke(linewidth=3.2 * thin(), foreground="white")])
            mark.set_label(label if index == 0 else "_")
            mark.set_clip_on(False)
            ax.add_patch(mark)
    handles = ax.get_legend_handles_labels()[0]
    if handles and legend:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=len(handles))
    return ax


@drawn()
def phi_vs_attention(
    phi: xr.DataArray,
    attention: xr.DataArray,
    *,
    threshold: float | None = None,
    title: str = "Sink dimension and attention",
    ax: Axes | None = None,
    **look: Unpack[Look],
) -> Axes:
    """Draw one point per token: the sink-dimension value against the attention it gets (Kang et al. 2025).

    Beside the axes stand the histograms of both, by role, each scaled to its own highest bar.

    Args:
        phi: dims ``(key,)``; the coordinate ``token_role`` gives the colours if it is there.
        attention: dims ``(key,)``.
        threshold: tau, drawn as a dashed line.
        title: title of the axes.
        ax: axes to draw on.
        look: ``caption=False``, ``size=``: see :class:`~sinkscope.plot.theme.Look`.
    """
    x = need_dims(phi, ("key",), "phi_vs_attention").values
    y = need_dims(attention, ("key",), "phi_vs_attention(attention=)").values
    roles = np.asarray(phi["token_role"].values if "token_role" in phi.coords else ["token"] * len(x)).astype(str)
    axes = axes_for(phi, ax)
    seen = np.isfinite(x) & np.isfinite(y)
    counts = {role: int((seen & (roles == role)).sum()) for role in dict.fromkeys(roles.tolist())}
    size = dot(1.3 if len(x) < 400 else 0.4)
    groups: list[tuple[str, np.ndarray]] = []
    for index, role in enumerate(sorted(counts, key=lambda role: -counts[role])):  # few points lie over many
        if counts[role]:
            colour = ROLE_COLOURS.get(role, PALETTE[index % len(PALETTE)])
            kept = seen & (roles == role)
            axes.scatter(x[kept], y[kept], s=size, alpha=0.7, color=colour, linewidths=0,
                         rasterized=counts[role] > MANY, label=f"{role} (n = {counts[role]:,})")  # fmt: skip
            groups.append((colour, kept))
    if threshold is not None:
        axes.axvline(threshold, color="black", linestyle="--", linewidth=thin(), label=f"tau = {threshold:.3g}")
    axes.set(xlabel="phi", ylabel="attention weight", title=plain(title))
    axes.set_ylim(bottom=0)
    if groups:
        _margins(axes, x, y, groups)
        legend_above(axes, over=0.16)
    return axes


def _margins(axes: Axes, x: np.ndarray, y: np.ndarray, groups: Sequence[tuple[str, np.ndarray]]) -> None:
    """Draw the histograms of both numbers above and beside the axes, one outline a group."""
    above = axes.inset_axes((0.0, 1.02, 1.0, 0.14), sharex=axes)
    beside = axes.inset_axes((1.02, 0.0, 0.14, 1.0), sharey=axes)
    for margin, numbers in ((above, x), (beside, y)):
        way = "vertical" if margin is above else "horizontal"
        edges = np.histogram_bin_edges(numbers[np.logical_or.reduce([kept for _, kept in groups])], 40)
        for colour, kept in groups:
            heights = np.histogram(numbers[kept], edges)[0]
            margin.stairs(heights / max(1, heights.max()), edges, orientation=way, color=colour, alpha=0.45, fill=True)
        margin.set_axis_off()
