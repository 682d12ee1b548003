"""Figures as pictures for a page: SVG that is the same for the same reading, and the words around it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import xarray as xr

from sinkscope.report.drawings import gallery
from sinkscope.report.figures import FIGURES, chosen, draw
from sinkscope.report.images import View
from sinkscope.report.numbers import table
from sinkscope.report.sinks import Sinks


@dataclass(frozen=True)
class Picture:
    """A drawn figure: SVG bytes, the words around it, and its numbers as CSV."""

    name: str
    heading: str
    caption: str
    svg: bytes
    csv: str = ""


def pictures(
    ds: xr.Dataset,
    names: Sequence[str] | None = None,
    *,
    sinks: Sinks | None = None,
    found: Sequence[View] = (),
) -> list[Picture]:
    """Draw figures as SVG for a page; the same reading gives the same bytes.

    ``found`` are the prompts' pictures, as from :func:`sinkscope.report.images.views`: with them the patches are drawn
    on the pictures.
    """
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    from sinkscope import plot

    drawn = []
    for name in chosen(ds, names):
        with plot.theme("page"), mpl.rc_context({"svg.hashsalt": "sinkscope"}):
            several = name == "image_patches" and any(view.picture is not None for view in found)
            axes = gallery(ds, found) if several else draw(ds, name, sinks=sinks)
            figure = axes.get_figure(root=True)
            assert figure is not None
            caption = figure.get_supxlabel().replace("\n", " ").replace(r"\$", "$")  # type: ignore[union-attr]
            figure.supxlabel("")  # type: ignore[union-attr]
            numbers = table(figure)  # type: ignore[arg-type]
            buffer = io.BytesIO()
            box = "tight" if hasattr(axes, "get_zlim") else None  # a picture in space leaves wide margins
            figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches=box)  # type: ignore[union-attr]
            plt.close(figure)  # type: ignore[arg-type]
        shown = FIGURES[name]
        drawn.append(
            Picture(
                name, shown.heading, f"{shown.says} {caption[:1].upper()}{caption[1:]}.", buffer.getvalue(), numbers
            )
        )
    return drawn
