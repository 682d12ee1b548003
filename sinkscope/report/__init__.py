"""Report: a reading as one self-contained HTML page that opens without a network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from sinkscope import schema
from sinkscope.errors import public_names
from sinkscope.files import write
from sinkscope.report.figures import FIGURES, available, draw, figure
from sinkscope.report.findings import Finding, Findings, findings
from sinkscope.report.pictures import pictures
from sinkscope.report.sinks import SinkKind, Sinks, find_sinks
from sinkscope.report.survey_drawings import sink_rate_map as _  # noqa: F401 - registers the figures of surveys

__all__ = [
    "FIGURES", "Finding", "Findings", "SinkKind", "Sinks", "available", "draw", "figure", "find_sinks", "findings",
    "pictures", "write_report",
]  # fmt: skip


def write_report(  # noqa: PLR0913 - one call is the whole interface
    ds: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    overwrite: bool = False,
    figures: Sequence[str] | None = None,
    images: Sequence[Any] | None = None,
    against: xr.Dataset | None = None,
    labels: tuple[str, str] | None = None,
) -> Path:
    """Write a reading as one HTML page: findings in words, a head map to click, tokens, figures, definitions.

    The page holds its own script, numbers and pictures, makes no request, and shows every token as text. It is written
    through a temporary file, so a killed run leaves the old page or none. A sweep is shown with all its variants and
    their differences from the baseline.

    Args:
        ds: a reading, or a sweep.
        path: the file to write.
        title: title of the page; the model's id if left out.
        overwrite: replace an existing file.
        figures: names out of ``FIGURES``; all that the reading allows if left out.
        images: the original pictures of the prompts, in their order (paths, PIL images or arrays); attention is then
            laid on them.
        against: a second reading of the same prompts, such as the run without edits: both are shown side by side, with
            the differences ``ds - against``.
        labels: names of the two readings; their models or edits if left out.

    Returns:
        The path that was written.

    Raises:
        OutputError: the path cannot be written, or exists.
        SchemaError: ``ds`` is not a reading, is a sweep of too many variants, or lacks what a named figure needs;
            ``against`` holds other prompts, layers or heads; or the pictures do not fit the prompts.
    """
    from sinkscope.report.build import PageOptions, build_page

    target = schema.check_output(path, overwrite=overwrite)
    return write(target, build_page(ds, PageOptions(title, figures, images, against, labels)))


__dir__ = public_names(globals())
