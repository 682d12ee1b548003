"""Files of a run and of the shelf: the curve as it was measured, numbers rounded for cards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from sinkscope.errors import ModelError


def read_curve(folder: Path) -> list[dict[str, Any]]:
    """What a run measured along training, one row per measurement, without its ``detail`` (numbers of every head).

    Raises:
        ModelError: the folder holds no curve.
    """
    if (folder / "curve.json").exists():
        rows = json.loads((folder / "curve.json").read_text())
    elif (folder / "curve.jsonl").exists():
        rows = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    else:
        raise ModelError(f"ship: no curve.json or curve.jsonl in {folder}. Name the folder of a finished run.")
    return [{k: v for k, v in row.items() if k != "detail"} for row in rows]


def command(recipe: str, fields: dict[str, Any], defaults: dict[str, Any], step: int | None = None) -> str:
    """The command that repeats a run: options for all fields that differ from the recipe's defaults.

    Args:
        recipe: Module of the recipe.
        fields: Fields of its config.
        defaults: The same as they are when no option is given.
        step: Where the run was stopped before its end.
    """
    options = [
        f"--{name.replace('_', '-')} {value}"
        for name, value in fields.items()
        if value != defaults[name] and name != "betas"
    ]
    options += [] if step is None else [f"--stop-at {step}"]
    return " ".join([f"python -m recipes.{recipe} --out FOLDER", *options])


def write(path: Path, data: Any) -> None:
    """Write JSON with numbers of five digits; NaN becomes null."""
    path.write_text(json.dumps(_rounded(data), indent=1) + "\n", encoding="utf-8")


def _rounded(data: Any) -> Any:
    if isinstance(data, dict):
        return {k: _rounded(v) for k, v in data.items()}
    if isinstance(data, (list, tuple)):
        return [_rounded(v) for v in data]
    if isinstance(data, float):
        return None if np.isnan(data) else float(f"{data:.5g}")
    return data
