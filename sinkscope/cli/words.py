"""What the library says in Python, in words of the command line: probes and figures by their names there, options."""

from __future__ import annotations

import re

from sinkscope import registry

_CALL = r"\w+\([^()]*\)"
_PROBES = re.compile(rf"Add ({_CALL}(?:, {_CALL})*) to the probes(?: of the run)?(?:, or pass an array)?")
_LABEL = re.compile(r"ds\.sel\((\w+)=(?:'([^']*)'|([^()]*))\)")
_PLACES = re.compile(r"ds\.isel\((\w+)=slice\([^()]*\)\)")


def spoken(message: str) -> str:
    """Return a message with its advice in words of the command line."""
    said = _PROBES.sub(lambda found: f"Measure with {_options(found[1])}", message)
    said = said.replace("write_report(against=)", "report --against").replace("write_report", "report")
    said = _LABEL.sub(lambda found: f"--select {found[1]}={found[2] or found[3] or 'LABEL'}", said)
    said = _PLACES.sub(lambda found: f"--select {found[1]}=LABEL", said)
    return _figures(said) if said.startswith("figure ") else said


def _options(calls: str) -> str:
    """Write ``KeyMass(), AttentionMap(layers=[...])`` as options."""
    options = []
    for name, fields in re.findall(r"(\w+)\(([^()]*)\)", calls):
        text = " ".join([registry.kebab(name), *(part.replace("[...]", "0") for part in fields.split(", ") if part)])
        options.append(f'--probe "{text}"' if " " in text else f"--probe {text}")
    return " ".join(options)


def _figures(message: str) -> str:
    """Write the names of figures with hyphens, the one asked for and those there are; variables keep their names."""
    head, listed, names = message.partition("Use one of ")
    first = re.sub(r"^figure '([^']*)'", lambda found: f"figure '{registry.kebab(found[1])}'", head)
    return first + listed + re.sub(r"\w+", lambda found: found[0].replace("_", "-"), names)
