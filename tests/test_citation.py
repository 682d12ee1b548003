"""The citation file and the BibTeX that ``cite`` prints, read as a program reads them."""

import datetime
import re
from pathlib import Path

import pytest
import yaml

import sinkscope
from sinkscope.definitions import _software, bibtex
from sinkscope.references import REFERENCES

ROOT = Path(__file__).parents[1]


def entries(text: str) -> dict[str, tuple[str, dict[str, str]]]:
    """Read BibTeX strictly: type and fields of each entry by key; every value stands in balanced braces."""
    found: dict[str, tuple[str, dict[str, str]]] = {}
    place = 0
    while begun := re.compile(r"\s*@(\w+)\{([\w-]+),").match(text, place):
        place, fields = begun.end(), {}
        while field := re.compile(r"\s*(\w+) = \{").match(text, place):
            place, depth = field.end(), 1
            start = place
            while depth:
                depth += {"{": 1, "}": -1}.get(text[place] if text[place - 1] != "\\" else "", 0)
                place += 1
            assert field[1] not in fields, field[1]
            fields[field[1]] = text[start : place - 1]
            assert text[place] == ",", text[start:place]
            place += 1
        closing = re.compile(r"\s*\}").match(text, place)
        assert closing, text[place : place + 40]
        place = closing.end()
        assert begun[2] not in found, begun[2]
        found[begun[2]] = (begun[1], fields)
    assert not text[place:].strip(), text[place : place + 40]
    return found


def test_everything_that_can_be_cited_is_bibtex():
    text = "\n\n".join([_software(sinkscope.__version__), *map(bibtex, REFERENCES)]) + "\n"
    read = entries(text)
    assert list(read) == ["sinkscope", *REFERENCES]
    kind, software = read["sinkscope"]
    assert (kind, software["version"]) == ("software", sinkscope.__version__)
    assert {"title", "author", "year"} <= set(software)
    for key, (kind, fields) in read.items():
        assert kind == "misc" or key == "sinkscope"
        assert fields["title"].strip("{}"), key
        assert re.fullmatch(r"20\d\d", fields["year"]), key
        # Characters that TeX reads as commands; an address is set as it stands.
        assert not [name for name, value in fields.items() if name != "url" and re.search(r"(?<!\\)[#$%&_^~]", value)]
        assert fields.get("url", "https://").startswith("https://"), key


@pytest.mark.parametrize(
    "broken", ["@misc{a,\n  title = {x}\n}", "@misc{a,\n  title = {x},\n", "@misc{a,\n title = x,\n}"]
)
def test_the_reader_is_strict(broken):
    with pytest.raises((AssertionError, IndexError)):
        entries(broken)


def test_the_citation_file_has_every_field_and_says_what_the_package_says():
    said = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert said["cff-version"] == "1.2.0"
    assert {
        "title",
        "message",
        "type",
        "authors",
        "abstract",
        "version",
        "date-released",
        "license",
        "keywords",
    } <= set(said)
    assert said["version"] == sinkscope.__version__
    assert isinstance(said["date-released"], datetime.date)
    assert said["authors"] == [{"name": "The sinkscope developers"}]
    papers = {paper.url: paper for paper in REFERENCES.values() if paper.url}
    assert said["references"]
    for cited in said["references"]:
        assert {"type", "title", "authors", "year", "url"} == set(cited)
        known = papers[cited["url"]]
        names = [f"{each['given-names']} {each['family-names']}" for each in cited["authors"]]
        assert (cited["title"], " and ".join(names)) == (known.title, known.authors)
