"""A page from readings: what is looked for, drawn and packed, in one order for files and for ``sinkscope serve``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import xarray as xr

from sinkscope import schema
from sinkscope.report.compared import differences, moved_sinks
from sinkscope.report.figures import chosen
from sinkscope.report.findings import findings
from sinkscope.report.images import views
from sinkscope.report.page import PageParts, render
from sinkscope.report.pagedata import page_data
from sinkscope.report.pictures import pictures
from sinkscope.report.runs import base_of, leading_dims, runs_of


@dataclass(frozen=True, eq=False)
class PageOptions:
    """What a page is made with; as the arguments of ``write_report``. ``live``: facts of the model that answers it."""

    title: str | None = None
    figures: Sequence[str] | None = None
    images: Sequence[Any] | None = None
    against: xr.Dataset | None = None
    labels: tuple[str, str] | None = None
    live: Mapping[str, Any] | None = None


def build_page(ds: xr.Dataset, options: PageOptions) -> str:
    """Return the page of a reading or a sweep as HTML.

    Raises:
        SchemaError: as ``write_report``.
    """
    against = options.against
    for reading in (ds, *(() if against is None else (against,))):
        schema.require_dataset(reading)
        schema.validate(reading, leading_dims(reading))
    runs = runs_of(ds, against, options.labels)
    base = base_of(runs, against is not None)
    names = chosen(runs[0].ds, options.figures)
    told, sinks = findings(runs[base].ds)
    shown = [(runs[base].label, told)]
    if against is not None:
        shown.insert(0, (runs[0].label, findings(runs[0].ds)[0]))
    found = views(runs[0].ds, options.images)
    drawn = pictures(runs[0].ds, names, sinks=sinks, found=found)
    if len(runs) > 1:  # a figure shows one reading; the head map and the curves show all
        drawn = [replace(each, caption=f"{each.caption} Drawn from the run “{runs[0].label}”.") for each in drawn]
    data, packed = page_data(runs, base, sinks, found, drawn, options.live)
    title = options.title or f"{ds.attrs['model_id']}"
    changed = differences(runs, base, sinks)
    moved = moved_sinks(runs, base, against is not None)
    return render(PageParts(title, runs, shown, sinks, drawn, changed, moved, data, packed))
