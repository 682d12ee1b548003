"""What the README and the quickstart show works as it stands."""

import re
from pathlib import Path

import pytest

import sinkscope
from sinkscope import cli
from sinkscope.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "llms.txt",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "errors").glob("*.md")),
]


def test_the_example_runs_and_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert 0.0 <= float(capsys.readouterr().out.splitlines()[0]) <= 1.0
    assert (tmp_path / "report.html").stat().st_size > 1e5


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import shlex

    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## On the command line")[1].split("##")[0]
    commands = re.findall(r"^    sinkscope (.*(?:\n    (?!sinkscope).*)*)", section, flags=re.MULTILINE)
    assert len(commands) == 5
    monkeypatch.chdir(tmp_path)
    for command in commands:
        assert cli.main(shlex.split(command)) == 0, command
    assert {path.name for path in tmp_path.iterdir()} == {"readings.nc", "sink.png", "report.html"}
    assert "@misc{gu2025" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_function_of_the_table_exists() -> None:
    table = (ROOT / "README.md").read_text(encoding="utf-8").split("## Question, function, paper")[1].split("##")[0]
    cells = [line.split("|")[2] for line in table.splitlines() if line.startswith("| ")][1:]
    names = [name for cell in cells for name in re.findall(r"`(?!sinkscope )([\w.]+)", cell)]
    commands = [name for cell in cells for name in re.findall(r"`sinkscope (\w+)", cell)]
    assert all(command in app for command in commands)
    assert len(names) > 20
    for name in names:
        value = sinkscope
        for part in name.split("."):
            value = getattr(value, part)
