"""What the library says in Python, in words of the command line: probes and figures by their names there, options."""

from __future__ import annotations

import re

from sinkscope import registry

_CALL = r"\w+\([^()]*\)"
_PROBES = re.compile(rf"Add ({_CALL}(?:, {_CALL})*) to the probes(?: of the run)?(?:, or pass an array)?")
_LABEL = re.compile(r"ds\.sel\((\w+)=(?:'([^']*)'|([^()]*))\)")
_PLACES = re.compile(r"ds\.isel\((\w+)=slice\([^()]*\)\)")
_LOADED = re.compile(r"load_model\(('[^']*')\)")
_COMMAND = re.compile(r"^(run|sweep|survey)\((\w+)=([^()]*)\)")
_OPTION = re.compile(r"(?:load_model\()?\b(device|dtype|backend|tower|gguf_file|batch_size)=('[^']*'|\d+)\)?")
_RANGE = re.compile(r"range\((?:(\d+), )?(\d+)\)")
_VALUE = re.compile(r"\b([A-Z]\w+)\(([^()]*)\)")


def spoken(message: str) -> str:
    """Return a message with its advice in words of the command line."""
    said = _PROBES.sub(lambda found: f"Measure with {_options(found[1])}", message)
    said = said.replace("write_report(against=)", "report --against").replace("write_report", "report")
    said = _LABEL.sub(lambda found: f"--select {found[1]}={found[2] or found[3] or 'LABEL'}", said)
    said = _PLACES.sub(lambda found: f"--select {found[1]}=LABEL", said)
    said = said.replace("Pass overwrite=True (--overwrite)", "Pass --overwrite")
    said = _LOADED.sub(r"model \1", said)
    said = _COMMAND.sub(lambda found: f"{found[1]} {_option(found[2], found[3])}", said)
    said = _OPTION.sub(lambda found: _option(found[1], found[2]), said)
    said = _RANGE.sub(lambda found: f"{found[1] or 0}:{found[2]}", said)
    said = _VALUE.sub(_typed, said)
    return _figures(said) if said.startswith("figure ") else said


def _option(name: str, value: str) -> str:
    return f"--{name.replace('_', '-')} {value}".replace("'", "").removesuffix("...").strip()


def _typed(found: re.Match[str]) -> str:
    """Write ``MaskKeys(keys='first', layers=[2, 3])`` as it is typed; what is no probe or edit is left as it is."""
    kind = next((kind for kind in ("edit", "probe") if found[1] in registry.names(kind)), None)
    if kind is None:
        return found[0]
    fields = re.split(r", (?=\w+=)", found[2]) if found[2] else []
    if fields and not re.match(r"\w+=", fields[0]):
        fields[0] = f"{next(iter(registry.get(kind, found[1]).__signature__.parameters))}={fields[0]}"
    return " ".join([registry.kebab(found[1]), *(re.sub(r"['\[\]]", "", f).replace(", ", ",") for f in fields)])


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
