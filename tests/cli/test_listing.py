"""``sinkscope list``: the index is the registry's, its words are plain, and it needs nothing heavy."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sinkscope import methods, metrics, registry
from sinkscope.cli import listing, main
from sinkscope.models.sources import SOURCES

ROOT = Path(__file__).parents[2]


def test_the_index_is_what_the_registry_has():
    kept = json.loads(listing.INDEX.read_text(encoding="utf-8"))
    ask = "import json; from sinkscope.cli.listing import own; print(json.dumps(own()))"
    # In a process of its own: tests that ran before in this one have registered what they made up.
    said = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True, cwd=ROOT)
    assert kept == json.loads(said.stdout), "sinkscope/data/names.json is stale: make names"
    assert {kind for kind, *_ in kept} == set(registry.KINDS) == set(listing.HEADINGS)


def test_names_are_as_they_are_typed():
    by_kind = {kind: [name for each, name, _ in listing.known() if each == kind] for kind in registry.KINDS}
    assert all(callable(getattr(metrics, name)) for name in by_kind["metric"])
    for name in by_kind["method"]:
        assert callable(functools.reduce(getattr, name.split("."), methods)), name
    assert {"key-mass", "massive-activations"} <= set(by_kind["probe"])
    assert by_kind["model"] == list(SOURCES)


def test_words_are_plain(capsys):
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert not re.findall(r":\w+:`|`|\bsource  ", said)
    assert [line.partition(":")[0] for line in said.splitlines() if line[:1].isupper()] == [
        "Probes", "Edits", "Metrics", "Figures", "Methods", "Tasks", "Models",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("summary", "said"),
    [
        ("Return the ``key`` of :class:`~sinkscope.probes.KeyMass`, see :func:`detect`.",
         "The key of KeyMass, see detect."),
        ("all-MiniLM-L6-v2, a sentence encoder", "all-MiniLM-L6-v2, a sentence encoder"),
    ],
)  # fmt: skip
def test_markup_of_docstrings_is_taken_out(summary, said):
    assert listing.plain_words(summary) == said


def test_one_kind_by_name_or_plural_and_a_misspelt_one(capsys):
    assert [main(["list", kind]) for kind in ("figures", "figure")] == [0, 0]
    first, second = capsys.readouterr().out.split("Figures", 2)[1:]
    assert first == second
    assert main(["list", "statistics"]) == 0
    assert "key-sum" in capsys.readouterr().out
    assert main(["list", "modls"]) == 1
    assert "Kinds are probe, statistic, edit, metric, figure, method, task, model. Did you mean 'model'?" in (
        capsys.readouterr().err
    )


def test_long_lines_go_on_under_themselves_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["list", "probes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith(" " * 20) for line in lines)


@pytest.mark.parametrize("command", [["list"], ["--help"], ["run", "--help"], ["explain-image", "--help"]])
def test_neither_the_list_nor_help_imports_anything_heavy(command):
    code = f"import sys; from sinkscope.cli import main; main({command!r}); print(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(re.findall(r"'([^']*)'", done.stderr.splitlines()[-1]))
    assert not loaded & {"torch", "numpy", "xarray", "matplotlib", "transformers", "scipy"}
