"""The zoo: small models trained by this project's own recipes and shipped with it. No torch at import.

    sinkscope.zoo.entries()          what there is, one line each
    sinkscope.zoo.path("bb-1l")      its folder, checksums verified
    sinkscope.zoo.variants.load(...) the model, also where plain transformers cannot build it

``load_model("zoo:bb-1l")`` does both steps. What each model shows and does not show is measured in its card,
``card.json`` in its folder.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sinkscope.errors import ModelError

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the shipped models; one folder per model, and ``manifest.json`` with the checksums."""


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Attributes:
        name: Name used in ``load_model("zoo:NAME")``.
        description: One line.
        licence: Licence of the weights, and of the text they were trained on.
        files: SHA-256 of each file, by its name in the folder.
    """

    name: str
    description: str
    licence: str
    files: dict[str, str] = field(repr=False)


def entries() -> list[Entry]:
    """List the models of the zoo by name; empty when none is shipped."""
    manifest = WEIGHTS / "manifest.json"
    if not manifest.exists():
        return []
    rows = json.loads(manifest.read_text(encoding="utf-8"))
    return [Entry(name, **row) for name, row in sorted(rows.items())]


def path(name: str) -> Path:
    """Folder of a model, after its files were checked against their checksums.

    Args:
        name: Name of an entry, with or without ``zoo:`` in front.

    Raises:
        ModelError: no such model, or a file of it is missing or changed.
    """
    short = name.removeprefix("zoo:")
    known = {entry.name: entry for entry in entries()}
    if short not in known:
        have = ", ".join(known) if known else "no model at all"
        raise ModelError(f"zoo:{short}: no model of that name. The zoo has {have}.")
    folder = WEIGHTS / short
    for file, checksum in known[short].files.items():
        target = folder / file
        if not target.is_file():
            raise ModelError(f"zoo:{short}: {file} is missing from {folder}. Install sinkscope again.")
        found = hashlib.sha256(target.read_bytes()).hexdigest()
        if found != checksum:
            raise ModelError(
                f"zoo:{short}: {file} has checksum {found[:12]}, expected {checksum[:12]}: it was changed or "
                "damaged. Install sinkscope again."
            )
    return folder


def card(name: str) -> dict[str, Any]:
    """Measured facts about a model, as its card holds them.

    Raises:
        ModelError: as :func:`path`.
    """
    return json.loads((path(name) / "card.json").read_text(encoding="utf-8"))


__all__ = ["WEIGHTS", "Entry", "card", "entries", "path"]
