"""Files of a training run: its checkpoint's optimiser, the curve as it was measured, numbers rounded for cards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
    """Write JSON with numbers of five digits and NaN as null, one measurement or field a line for readable diffs."""
    path.write_text(to_lines(_rounded(data)) + "\n", encoding="utf-8")


def to_lines(data: Any, indent: str = "") -> str:
    """Return JSON in which every key of an object, and every object in a list, has a line of its own.

    Args:
        data: What :func:`json.dumps` takes.
        indent: Spaces before what stands on a line of its own.
    """
    inner = indent + " "
    if isinstance(data, dict) and data:
        parts = [f"{inner}{json.dumps(key)}: {to_lines(value, inner)}" for key, value in data.items()]
        return "{\n" + ",\n".join(parts) + f"\n{indent}}}"
    if isinstance(data, list) and any(isinstance(row, dict) for row in data):
        return "[\n" + ",\n".join(f"{inner}{json.dumps(row)}" for row in data) + f"\n{indent}]"
    return json.dumps(data)


def _rounded(data: Any) -> Any:
    if isinstance(data, dict):
        return {k: _rounded(v) for k, v in data.items()}
    if isinstance(data, (list, tuple)):
        return [_rounded(v) for v in data]
    if isinstance(data, float):
        return None if np.isnan(data) else float(f"{data:.5g}")
    return data


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give an optimiser its state back from a checkpoint's tensors, named ``optimizer.PARAMETER.NAME``."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
