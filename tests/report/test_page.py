import html
import re
import subprocess
import sys

import numpy as np
import pytest
from made_reading import fake_reading

from sinkscope import report
from sinkscope.errors import OutputError, SchemaError
from sinkscope.report import write_report
from sinkscope.report.page import definition_rows, provenance_rows, summary

EVIL = "</script><script>alert(1)</script>"


@pytest.fixture
def page(reading, tmp_path):
    reading.attrs["model_id"] = f"model {EVIL}"
    reading.attrs["key0"] = "<b>bold</b>"
    return write_report(reading, tmp_path / "r.html", figures=["sink_map"])


def test_every_text_is_escaped(page, data_of):
    text = page.read_text(encoding="utf-8")
    assert page.stat().st_size < 400_000
    assert EVIL not in text
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in text
    assert "&lt;b&gt;bold&lt;/b&gt;" in text
    data = data_of(page)
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", data.packed), "nothing in the data can end its element"
    assert data.header["heads"]["prompts"][0]["tokens"][7] == EVIL
    assert len(re.findall(r"<script", text)) == 2, "the data and the page's own script"


def test_the_page_asks_for_nothing_outside(page):
    text = page.read_text(encoding="utf-8")
    assert "default-src 'none'" in html.unescape(text)
    assert "unsafe" not in html.unescape(re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1])
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', text)


def test_definitions_name_what_was_used(page):
    for text in ("share of (prompt, layer, head) whose key mass", "gu2025", "@misc{gu2025,", "activation"):
        assert text in page.read_text(encoding="utf-8")


def test_only_named_figures_are_drawn(page):
    assert re.findall(r'<figure id="figure-(\w+)"', page.read_text(encoding="utf-8")) == ["sink_map"]


def test_a_reading_without_heads_still_gives_a_page(reading, tmp_path):
    path = write_report(reading[["residual_norm"]], tmp_path / "r.html")
    text = path.read_text(encoding="utf-8")
    assert 'id="heads"' not in text
    assert "Add KeyMass() to the probes of the run" in text


def test_an_existing_page_is_kept(reading, tmp_path):
    target = tmp_path / "r.html"
    target.write_text("mine")
    with pytest.raises(OutputError, match=r"the file exists. Pass overwrite=True"):
        write_report(reading, target)
    assert target.read_text() == "mine"
    write_report(reading, target, overwrite=True, figures=[], title="New & <i>")
    assert "<h1>New &amp; &lt;i&gt;</h1>" in target.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_a_failure_leaves_no_half_page(reading, tmp_path, monkeypatch):
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_report(reading, tmp_path / "r.html", figures=[])
    assert list(tmp_path.iterdir()) == []


def test_not_a_reading(reading, tmp_path):
    reading.attrs = {}
    with pytest.raises(SchemaError, match="not a sinkscope reading"):
        write_report(reading, tmp_path / "r.html")


def test_summary_counts(reading):
    said = summary(reading)
    assert said.startswith("Model fake/six-layers, 6 layers, 12 heads, 3 prompts, 98 tokens. Position 0 holds the beg")


def test_tables(reading):
    rows = provenance_rows(reading)
    assert rows[0] == ("model id", "fake/six-layers")
    assert ("edits", "none") in rows
    assert ("probes", "KeyMass(); MaxAttention(keys='image')") in rows
    assert ("versions", "torch 2.13") in rows
    assert len(rows) == len(reading.attrs) - 2  # definitions and variables have a table of their own
    assert definition_rows(reading, [])[0][:2] == ("key_mass", "variable")


def test_report_imports_without_torch():
    code = "import sys, sinkscope.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_is_no_reading_is_refused_by_every_call(reading, tmp_path):
    calls = {
        "draw": lambda: report.draw(5, "sink_map"),
        "available": lambda: report.available(5),
        "pictures": lambda: report.pictures(5),
        "write_report": lambda: report.write_report(5, tmp_path / "r.html"),
        "against": lambda: report.write_report(reading, tmp_path / "r.html", against=5),
    }
    for name, call in calls.items():
        with pytest.raises(SchemaError, match="expected a reading, got "):
            call()
        assert not list(tmp_path.iterdir()), name
    with pytest.raises(SchemaError, match=r"labels=5\): give two names, such as"):
        report.write_report(reading, tmp_path / "r.html", against=reading, labels=5)


def test_a_report_of_600_prompts_fits_5_megabytes(tmp_path):
    lengths = tuple(np.random.default_rng(0).integers(30, 48, 600).tolist())
    reading = fake_reading(lengths=lengths, layers=30, heads=9, kv_heads=3, dim=576)
    page = write_report(reading, tmp_path / "r.html", figures=["max_attention", "sink_map"])
    assert page.stat().st_size < 5e6
