"""Report: a reading as one self-contained HTML page that opens without a network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from sinkscope import schema
from sinkscope.errors import SchemaError
from sinkscope.files import write
from sinkscope.report.figures import FIGURES, available, chosen, draw, figure
from sinkscope.report.findings import Finding, findings
from sinkscope.report.heads import head_data
from sinkscope.report.images import views
from sinkscope.report.pictures import pictures
from sinkscope.report.sinks import SinkKind, Sinks, find_sinks
from sinkscope.report.survey_drawings import sink_rate_map as _  # noqa: F401 - registers the figures of surveys

__all__ = [
    "FIGURES", "Finding", "SinkKind", "Sinks", "available", "draw", "figure", "find_sinks", "findings", "pictures",
    "write_report",
]  # fmt: skip


def write_report(
    ds: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    overwrite: bool = False,
    figures: Sequence[str] | None = None,
    images: Sequence[Any] | None = None,
) -> Path:
    """Write a reading as one HTML page: findings in words, a head grid to click, figures, definitions, provenance.

    The page holds its own script and pictures, makes no request, and shows every token as text. It is written through a
    temporary file, so a killed run leaves the old page or none.

    Args:
        ds: a reading. Select one label first if it has an ``edit`` dimension.
        path: the file to write.
        title: title of the page; the model's id if left out.
        overwrite: replace an existing file.
        figures: names out of ``FIGURES``; all that the reading allows if left out.
        images: the original pictures of the prompts, in their order (paths, PIL images or arrays); attention is then
            laid on them.

    Returns:
        The path that was written.

    Raises:
        OutputError: the path cannot be written, exists, or plotly is not installed.
        SchemaError: ``ds`` is not a reading, has dimensions in front of ``prompt``, or lacks what a named figure needs;
            or the pictures do not fit the prompts.
    """
    from sinkscope.report.page import plotly_script, render

    target = schema.check_output(path, overwrite=overwrite)
    schema.validate(ds)
    _check_leading(ds)
    names = chosen(ds, figures)
    plotly_script()
    told, sinks = findings(ds)
    found = views(ds, images)
    drawn = pictures(ds, names, sinks=sinks, found=found)
    page = render(ds, title or f"{ds.attrs['model_id']}", told, sinks, drawn, head_data(ds, sinks, found))
    return write(target, page)


def _check_leading(ds: xr.Dataset) -> None:
    declared = schema.variables(ds)
    for name in map(str, ds.data_vars):
        known = declared.get(name)
        extra = [str(d) for d in ds[name].dims if known is not None and d not in known.dims]
        if extra:
            first = ds[extra[0]].values.tolist()[0] if extra[0] in ds.coords else 0
            raise SchemaError(
                f"write_report: this reading has the dimension {extra[0]!r} in front; a page shows one run. "
                f"Select one: ds.sel({extra[0]}={first!r})."
            )
