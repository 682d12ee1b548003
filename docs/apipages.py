"""Write the pages of the API from the package: one section per module, headed by its docstring. No list to keep.

A public name is one in ``dir(sinkscope)`` or in the ``__all__`` of a public submodule. Each gets a page of its own,
which autosummary makes from its docstring.
"""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import sinkscope

PAGES: dict[str, tuple[str, str]] = {
    "running": ("Running", ""),
    "probes": ("Probes", "probes"),
    "edits": ("Edits", "edits"),
    "metrics": ("Metrics", "metrics"),
    "plot": ("Figures", "plot"),
    "methods": ("Methods", "methods"),
    "report": ("Reports", "report"),
    "training": ("Training", "training"),
    "zoo": ("Zoo", "zoo"),
    "testing": ("Testing", "testing"),
}
"""File of each page, its title, and the submodule it shows; the first one shows the rest of the top level."""
PLAIN = ("probes", "edits")
"""Pages whose classes are values: their fields are shown, and no methods."""
ORDER = (
    "model", "prompts", "runner", "sweeps", "schema", "definitions", "sinks", "massive", "drain", "entropy", "residual",
    "vision", "bimodal", "secondary", "dominance", "comparison", "controls",
)  # fmt: skip
"""Modules whose sections come first on their page, in this order: what most readers look for."""


@dataclass(frozen=True)
class Name:
    """One documented name: the path by which users reach it, and the object."""

    path: str
    value: Any

    @property
    def home(self) -> str:
        """Module in which it is defined."""
        return self.value.__module__


def public(page: str) -> list[Name]:
    """Names of one page, in the order of their modules and then by name; modules and constants are left out."""
    submodule = PAGES[page][1]
    if not submodule:
        named = {n: getattr(sinkscope, n) for n in dir(sinkscope) if not n.startswith("_")}
        taken = {f"sinkscope.{PAGES[other][1]}" for other in PAGES if PAGES[other][1]} | {"sinkscope.errors"}
        found = [Name(f"sinkscope.{n}", v) for n, v in named.items() if _documented(v)]
        return [name for name in found if not any(_inside(name.home, module) for module in taken)]
    module = importlib.import_module(f"sinkscope.{submodule}")
    found = []
    for name in module.__all__:
        value = getattr(module, name)
        if isinstance(value, ModuleType):
            found += [Name(f"{value.__name__}.{n}", v) for n, v in vars(value).items() if _own(n, v, value)]
        elif _documented(value):
            top = getattr(sinkscope, name, None) is value
            found.append(Name(f"sinkscope.{name}" if top else f"sinkscope.{submodule}.{name}", value))
    return found


def write(folder: Path) -> None:
    """Write all pages into ``folder``; a page that has not changed is left alone, so that a rebuild is quick.

    Pages of names that are gone go too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = {name.path for page in PAGES for name in public(page)}
    for stub in folder.glob("*.rst"):
        if stub.stem not in known:
            stub.unlink()
    for page in PAGES:
        text, target = render(page), folder / f"{page}.md"
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            target.write_text(text, encoding="utf-8")


def render(page: str) -> str:
    """Give one page as Markdown."""
    title, submodule = PAGES[page]
    groups: dict[str, list[Name]] = {}
    for name in public(page):
        groups.setdefault(name.home, []).append(name)
    parts = [f"# {title}\n"]
    if submodule:
        parts.append(_paragraph(importlib.import_module(f"sinkscope.{submodule}")).removeprefix(f"{title}: ") + "\n")
    for home, names in sorted(groups.items(), key=lambda group: _place(group[0])):
        heading, rest = _heading(importlib.import_module(home))
        if len(groups) > 1:
            parts.append(f"## {heading}\n" + (f"\n{rest}\n" if rest else ""))
        options = ["   :toctree: .", "   :nosignatures:", *(["   :template: value.rst"] if page in PLAIN else [])]
        rows = [f"   ~{name.path}" for name in sorted(names, key=lambda name: name.path)]
        parts.append("\n".join(["```{eval-rst}", ".. autosummary::", *options, "", *rows, "```\n"]))
    return "\n".join(parts)


def _place(module: str) -> int:
    name = module.rpartition(".")[2]
    return ORDER.index(name) if name in ORDER else len(ORDER)


def _documented(value: Any) -> bool:
    return (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__.startswith("sinkscope")


def _own(name: str, value: Any, module: ModuleType) -> bool:
    return not name.startswith("_") and _documented(value) and value.__module__.startswith(module.__name__)


def _inside(module: str, parent: str) -> bool:
    return module == parent or module.startswith(f"{parent}.")


def _paragraph(module: ModuleType) -> str:
    text = inspect.cleandoc(module.__doc__ or "").split("\n\n")[0].replace("\n", " ")
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")


def _heading(module: ModuleType) -> tuple[str, str]:
    """Split a module's first paragraph at its first colon or full stop: what comes before is the heading."""
    head, mark, rest = re.match(r"([^:.]+)([:.]?)\s*(.*)", _paragraph(module), flags=re.DOTALL).groups()  # type: ignore
    return head.strip(), (rest[:1].upper() + rest[1:]) if mark else ""
