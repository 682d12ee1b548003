"""The house: few rooms, no circle of imports, no class name in two files, every module in its layer."""

import ast
import tomllib
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sinkscope"
MOST_ROOMS, MOST_ROOT_MODULES = 32, 16
BESIDE = ("recipes", "analyses", "benchmarks")


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Imports between modules: inside functions and for type checking too."""
    return grimp.build_graph("sinkscope", exclude_type_checking_imports=False, cache_dir=None)


def circle(graph: grimp.ImportGraph) -> list[str]:
    """A circle of imports between modules, empty when there is none.

    A package's ``__init__`` that names what its modules hold is left out where a module of the package imports it:
    that is how Python loads packages, not how they depend on each other.
    """
    edges = {
        module: {
            other for other in graph.find_modules_directly_imported_by(module) if not module.startswith(f"{other}.")
        }
        for module in graph.modules
        if module != "sinkscope"
    }
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_circle_of_imports(graph: grimp.ImportGraph) -> None:
    assert circle(graph) == []


def test_a_circle_is_found() -> None:
    made = grimp.ImportGraph()
    for name in ("a", "b", "c"):
        made.add_module(name)
    for importer, imported in (("a", "b"), ("b", "c"), ("c", "a")):
        made.add_import(importer=importer, imported=imported)
    assert set(circle(made)) == {"a", "b", "c"}


def test_few_rooms() -> None:
    modules = [path for path in PACKAGE.glob("*.py")]
    folders = [path for path in PACKAGE.iterdir() if (path / "__init__.py").exists()]
    assert len(modules) <= MOST_ROOT_MODULES
    assert len(modules) + len(folders) + len(BESIDE) <= MOST_ROOMS


def test_every_module_has_a_layer() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = next(c for c in contracts["contracts"] if c["type"] == "layers")
    assert layers["exhaustive"]
    named = {name.strip() for row in layers["layers"] for name in row.replace("|", ":").split(":")}
    there = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()} - {"__init__"}
    assert named == there


def test_no_class_name_in_two_files() -> None:
    found = Counter(
        node.name
        for folder in (PACKAGE, *(ROOT / name for name in BESIDE))
        for path in folder.rglob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in found.items() if count > 1] == []
