"""``sinkscope list``: what can be named, in plain words, from an index that is made beforehand.

The registry knows what there is once everything is imported, torch with it, which takes seconds. So what comes with
sinkscope is kept in a file; a test holds it to the registry. After a change of names or first lines:

    make names

Other packages are asked through the registry, where one is installed that adds something.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path

from sinkscope import registry

INDEX = Path(__file__).parents[1] / "data" / "names.json"
"""What comes with sinkscope: kind, name and a line about each."""
HEADINGS = {
    "probe": "Probes: what to read, --probe NAME",
    "edit": "Edits: what to change, --edit NAME",
    "metric": "Metrics: numbers from a reading, in Python from sinkscope.metrics",
    "figure": "Figures: pictures of a reading, sinkscope plot NAME",
    "method": "Methods: procedures of the papers, in Python from sinkscope.methods",
    "task": "Tasks: questions with known answers, sinkscope tune MODEL --task NAME",
    "model": "Models: what sinkscope run takes by name, beside folders and hub ids",
    "statistic": "Statistics: what a probe of your own may ask of attention weights",
}
"""What stands above each kind; statistics are for writers of probes and shown when they are asked for."""
_ROLE = re.compile(r":\w+:`~?([^`]*)`")


def plain_words(summary: str) -> str:
    """Return the first line of a docstring without the markup of the documentation and the verb of a function."""
    said = _ROLE.sub(lambda found: found[1].rpartition(".")[2], summary).replace("`", "")
    short = said.removeprefix("Return ")
    return said if short == said else short[:1].upper() + short[1:]


def typed(entry: registry.Entry) -> str:
    """Return a name as it is typed: on the command line with hyphens, in Python behind the module of its kind."""
    if entry.kind == "method" and entry.package == registry.GROUP:
        from sinkscope import methods

        if getattr(methods, entry.name, None) is entry.item:
            return entry.name
        return f"{entry.module.removeprefix('sinkscope.methods.')}.{entry.name}"
    return entry.name if entry.kind in ("metric", "method") else registry.kebab(entry.name)


def rows(entries: Iterable[registry.Entry]) -> list[tuple[str, str, str]]:
    """Return kind, name and line of entries of the registry, the package's name behind those of other packages."""
    return [
        (each.kind, typed(each),
         plain_words(each.summary) + ("" if each.package == registry.GROUP else f" [{each.package}]"))
        for each in entries
    ]  # fmt: skip


def own() -> list[tuple[str, str, str]]:
    """Return what comes with sinkscope, as the registry has it; imports everything."""
    return rows(each for each in registry.entries() if each.package == registry.GROUP)


def known() -> list[tuple[str, str, str]]:
    """Return what can be named: the index, and what other packages add."""
    found = [(str(kind), str(name), str(line)) for kind, name, line in json.loads(INDEX.read_text(encoding="utf-8"))]
    if entry_points(group=registry.GROUP):
        found += rows(each for each in registry.entries() if each.package != registry.GROUP)
    return found


def list_(kind: str | None = None) -> None:
    """List what can be named: probes, edits, metrics, figures, methods, tasks, models; also those of other packages.

    Args:
        kind: One kind, such as probes, figures or models. Left out: all.
    """
    wanted = [each for each in HEADINGS if each != "statistic"] if kind is None else [registry.kind_named(kind)]
    listed = known()
    width = max(len(name) for each, name, _ in listed if each in wanted)
    for place, one in enumerate(wanted):
        print(("\n" if place else "") + HEADINGS[one] + "\n")
        for _, name, line in (row for row in listed if row[0] == one):
            print(_line(name, line, width))


def _line(name: str, line: str, width: int) -> str:
    """Write a row; on a terminal long ones go on under themselves, in a file each is one line."""
    text = f"  {name:<{width}}  {line}"
    if not sys.stdout.isatty():
        return text
    columns = shutil.get_terminal_size().columns
    return textwrap.fill(text, max(columns, width + 40), subsequent_indent=" " * (width + 4), drop_whitespace=True)


def write_index() -> None:
    """Write the index anew."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in own())
    INDEX.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
