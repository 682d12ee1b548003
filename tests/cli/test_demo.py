"""The demo tells the truth: it finds what was planted, and would say so if it did not."""

from dataclasses import replace
from pathlib import Path

import pytest

import sinkscope as sk
from sinkscope import cli, schema
from sinkscope.cli import demo
from sinkscope.models.sources import SOURCES
from sinkscope.report.text import percent
from sinkscope.tasks import corpora
from sinkscope.testing import planted_sink

TEXTS = corpora.texts()[::4]
"""Texts of the pretrained language model's story: six of them tell as much as 24, for a fourth of the time."""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "deep" / "folder"


@pytest.fixture(scope="module")
def said(output: Path) -> str:
    import contextlib
    import io

    buffer = io.StringIO()
    with contextlib.redirect_stdout(buffer), pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "texts", lambda: TEXTS)
        code = cli.main(["demo", "--output", str(output)])
    assert code == 0, buffer.getvalue()
    return buffer.getvalue()


def test_it_writes_readings_figures_and_reports(said: str, output: Path) -> None:
    figures = {path.stem for path in output.glob("*.png")}
    assert len(figures) >= 6
    assert {"minilm-overview", "minilm-sink-map", "minilm-attention-map", "planted-sink-map"} <= figures
    pretrained = {"smollm2-135m.html"} if SOURCES["smollm2-135m"].here() else set()
    pages = {path.name for path in output.glob("*.html")}
    assert pages == {"minilm.html", "lm-python.html", "planted.html", *pretrained}
    assert schema.open(output / "minilm.nc").sizes["prompt"] == len(corpora.sentences()) == 24
    assert len(corpora.snippets()) == 10
    assert str(output) in said


def test_it_says_what_the_readings_hold(said: str, output: Path) -> None:
    ds = schema.open(output / "minilm.nc")
    told, sinks = sk.report.findings(ds)
    assert sinks is not None
    assert all(finding.heading in said for finding in told)
    assert "[CLS]" in sinks.label
    flowing = " ".join(said.split())
    assert all(" ".join(finding.text.split()) in flowing for finding in told)


def test_it_shows_by_an_edit_which_dimension_carries_the_sink(said: str, output: Path) -> None:
    mass = schema.open(output / "minilm-carrier.nc")["key_mass"].isel(key=0).mean(["layer", "head", "prompt"])
    before, others = float(mass.sel(edit="none")), mass.drop_sel(edit=["none", "dim 99"])
    assert float(mass.sel(edit="dim 99")) < 0.2 * before
    assert float(abs(others - before).max()) < 0.1 * before
    assert others.sizes["edit"] == 7
    assert "* Dimension 99 carries the sink." in said
    after = percent(float(mass.sel(edit="dim 99")))
    assert f"takes its attention from {percent(before)} to {after}" in " ".join(said.split())


def test_it_finds_what_was_planted(said: str) -> None:
    assert "The planted sink was found, and none in its twin" in said
    assert said.count("  ok    ") == 6
    assert "WRONG" not in said


def test_it_would_notice(output: Path, said: str) -> None:
    ds = schema.open(output / "planted.nc")
    _, truth = planted_sink(seed=0)
    assert all(check.agrees for check in demo.check_planted(ds, truth))
    lies = [
        replace(truth, heads=truth.heads[1:]), replace(truth, position=1), replace(truth, dims=[0]),
        replace(truth, value=truth.value * 1.01),
    ]  # fmt: skip
    for index, lie in enumerate(lies):
        assert [check.agrees for check in demo.check_planted(ds, lie)].index(False) == index
    assert not demo.twin_check(ds).agrees


def test_a_wrong_instrument_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for story in ("pretrained", "encoder", "language_model"):  # which say nothing of what was planted
        monkeypatch.setattr(demo, story, lambda output: None)
    monkeypatch.setattr(demo, "planted", lambda output: False)
    assert cli.main(["demo", "-o", str(tmp_path)]) == 1
    assert "what was planted was not found as planted" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert cli.main(["demo", "-o", str(tmp_path / "file" / "out")]) == 1
    assert "the folder cannot be made: Not a directory." in capsys.readouterr().err
