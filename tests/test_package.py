"""Promises of the package as a whole: budgets, documentation, import cost, no pickle, every skip with a reason."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

import sinkscope

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "sinkscope").rglob("*.py"))
MAX_LINES, REPORT_LINES, MAX_FUNCTION, MAX_METHODS, MAX_PARAMETERS = 400, 250, 60, 9, 6
ALLOWED_PARAMETERS = {
    "sinkscope/models/handle.py:load_model": 10,  # the public contract names them
    "sinkscope/metrics/comparison.py:compare": 7,  # one call is the whole interface
    "sinkscope/engine/run.py:run": 7,  # one call is the whole interface
    "sinkscope/engine/sweep/driver.py:sweep": 9,  # one call is the whole interface
    "sinkscope/engine/survey/driver.py:survey": 7,  # one call is the whole interface
    "sinkscope/report/__init__.py:write_report": 8,  # one call is the whole interface
    "sinkscope/cli/readings.py:report": 7,  # one option each
    "sinkscope/attention/masks.py:sinkscope_mask": 9,  # transformers calls it with these
    "sinkscope/attention/seam.py:sinkscope_attention": 7,  # transformers calls it with these
}

PICKLING = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch.load", "torch.save",
    "allow_pickle",
}  # fmt: skip

PUBLIC = {*sinkscope._HOME, *sinkscope._SUBMODULES, *sinkscope._probe_names()}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _public(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Public functions, classes and methods at the top of a module."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, Function) and not inner.name.startswith("_"):
                        yield f"{node.name}.{inner.name}", inner


def _parameters(function: Function) -> list[ast.arg]:
    """Parameters that the rules speak of: a Triton kernel takes pointers, strides and sizes, which have no types."""
    if any(ast.unparse(decorator) == "triton.jit" for decorator in function.decorator_list):
        return []
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [argument for argument in every if argument.arg not in ("self", "cls")]


def _over_budget(path: Path) -> Iterator[str]:
    source = path.read_text(encoding="utf-8")
    tree, name = ast.parse(source), _name(path)
    if len(source.splitlines()) > MAX_LINES:
        yield f"{name}: {len(source.splitlines())} lines"
    for node in ast.walk(tree):
        if isinstance(node, Function):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > MAX_FUNCTION:
                yield f"{name}:{node.name}: {lines} lines"
            allowed = ALLOWED_PARAMETERS.get(f"{name}:{node.name}", MAX_PARAMETERS)
            if not node.name.startswith("_") and len(_parameters(node)) > allowed:
                yield f"{name}:{node.name}: {len(_parameters(node))} parameters"
        if isinstance(node, ast.ClassDef):
            methods = [n.name for n in node.body if isinstance(n, Function) and not n.name.startswith("_")]
            if len(methods) > MAX_METHODS:
                yield f"{name}:{node.name}: {len(methods)} public methods"


def _undocumented(path: Path) -> Iterator[str]:
    tree, name = ast.parse(path.read_text(encoding="utf-8")), _name(path)
    if path.stat().st_size and not ast.get_docstring(tree):
        yield f"{name}: no docstring"
    for label, node in _public(tree):
        assert isinstance(node, ast.ClassDef | Function)
        if not ast.get_docstring(node):
            yield f"{name}:{label}: no docstring"
        if isinstance(node, Function):
            bare = [argument.arg for argument in _parameters(node) if argument.annotation is None]
            if bare or node.returns is None:
                yield f"{name}:{label}: no annotation of {bare or 'the result'}"


def _pickling(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {node.module or ""}
        else:
            names = {ast.unparse(node.func)} if isinstance(node, ast.Call) else set()
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                names = {"allow_pickle"}
        yield from (f"{_name(path)}: {name}" for name in names & PICKLING)


@pytest.mark.parametrize("check", [_over_budget, _undocumented, _pickling], ids=lambda check: check.__name__)
def test_every_module_keeps_the_rules(check: Callable[[Path], Iterator[str]]) -> None:
    assert MODULES
    found = [line for path in MODULES for line in check(path)]
    assert not found, "\n".join(found)


def test_the_rules_find_what_breaks_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "bad.py"
    body = "\n".join(f"    x = {i}" for i in range(70))
    path.write_text(f"import pickle\ndef f(a, b, c, d, e, g, h):\n{body}\n", encoding="utf-8")
    assert list(_over_budget(path)) == ["bad.py:f: 71 lines", "bad.py:f: 7 parameters"]
    assert list(_undocumented(path)) == [
        "bad.py: no docstring", "bad.py:f: no docstring",
        "bad.py:f: no annotation of ['a', 'b', 'c', 'd', 'e', 'g', 'h']",
    ]  # fmt: skip
    assert list(_pickling(path)) == ["bad.py: pickle"]


def test_long_modules_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    long = {name: size for name, size in sizes.items() if size > REPORT_LINES}
    with capsys.disabled():
        print(f"\nmodules over {REPORT_LINES} lines: {long or 'none'}")
    assert len(long) <= 0.15 * len(sizes), "too many long modules: the median file should have 80 to 160 lines"


def _modules_after(statement: str) -> set[str]:
    code = f"import sys; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_importing_sinkscope_imports_nothing_heavy() -> None:
    loaded = _modules_after("import sinkscope")
    assert not loaded & {
        "torch",
        "transformers",
        "transformer_lens",
        "numpy",
        "pandas",
        "xarray",
        "matplotlib",
        "scipy",
    }
    assert len(loaded) < 60, "import sinkscope stays under 0.3 s by importing almost nothing"


def test_readings_are_checked_measured_and_drawn_without_torch() -> None:
    names = ("schema", "roles", "errors", "definitions", "metrics", "plot", "report", "zoo")
    loaded = _modules_after("; ".join(f"import sinkscope.{name}" for name in names))
    assert not loaded & {"torch", "transformers", "transformer_lens"}


def test_help_imports_nothing_heavy() -> None:
    loaded = _modules_after("from sinkscope.cli import main; code = main(['--help'])")
    assert not loaded & {"torch", "transformers", "matplotlib", "pandas", "xarray"}


def test_every_public_name_is_there() -> None:
    for name in PUBLIC:
        assert getattr(sinkscope, name) is not None
        assert name in dir(sinkscope)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'sinkscope' has no attribute 'sink'"):
        _ = sinkscope.sink


def test_type_checkers_see_the_names_that_exist() -> None:
    tree = ast.parse((ROOT / "sinkscope" / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    starred = {node.module for node in imports if node.names[0].name == "*"}
    declared = {alias.asname for node in imports for alias in node.names if alias.name != "*"}
    assert starred == {"sinkscope.probes"}
    assert declared | set(sinkscope.probes.__all__) == PUBLIC


def test_a_probe_is_named_in_its_own_file_alone() -> None:
    import sinkscope.probes

    assert sorted(sinkscope._probe_names()) == sorted(sinkscope.probes.__all__)


@pytest.mark.parametrize("name", ["sink_rate", "sink_map", "find_sinks", "zerotune"])
def test_a_name_of_a_submodule_is_told_where_it_is(name: str) -> None:
    with pytest.raises(AttributeError) as raised:
        getattr(sinkscope, name)
    place = re.fullmatch(
        rf"module 'sinkscope' has no attribute '{name}'\. It is (sinkscope\.\w+)\.{name}\.", str(raised.value)
    )
    assert place
    assert callable(getattr(importlib.import_module(place[1]), name))
    assert not hasattr(sinkscope, f"_{name}")


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert "version" in project["dynamic"]  # the one place is sinkscope/__init__.py
    assert sinkscope.__version__ == version("sinkscope")
    assert f"version: {sinkscope.__version__}\n" in citation


def test_constraints_are_exact_and_name_no_place() -> None:
    lines = [
        line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    odd = [line for line in lines if not re.fullmatch(r"[a-z0-9][a-z0-9-]*==[0-9][0-9a-z.]*", line)]
    assert not odd
    pinned = {line.partition("==")[0] for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(w for extra in project["optional-dependencies"].values() for w in extra)]
    names = {re.split(r"[\[><=]", requirement)[0].lower() for requirement in wanted} - {"sinkscope"}
    assert names <= pinned


def test_every_skip_has_a_row() -> None:
    table = (Path(__file__).parent / "SKIPS.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| ")][1:]
    listed = {(reason.strip(), place.strip()) for reason, place in rows}
    found = set()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        if path == Path(__file__):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        strings = {n.targets[0].id: n.value.value for n in ast.walk(tree) if _is_text(n)}  # type: ignore[attr-defined]
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and re.search(r"\b(skip|skipif|xfail|importorskip)$", ast.unparse(node.func)):
                reason = next(
                    (k.value for k in node.keywords if k.arg == "reason"), node.args[0] if node.args else None
                )
                text = strings.get(reason.id, "?") if isinstance(reason, ast.Name) else getattr(reason, "value", "?")
                found.add((text, path.relative_to(Path(__file__).parent).as_posix()))
    assert found == listed


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def test_every_error_has_a_page() -> None:
    from sinkscope import errors

    classes = {name for name in dir(errors) if isinstance(getattr(errors, name), type)}
    pages = {path.stem for path in (ROOT / "docs" / "errors").glob("*.md")} - {"index"}
    assert classes == pages
    for name in sorted(classes):
        assert (ROOT / "docs" / "errors" / f"{name}.md").read_text(encoding="utf-8").startswith(f"# {name}\n")


def test_the_table_of_architectures_is_complete() -> None:
    from sinkscope.testing.tiny import RECIPES

    page = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8").split("## Every model type")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| [\w -]+ \| (\w+) \|", page, flags=re.MULTILINE))
    assert set(rows) == {recipe.model_type for recipe in RECIPES.values()}
    bypass = {recipe.model_type for recipe in RECIPES.values() if recipe.kind == "bypass"}
    assert {name for name, backend in rows.items() if backend == "TransformerLens"} == bypass
