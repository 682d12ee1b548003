"""``serve``: the report of a reading on this machine, with the model beside it for texts that are typed."""

from __future__ import annotations

import threading
import webbrowser
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sinkscope import schema
from sinkscope.cli.options import ModelOptions, load, selected
from sinkscope.errors import ModelError, SchemaError


def serve(
    readings: Path,
    *,
    model: str | None = None,
    port: int = 8765,
    browser: bool = True,
    select: Annotated[list[str] | None, Parameter(negative=())] = None,
    loading: ModelOptions | None = None,
) -> None:
    """Open the report of a reading in a browser, with its model beside it: type a text, move gamma, read rows of heads.

    Only this machine reaches the page, and only by the address that is printed. Ctrl-C ends it.

    Args:
        readings: File written by sinkscope run or sweep.
        model: The model that was read. Default: the one that the reading names.
        port: Port on this machine; 0 takes any that is free.
        browser: Open the page in a browser.
        select: Part of the reading, such as edit=baseline or layer=3. Give it several times for several.
    """
    ds = selected(schema.open(readings), select or [])
    if "survey" in ds.attrs:
        raise SchemaError("serve: a survey keeps no single prompt. Write its page: sinkscope report.")

    from sinkscope.cli.live.bench import LiveModel
    from sinkscope.cli.live.server import PageServer
    from sinkscope.report.build import PageOptions, build_page

    loading = loading or ModelOptions()
    name = model or str(ds.attrs["model_id"])
    with PageServer(port) as server:  # a port that is taken is said before a model is loaded
        try:
            handle = load(name, replace(loading, dtype=loading.dtype or str(ds.attrs["dtype"])))
        except ModelError as error:
            if model is not None:
                raise
            raise ModelError(
                f"serve: the model of this reading, {name!r}, is not here. Name its folder with --model FOLDER, or "
                f"write the page without a model: sinkscope report {readings}. ({error})"
            ) from None
        bench = LiveModel(handle, ds)
        server.page = build_page(ds, PageOptions(live=bench.facts()))
        server.answers |= {"/run": bench.try_text, "/rows": bench.rows}
        print(f"{handle.id} answers {server.address}\nCtrl-C ends it.", flush=True)
        if browser:  # a browser of the terminal would hold this thread
            threading.Thread(target=webbrowser.open, args=(server.address,), daemon=True).start()
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            print("Stopped.")
