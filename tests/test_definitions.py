import json
import re

import pytest
import xarray as xr

from sinkscope import edits
from sinkscope.definitions import DEFINITIONS, Definition, bibtex, cite, define
from sinkscope.errors import MetricError
from sinkscope.metrics import sink_rate
from sinkscope.references import REFERENCES


def reading(**attrs):
    mass = xr.DataArray([[[[0.9, 0.1]]]], dims=("prompt", "layer", "head", "key"))
    ds = xr.Dataset({"key_mass": mass})
    ds.attrs = {"sinkscope_version": "0.1.0", "definitions": "{}", "probes": "[]", "edits": "[]"} | attrs
    return ds


def keys(text):
    return re.findall(r"^@\w+\{(\w+),", text, flags=re.M)


def test_every_definition_has_a_meaning_and_a_known_reference():
    for (metric, name), definition in DEFINITIONS.items():
        assert (definition.metric, definition.name) == (metric, name)
        assert len(definition.meaning) > 10
        assert definition.reference in {"", *REFERENCES}, definition


def test_a_definition_is_a_frozen_hashable_value():
    definition = define("sink_rate", "gu2025")
    assert definition.default("epsilon") == 0.3
    assert hash(definition) == hash(Definition(**{f: getattr(definition, f) for f in definition.__dataclass_fields__}))
    with pytest.raises(AttributeError):
        definition.name = "x"
    with pytest.raises(KeyError):
        definition.default("rho")


def test_an_unknown_definition_lists_the_known_ones():
    with pytest.raises(
        MetricError, match=r"massive_activations: no definition 'x'\. Its definitions are \['sun2024', "
    ):
        define("massive_activations", "x")


def test_bibtex_has_the_facts_and_leaves_out_what_is_not_known():
    entry = bibtex("gu2025")
    assert "@misc{gu2025," in entry
    assert "When Attention Sink Emerges" in entry
    assert "eprint = {2410.10781}" in entry
    assert "author" not in bibtex("visionfunnel2025")
    assert "eprint" not in bibtex("kan2025")
    with pytest.raises(MetricError, match=r"bibtex: no reference 'nobody'\. The keys are"):
        bibtex("nobody")


@pytest.mark.parametrize("key", REFERENCES)
def test_every_entry_is_balanced_bibtex(key):
    entry = bibtex(key)
    assert entry.count("{") == entry.count("}")
    assert entry.startswith(f"@misc{{{key},\n")
    assert re.fullmatch(r"|\d{4}\.\d{5}", REFERENCES[key].arxiv)


def test_cite_gives_what_the_reading_used_and_itself():
    ds = reading(
        probes=json.dumps([{"probe": "KeyMass"}, {"probe": "SinkDims", "dims": [1, 2]}]),
        edits=json.dumps([{"edit": "CalibrateSinks", "beta": 0.4}]),
        definitions=json.dumps({"massive_activations": "sun2024"}),
    )
    assert keys(cite(ds)) == ["sinkscope", "gu2025", "sun2024", "kang2025", "yu2024"]
    assert "version = {0.1.0}" in cite(ds)


def test_cite_of_a_bare_reading_is_sinkscope_alone():
    assert keys(cite(reading())) == ["sinkscope"]


def test_cite_takes_what_a_metric_returns():
    assert keys(cite(sink_rate(reading()))) == ["sinkscope", "gu2025"]
    assert keys(cite(xr.Dataset({"rate": sink_rate(reading())}))) == ["sinkscope", "gu2025"]


def test_cite_walks_nested_edits_and_survives_text_that_is_not_json():
    ds = reading(edits='{"masked": [{"edit": "SteerKeys"}]}', probes="[not json")
    assert keys(cite(ds)) == ["sinkscope", "zhang2023"]


def test_cite_refuses_something_else():
    with pytest.raises(MetricError, match="cite: expected a reading or a metric's result, got dict"):
        cite({})


def test_every_edit_of_the_design_has_its_papers():
    names = (
        "ScaleKeys MaskKeys DropKeys ZeroValues ShiftLogits NullKey Redistribute CalibrateSinks SteerKeys AblateHeads "
        "GateHeads SetActivations SwapNormaliser"
    )
    assert all(getattr(edits, name).papers for name in names.split())
    assert {key for cls in edits.EDITS.values() for key in cls.papers} <= set(REFERENCES)


def test_every_entry_has_what_bibtex_asks_for():
    for key, reference in REFERENCES.items():
        entry = bibtex(key)
        assert entry.isascii()
        assert "  title = {{" in entry, key
        assert re.search(r"  year = \{20\d\d\}," if reference.arxiv or reference.year else "", entry), key
        assert ("  url = {https://arxiv.org/abs/" in entry) == bool(reference.arxiv), key
        names = reference.authors.split(" and ") if reference.authors else []
        assert all(name.strip() == name and name for name in names), key
        for line in entry.splitlines()[1:-1]:
            assert re.fullmatch(r"  [a-z]+ = \{.*\},", line), line
    core = ["gu2025", "sun2024", "guo2024", "han2025", "kang2025", "yu2024", "zhang2023"]
    assert all(" " in name for key in core for name in REFERENCES[key].authors.split(" and "))
    assert r"{\'A}lvaro Arroyo" in bibtex("barbero2025")
    assert r"Petar Veli{\v c}kovi{\'c}" in bibtex("barbero2025")
    assert "url = {https://openreview.net/forum?id=xTbFeDhdRG}" in bibtex("kan2025")


NAMES_NOT_KNOWN = {"kan2025", "visionfunnel2025"}
"""Papers whose authors' full names no source at hand gives."""


def test_every_other_paper_has_a_title_and_full_names() -> None:
    short = {
        key
        for key, paper in REFERENCES.items()
        if not paper.title or any(" " not in name and "{" not in name for name in paper.authors.split(" and "))
    }
    assert short == NAMES_NOT_KNOWN
