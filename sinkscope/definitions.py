"""Named definitions: what a number means, in which units, with which thresholds, and after which paper.

Two papers may give one name two meanings. So every metric takes ``definition=NAME`` and every result carries the name.
A metric states its definitions where it is made (:func:`sinkscope.metrics.base.metric`). No torch here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import xarray as xr

from sinkscope import registry
from sinkscope.errors import MetricError, did_you_mean, public_names
from sinkscope.references import REFERENCES, Reference


@dataclass(frozen=True)
class Definition:
    """One named definition of one metric.

    ``reference`` is a key of ``sinkscope.references.REFERENCES``, or empty where the definition is this package's own.
    """

    metric: str
    name: str
    meaning: str
    units: str
    defaults: tuple[tuple[str, float], ...] = ()
    reference: str = ""

    def default(self, parameter: str) -> float:
        """Return the default of a parameter.

        Raises:
            KeyError: the definition has no parameter of that name.
        """
        return dict(self.defaults)[parameter]


DEFINITIONS: dict[tuple[str, str], Definition] = {}
"""Every definition, by (metric, name): filled as metrics are made, see :func:`sinkscope.metrics.base.metric`."""


def define(metric: str, name: str) -> Definition:
    """Return the definition ``name`` of ``metric``.

    Raises:
        MetricError: the metric has no definition of that name.
    """
    registry.load("metric")
    found = DEFINITIONS.get((metric, name))
    if found is None:
        known = [n for m, n in DEFINITIONS if m == metric]
        raise MetricError(f"{metric}: no definition {name!r}. Its definitions are {known}.{did_you_mean(name, known)}")
    return found


def bibtex(key: str) -> str:
    """Return the BibTeX entry of one paper by its key, such as ``"gu2025"``.

    Raises:
        MetricError: no paper of that key is known.
    """
    if key not in REFERENCES:
        meant = did_you_mean(key, REFERENCES)
        raise MetricError(f"bibtex: no reference {key!r}. The keys are {sorted(REFERENCES)}.{meant}")
    return REFERENCES[key].bibtex()


def cite(ds: xr.Dataset | xr.DataArray) -> str:
    """Return the BibTeX of everything a reading or a result used: its definitions, probes and edits, and sinkscope.

    ``ds`` may be a reading, or what a metric returned. Entries are in a fixed order, each once.

    Raises:
        MetricError: ``ds`` is neither a Dataset nor a DataArray.
    """
    if not isinstance(ds, xr.Dataset | xr.DataArray):
        raise MetricError(
            f"cite: expected a reading or a metric's result, got {type(ds).__name__}. Pass what sinkscope.run returns."
        )
    registry.load("metric")
    names = set(_names(_attributes(ds)))
    cited = {key: REFERENCES[key] for key in REFERENCES if key in names}
    cited |= {d.reference: REFERENCES[d.reference] for d in DEFINITIONS.values() if d.name in names and d.reference}
    cited |= {reference.key: reference for reference in _stored(ds)}
    order = [*(key for key in REFERENCES if key in cited), *(key for key in cited if key not in REFERENCES)]
    version = str(ds.attrs.get("sinkscope_version", ""))
    return "\n\n".join([_software(version), *(cited[key].bibtex() for key in order)]) + "\n"


def references_of(probes: str, edits: str) -> str:
    """Return the papers behind probes and edits, given as their JSON, as the JSON text that a reading carries.

    Papers that sinkscope knows are given by key, those of a probe or edit of another package with all their fields.
    """
    found = {reference.key: reference for reference in _papers([probes, edits])}
    return json.dumps([key if key in REFERENCES else asdict(reference) for key, reference in found.items()])


def _stored(ds: xr.Dataset | xr.DataArray) -> Iterator[Reference]:
    """References that a reading carries; for one without them, those of its probes and edits, by their names."""
    if "references" in ds.attrs:
        for given in json.loads(ds.attrs["references"]):
            yield REFERENCES[given] if isinstance(given, str) else Reference(**given)
        return
    specs = [str(text) for text in ds["edit_spec"].values.ravel()] if "edit_spec" in ds.coords else []
    yield from _papers([*(ds.attrs[name] for name in ("probes", "edits") if name in ds.attrs), *specs])


def _papers(values: Iterable[object]) -> Iterator[Reference]:
    """Walk JSON of any shape and give the papers of every probe and edit in it."""
    for value in values:
        if isinstance(value, str):
            yield from _papers([found] if (found := _parse(value)) is not None else [])
        elif isinstance(value, dict):
            for kind in ("probe", "edit"):
                cls = registry.Table(kind).get(str(value[kind])) if kind in value else None
                for paper in getattr(cls, "papers", ()):
                    yield REFERENCES[paper] if isinstance(paper, str) else paper
            yield from _papers(value.values())
        elif isinstance(value, list):
            yield from _papers(value)


def _attributes(ds: xr.Dataset | xr.DataArray) -> Iterator[object]:
    arrays: Iterable[xr.DataArray] = ds.data_vars.values() if isinstance(ds, xr.Dataset) else (ds,)
    for holder in (ds, *arrays):
        for name in ("definitions", "definition", "reference"):
            if name in holder.attrs:
                yield holder.attrs[name]


def _names(values: Iterable[object]) -> Iterator[str]:
    """Walk JSON of any shape and give every string in it."""
    for value in values:
        if isinstance(value, str):
            parsed = _parse(value)
            if parsed is None:
                yield value
            else:
                yield from _names([parsed])
        elif isinstance(value, dict):
            yield from _names([*value.keys(), *value.values()])
        elif isinstance(value, list | tuple):
            yield from _names(value)


def _parse(text: str) -> dict[str, object] | list[object] | None:
    if text[:1] not in "[{":
        return None
    try:
        return json.loads(text)
    except ValueError:
        return None


def _software(version: str) -> str:
    lines = [
        "@software{sinkscope,",
        "  title = {sinkscope: measure, test and explain attention sinks in transformers},",
    ]
    lines += ["  author = {{The sinkscope developers}},", "  year = {2026},", "  note = {Python package},"]
    lines += [f"  version = {{{version}}},"] if version else []
    return "\n".join([*lines, "}"])


__dir__ = public_names(globals())
