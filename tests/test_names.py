"""No page, notebook, figure or card names a module, a name or a file that is not there (any more)."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READ = ("*.md", "docs/**/*.md", "docs/**/*.py", "notebooks/*.ipynb", "analyses/**/*.py", "analyses/**/*.md",
        "docs/gallery/**/*.json", "benchmarks/*.py", "recipes/*.py", "sinkscope/**/*.py",
        "sinkscope/zoo/**/card.json", "pyproject.toml", "Makefile", ".ci/run")  # fmt: skip
LEFT_OUT = {"CHANGELOG.md"}
"""What speaks of earlier versions."""
DOTTED = re.compile(r"(?<![\w./-])(?:sinkscope|recipes)(?:\.[A-Za-z_]\w*)+")
PATHS = re.compile(r"(?<![\w./-])(?:sinkscope|recipes|analyses|benchmarks|tests)/[\w/.-]+\.py\b")
NOT_OURS = re.compile(r"\.(py|md|json|nc|html|toml|tmp|errors\.\w+)$")


def files() -> list[Path]:
    """Everything that may name a module, made pages left out."""
    found = {path for pattern in READ for path in ROOT.glob(pattern)}
    return sorted(p for p in found if p.name not in LEFT_OUT and not {"_build", "generated"} & set(p.parts))


def is_there(dotted: str) -> bool:
    """Whether a dotted name leads to a module or to something in it."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError as error:
            if not ".".join(parts[:cut]).startswith(error.name or ""):
                return True  # an optional package is missing, not one of these modules
            continue
        for name in parts[cut:]:
            if not hasattr(value, name):
                return _is_field(value, name)
            value = getattr(value, name)
        return True
    return False


def _is_field(value: object, name: str) -> bool:
    return name in getattr(value, "__annotations__", {})


def missing(path: Path, text: str) -> Iterator[str]:
    """Names and files that ``text`` mentions and that are not there."""
    for dotted in sorted(set(DOTTED.findall(text))):
        if not NOT_OURS.search(dotted) and not is_there(dotted):
            yield f"{path}: {dotted}"
    for named in sorted(n for n in set(PATHS.findall(text)) if not re.search(r"/[A-Z]+(/|\.)", n)):
        if not (ROOT / named).exists():
            yield f"{path}: {named}"


def test_every_module_and_file_that_is_named_is_there() -> None:
    found = [line for path in files() for line in missing(path.relative_to(ROOT), path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("`sinkscope.sweeps.driver`", "x: sinkscope.sweeps.driver"),
        ("python -m recipes.nothing", "x: recipes.nothing"),
        ("see sinkscope/runner.py", "x: sinkscope/runner.py"),
        ("`sinkscope.metrics.sink_ratio`", "x: sinkscope.metrics.sink_ratio"),
    ],
)
def test_a_name_that_is_gone_is_found(text: str, gone: str) -> None:
    assert list(missing(Path("x"), text)) == [gone]


def test_names_that_are_there_pass() -> None:
    assert not list(missing(Path("x"), "sinkscope.metrics.sink_rate, sinkscope.run, recipes.ship, sinkscope/schema.py"))
