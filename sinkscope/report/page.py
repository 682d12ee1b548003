"""Put the page together: template, styles, script and the tables of definitions and provenance."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import xarray as xr

from sinkscope.definitions import cite
from sinkscope.report.compared import RunDifference
from sinkscope.report.findings import Finding
from sinkscope.report.pictures import Picture
from sinkscope.report.runs import NO_EDITS, ShownRun, edits_text
from sinkscope.report.scripts import policy, script, styles
from sinkscope.report.sinks import Sinks
from sinkscope.report.surveys import corpus_of, is_survey
from sinkscope.report.text import call_text, counted, percent
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


@dataclass(frozen=True, eq=False)
class PageParts:
    """What a page is made of: title, runs, findings, sinks, figures, differences, sinks that moved, and
    the numbers for its script.
    """

    title: str
    runs: Sequence[ShownRun]
    told: Sequence[tuple[str, list[Finding]]]
    sinks: Sinks | None
    pictures: Sequence[Picture]
    differences: Sequence[RunDifference]
    moved: Sequence[str]
    data: Mapping[str, Any]
    packed: str


def render(parts: PageParts) -> str:
    """Return the page as HTML. Every text that comes from the reading is escaped by the template."""
    ds = parts.runs[0].ds
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, loader=jinja2.PackageLoader("sinkscope.report", "page_files")
    )
    environment.filters["percent"] = percent
    live = parts.data["live"]
    every = [finding for _, told in parts.told for finding in told]
    return environment.get_template("page.html.j2").render(
        title=parts.title,
        attrs=ds.attrs,
        summary=summary(ds, edited=len(parts.runs) == 1),  # of several, each is named with its edits
        runs=parts.runs,
        told=parts.told,
        kinds=parts.sinks.kinds if parts.sinks is not None else (),
        pictures=parts.pictures,
        differences=parts.differences,
        moved=parts.moved,
        data=parts.data,
        packed=parts.packed,
        definitions=definition_rows(ds, every),
        provenance=provenance_rows(ds),
        bibtex=cite(ds),
        css=styles(bool(live)),
        script=script(bool(live)),
        policy=policy(bool(live)),
        live=live,
    )


def summary(ds: xr.Dataset, *, edited: bool = True) -> str:
    """Say in one line what was read: model, size, prompts, tokens, and unless told otherwise under which edits."""
    edits = edits_text(ds) if edited else ""
    under = "" if edits in ("", NO_EDITS) else f" Edited: {textwrap.shorten(edits, 200, placeholder=' ...')}."
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
    first = str(ds.attrs["key0"])
    article = "a " if first.startswith("content token") else ""
    return f"{', '.join(parts)}.{under} Position 0 holds {article}{first}. Measured {ds.attrs['created']}."


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
        return ", ".join(f"{k} {call_text(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list):
        return "; ".join(call_text(item) for item in value) or "none"
    return str(value)
