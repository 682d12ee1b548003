"""Put the page together: template, styles, script and the tables of definitions and provenance."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import resources, util
from typing import Any

import jinja2
import xarray as xr

from sinkscope.definitions import cite
from sinkscope.errors import OutputError
from sinkscope.plot.theme import SEQUENTIAL_STOPS
from sinkscope.report.findings import Finding
from sinkscope.report.pictures import Picture
from sinkscope.report.sinks import Sinks
from sinkscope.report.surveys import corpus_of, is_survey
from sinkscope.report.text import counted, percent
from sinkscope.schema import variables

_STRUCTURED = ("edits", "probes", "versions")
_FIRST = (
    "model_id",
    "model_fingerprint",
    "dtype",
    "backend",
    "path",
    "key0",
    "edits",
    "probes",
    "prompts_hash",
    "seed",
)


def plotly_script() -> str:
    """Return plotly's own JavaScript from the installed package.

    Raises:
        OutputError: plotly is not installed.
    """
    if util.find_spec("plotly") is None:
        raise OutputError("write_report: plotly is not installed. Install it: pip install 'sinkscope[html]'.")
    from plotly.offline import get_plotlyjs

    return get_plotlyjs().replace("</script", "<\\/script")


def render(
    ds: xr.Dataset,
    title: str,
    told: list[Finding],
    sinks: Sinks | None,
    pictures: list[Picture],
    data: dict[str, Any] | None,
) -> str:
    """Return the page as HTML. Every text that comes from the reading is escaped by the template."""
    folder = resources.files("sinkscope.report")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["percent"] = percent
    template = environment.from_string((folder / "page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        title=title,
        attrs=ds.attrs,
        summary=summary(ds),
        findings=told,
        kinds=sinks.kinds if sinks is not None else (),
        pictures=pictures,
        data=None if data is None else {**data, "stops": list(SEQUENTIAL_STOPS)},
        definitions=definition_rows(ds, told),
        provenance=provenance_rows(ds),
        bibtex=cite(ds),
        css=(folder / "page.css").read_text(encoding="utf-8"),
        script=(folder / "page.js").read_text(encoding="utf-8"),
        plotly=plotly_script() if data is not None else "",
    )


def summary(ds: xr.Dataset) -> str:
    """Say in one line what was read: model, size, prompts, tokens."""
    parts = [f"Model {ds.attrs['model_id']}"]
    if "layer" in ds.sizes:
        parts.append(counted(ds.sizes["layer"], "layer"))
    if "head" in ds.sizes:
        parts.append(counted(ds.sizes["head"], "head"))
    if "prompt" in ds.sizes:
        parts.append(counted(ds.sizes["prompt"], "prompt"))
    if is_survey(ds):
        parts += [counted(corpus_of(ds)["prompts"], "prompt"), counted(corpus_of(ds)["tokens"], "token")]
    if "token_role" in ds.coords:
        roles = ds["token_role"].values.astype(str)
        parts.append(counted(int(((roles != "") & (roles != "pad")).sum()), "token"))
    return f"{', '.join(parts)}. Position 0 holds {ds.attrs['key0']}. Measured {ds.attrs['created']}."


def definition_rows(ds: xr.Dataset, told: Iterable[Finding]) -> list[tuple[str, str, str, str, str]]:
    """List the variables and the metrics used: name, definition, meaning, units, reference."""
    rows: dict[tuple[str, str], tuple[str, str, str, str, str]] = {}
    declared = variables(ds)
    for name in map(str, ds.data_vars):
        if name in declared:
            known = declared[name]
            rows[name, ""] = (name, "variable", known.meaning, known.units, known.reference)
    for finding in told:
        for used in finding.used:
            metric, name = str(used.get("metric", "")), str(used.get("definition", ""))
            texts = (str(used.get(key, "")) for key in ("meaning", "units", "reference"))
            meaning, units, reference = texts
            rows[metric, name] = (metric, name, meaning, units, reference)
    return list(rows.values())


def provenance_rows(ds: xr.Dataset) -> list[tuple[str, str]]:
    """List the attributes of a reading as readable pairs, the most asked-for first."""
    # Definitions, variables and references have tables of their own.
    rest = [str(name) for name in ds.attrs if name not in (*_FIRST, "definitions", "variables", "references")]
    names = [name for name in _FIRST if name in ds.attrs] + rest
    rows = []
    for name in names:
        value = ds.attrs[name]
        rows.append((name.replace("_", " "), _readable(str(value)) if name in _STRUCTURED else str(value)))
    return rows


def _readable(text: str) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    if isinstance(value, dict):
        return ", ".join(f"{k} {_one(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list):
        return "; ".join(_one(item) for item in value) or "none"
    return str(value)


def _one(value: Any) -> str:
    """Write a probe or an edit as the call that makes it, anything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        rest = dict(value)
        for key in ("probe", "edit"):
            name = rest.pop(key, None)
            if isinstance(name, str):
                return f"{name}({', '.join(f'{k}={v!r}' for k, v in rest.items() if v is not None)})"
    return json.dumps(value)
