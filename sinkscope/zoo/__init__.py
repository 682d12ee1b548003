"""The zoo: small models trained by this project's own recipes and shipped with it. No torch at import.

    sinkscope.zoo.entries()          what there is, one line each
    sinkscope.zoo.path("bb-1l")      its folder, checksums verified
    sinkscope.models.variants.load(...) the model, also where plain transformers cannot build it
    sinkscope.zoo.curve("lm-python") what was measured along its training; curves() names all, seeds() theirs

``load_model("zoo:bb-1l")`` does both steps. What each model shows and does not show is measured in its card,
``card.json`` in its folder.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sinkscope.errors import ModelError, did_you_mean, public_names

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the shipped models; one folder per model, and ``manifest.json`` with the checksums."""


CURVES = Path(__file__).parent / "curves"
"""Folder of the training curves of variants whose weights are not shipped, to keep the package small."""


@dataclass(frozen=True)
class ShippedModel:
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


def entries() -> list[ShippedModel]:
    """List the models of the zoo by name; empty when none is shipped."""
    manifest = WEIGHTS / "manifest.json"
    if not manifest.exists():
        return []
    rows = json.loads(manifest.read_text(encoding="utf-8"))
    return [ShippedModel(name, **row) for name, row in sorted(rows.items())]


def path(name: str) -> Path:
    """Return the folder of a model, after its files were checked against their checksums.

    Args:
        name: Name of an entry, with or without ``zoo:`` in front.

    Raises:
        ModelError: no such model, or a file of it is missing or changed.
    """
    short = name.removeprefix("zoo:")
    known = {entry.name: entry for entry in entries()}
    if short not in known:
        have = ", ".join(known) if known else "no model at all"
        raise ModelError(f"zoo:{short}: no model of that name. The zoo has {have}.{did_you_mean(short, known)}")
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


def curves(prefix: str = "") -> list[str]:
    """Names of all training runs whose curve is shipped: the models of the zoo, and variants without weights."""
    names = {entry.name for entry in entries()} | {file.stem for file in CURVES.glob("*.json")}
    return sorted(name for name in names if name.startswith(prefix))


def seeds(name: str) -> list[int]:
    """Seeds of the shipped training runs of this name, that of the shipped model first.

    Raises:
        ModelError: no such run, or as :func:`path`.
    """
    return list(_runs(name))


def curve(name: str, seed: int | None = None) -> list[dict[str, Any]]:
    """Return what was measured along a training run, one row per measurement: step, losses, sink statistics.

    Args:
        name: One of :func:`curves`, with or without ``zoo:`` in front.
        seed: One of :func:`seeds`; the first of them when left out.

    Raises:
        ModelError: no run of that name or seed, or as :func:`path`.
    """
    runs = _runs(name)
    if seed is None:
        return next(iter(runs.values()))
    if seed not in runs:
        have = ", ".join(map(str, runs))
        raise ModelError(f"zoo.curve({name!r}, seed={seed}): no training run of that seed. There are {have}.")
    return runs[seed]


def recipe(name: str) -> dict[str, Any]:
    """Return the fields of the recipe that made a run, as :func:`curve` knows it; without the seed where seeds differ.

    Raises:
        ModelError: as :func:`curve`.
    """
    short = _run_name(name)
    if short in {entry.name for entry in entries()}:
        return json.loads((path(short) / "recipe.json").read_text(encoding="utf-8"))
    return json.loads((CURVES / f"{short}.json").read_text(encoding="utf-8"))["recipe"]


def _run_name(name: str) -> str:
    short = name.removeprefix("zoo:")
    if short not in curves():
        raise ModelError(
            f"zoo.curve({name!r}): no training run of that name. There are {', '.join(curves())}."
            f"{did_you_mean(short, curves())}"
        )
    return short


def _runs(name: str) -> dict[int, list[dict[str, Any]]]:
    """Curves of a name by seed: that of the shipped model, then those that are shipped without weights."""
    short = _run_name(name)
    runs = {}
    if short in {entry.name for entry in entries()}:
        folder = path(short)
        recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
        runs[int(recipe["seed"])] = json.loads((folder / "curve.json").read_text(encoding="utf-8"))
    file = CURVES / f"{short}.json"
    if file.is_file():
        more = json.loads(file.read_text(encoding="utf-8"))["runs"]
        runs |= {int(seed): rows for seed, rows in more.items() if int(seed) not in runs}
    return runs


__all__ = ["CURVES", "WEIGHTS", "ShippedModel", "card", "curve", "curves", "entries", "path", "recipe", "seeds"]

__dir__ = public_names(globals())
