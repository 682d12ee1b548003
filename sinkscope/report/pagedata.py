"""Everything that the page's script reads, packed as one text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sinkscope.plot.theme import ROLE_COLOURS, SEQUENTIAL_STOPS
from sinkscope.report.heads import head_data
from sinkscope.report.images import View
from sinkscope.report.massive_panel import massive_data
from sinkscope.report.payload import Payload
from sinkscope.report.pictures import Picture
from sinkscope.report.runs import ShownRun
from sinkscope.report.sinks import Sinks


def page_data(
    runs: Sequence[ShownRun],
    base: int,
    sinks: Sinks | None,
    found: Sequence[View],
    pictures: Sequence[Picture],
    live: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], str]:
    """Return the header of the page's data, and header and arrays packed as text.

    Args:
        runs: the runs of the page.
        base: which of them the others are compared with.
        sinks: which tokens are the sink; None where attention was not measured.
        found: the prompts' pictures.
        pictures: the drawn figures, which the page shows and offers as SVG and CSV.
        live: facts of the model that answers the page; None for a page that is a file.
    """
    payload = Payload()
    header = {
        "base": base,
        "compared": len(runs) > 1,
        "colours": {"sequential": list(SEQUENTIAL_STOPS), "roles": ROLE_COLOURS},
        "heads": head_data(runs, payload, sinks, found),
        "massive": massive_data(runs, payload),
        "figures": {picture.name: {"svg": picture.svg.decode("utf-8"), "csv": picture.csv} for picture in pictures},
        "live": live,
    }
    return header, payload.pack(header)
