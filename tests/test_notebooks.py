"""Every notebook runs to its end without a network, draws what it says it draws, and warns of nothing."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NO_NETWORK = """
import socket

def _refused(*args, **kwargs):
    raise OSError("a notebook may not use the network")

socket.getaddrinfo = socket.create_connection = _refused
"""


def number(pattern: str, text: str) -> float:
    """The one number that a pattern finds."""
    found = re.findall(pattern, text)
    assert len(found) == 1, (pattern, text)
    return float(found[0])


def first_sinks(text: str) -> None:
    assert number(r"(\d+)% of 1728", text) > 50
    assert number(r"(\d+)% of 3240 cases", text) > 50
    assert number(r"median over heads: ([\d.]+)", text) < 0.2


def visual_sinks(text: str) -> None:
    found = re.findall(r"found at (\[.*\]), planted at (\[.*\])", text)
    assert len(found) == 4
    assert all(here == planted for here, planted in found)
    assert number(r"sinks per picture: ([\d.]+)", text) >= 1
    assert number(r"share of the attention to the picture: (\d+)%", text) > 20
    sinks, shape = (number(rf"{name} hidden: the answer loses ([+-][\d.]+)", text) for name in ("sinks", "the shape"))
    assert abs(sinks) < shape / 4


def interval(name: str, text: str) -> tuple[float, float]:
    """The two ends of the interval that is printed behind a name."""
    found = re.findall(rf"{name}: [+-][\d.]+ (?:nat per token )?\[([+-][\d.]+), ([+-][\d.]+)\]", text)
    assert len(found) == 1, (name, text)
    return float(found[0][0]), float(found[0][1])


def edit_and_compare(text: str) -> None:
    assert number(r"after: attention on the first token [\d.]+, on the second ([\d.]+)", text) > 0.3
    for name in ("masked", "drained"):
        assert interval(f"first token {name} late, more than random tokens", text)[0] > 0.3
    low, high = interval("masked less drained", text)
    assert low < 0 < high
    low, high = interval("sink heads off", text)
    assert low < 0.05
    assert high < 0.1
    assert interval("less random heads of the same layers", text)[1] < -0.1
    assert "changes nothing" in text


def gamma_sweep(text: str) -> None:
    assert number(r"rank correlation of estimate and sweep: ([\d.]+)", text) > 0.6
    assert 0 < number(r"at gamma 0.5 (\d+) of 18 heads", text) < 18
    assert interval("change to no edit", text)[1] < 0
    assert interval("change to random heads", text)[1] < 0


def train_a_sink(text: str) -> None:
    assert number(r"key mass of <s>: ([\d.]+)", text) > 0.4
    assert number(r"value drain: ([\d.]+)", text) < 0.3


def real_language_model(text: str) -> None:
    assert "the sink moves from token 0 to token 1" in text
    assert number(r"sink rate there: (\d+)% before", text) < 20 < number(r"before, (\d+)% after", text)
    zero, mean = (number(rf"dim \d+ to {what}: ([+-][\d.]+) nat per token", text) for what in ("zero", "its mean"))
    assert abs(mean) < 0.01 * zero
    assert number(r"largest control: ([+-][\d.]+) nat per token", text) < 0.05 * zero


def explain_an_image(text: str) -> None:
    assert "random" in text
    assert re.search(r"sink dimensions \[\d+.*\]; heads by largest attention: (uni|bi)modal", text)


STORIES: dict[str, Callable[[str], None]] = {
    story.__name__: story
    for story in (
        first_sinks,
        real_language_model,
        visual_sinks,
        explain_an_image,
        edit_and_compare,
        gamma_sweep,
        train_a_sink,
    )
}
"""What the words between the cells say of the numbers that the cells print."""


def printed(notebook: Any) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output["text"] for output in outputs if output["output_type"] == "stream")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_tells_its_story(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress not found")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(NO_NETWORK))
    NotebookClient(notebook, timeout=250, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output["text"] for output in outputs if output.get("name") == "stderr"] == []
    for cell in notebook.cells:
        if cell.cell_type == "code" and "sk.plot." in cell.source:
            assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.source
    STORIES[path.stem](printed(notebook))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_without_outputs_and_ends_with_ones_own_model(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
    first, last = ("".join(notebook["cells"][place]["source"]) for place in (0, -1))
    assert first.startswith("# ")
    assert "## Try it on your own model" in last


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_links_lead_somewhere(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    words = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\(([^)#]+)\)", words):
        assert target.startswith("http") or (path.parent / target).exists(), target


def test_the_documentation_lists_every_notebook() -> None:
    page = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    names = {path.stem for path in NOTEBOOKS}
    assert set(STORIES) == names
    assert set(re.findall(r"\{doc\}`notebooks/(\w+)`", page)) == names
    assert set(re.findall(r"^notebooks/(\w+)$", page, flags=re.MULTILINE)) == names
