"""What the page's script needs to show any head: tokens, attention received, entropies, value norms, maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from sinkscope.report.images import View, for_script, question
from sinkscope.report.measures import head_measures
from sinkscope.report.payload import Payload
from sinkscope.report.runs import ShownRun
from sinkscope.report.sinks import Sinks
from sinkscope.report.text import visible

MAX_VALUES = 1_000_000
"""Most numbers of one variable that a page carries, over all its runs; the reading's file holds all."""
MAX_TOKENS = 256
"""Most tokens of one prompt that a page shows."""
MAX_MAP_TOKENS = 128
"""Most tokens of one prompt whose attention map a page shows."""


def window(sizes: dict[str, int], heads: int) -> tuple[int, int]:
    """Say how many prompts and how many tokens of each fit into the page's budget."""
    tokens = min(sizes["key"], MAX_TOKENS, max(1, MAX_VALUES // heads))
    return min(sizes["prompt"], max(1, MAX_VALUES // (heads * tokens))), tokens


def head_data(
    runs: Sequence[ShownRun], payload: Payload, sinks: Sinks | None, found: Sequence[View] = ()
) -> dict[str, Any] | None:
    """Collect what a click on a head shows; None without ``key_mass``.

    Args:
        runs: the runs of the page, all of the same prompts, layers and heads.
        payload: takes the arrays.
        sinks: which tokens are the sink.
        found: the prompts' pictures.
    """
    if sinks is None or any("key_mass" not in run.ds for run in runs):
        return None
    ds = runs[0].ds
    sizes = {str(k): v for k, v in ds["key_mass"].sizes.items()}
    prompts, tokens = window(sizes, sizes["layer"] * sizes["head"] * len(runs))
    measured = [head_measures(run.ds, sinks) for run in runs]
    return {
        "layers": [str(v) for v in ds["layer"].values.tolist()],
        "heads": [str(v) for v in ds["head"].values.tolist()],
        "kv_of_head": ds["kv_of_head"].values.tolist() if "kv_of_head" in ds.coords else None,
        "sink": sinks.label,
        "threshold": sinks.threshold,
        "causal": int(ds.attrs.get("causal", 1)),
        "measures": [
            {"name": m.name, "short": m.short, "label": m.label, "says": m.says, "scale": m.scale}
            for m in measured[0] if all(m.name in {other.name for other in group} for group in measured)
        ],
        "prompts": _prompts(ds.isel(prompt=slice(0, prompts), key=slice(0, tokens)), ds, sinks),
        "runs": [
            {
                "label": run.label, "edits": run.edits,
                "grids": {m.name: payload.add(m.grid, "single") for m in group},
                "variables": _variables(run.ds, payload, prompts, tokens),
                "maps": _maps(run.ds, payload, prompts, min(tokens, MAX_MAP_TOKENS), MAX_VALUES // len(runs)),
            }
            for run, group in zip(runs, measured, strict=True)
        ],
        "axis": sweep_axis(runs),
        "note": _note(ds, prompts, tokens),
        "views": for_script(found, prompts, tokens) if found else None,
    }  # fmt: skip


def sweep_axis(runs: Sequence[ShownRun]) -> dict[str, Any] | None:
    """Say where each run stands along the numbers of a sweep; None where no dimension of it has two numbers.

    The axis is the dimension with the most numbers; the labels of the others name the lines. ``losses`` holds the loss
    of each run in nat a token, mean over tokens and then over prompts, None where it was not read.
    """
    values: dict[str, dict[float, None]] = {}
    for run in runs:
        for dim, label in run.at:
            if isinstance(label, int | float) and not isinstance(label, bool):
                values.setdefault(dim, {})[float(label)] = None
    name = max(values, key=lambda dim: len(values[dim]), default="")
    if not name or len(values[name]) < 2:
        return None
    places = []
    for run in runs:
        rest = ", ".join(f"{dim} = {label}" for dim, label in run.at if dim != name)
        places.append({"x": float(str(dict(run.at)[name])), "line": rest} if name in dict(run.at) else None)
    return {"name": name, "places": places, "losses": [_loss(run.ds) for run in runs]}


def _loss(ds: xr.Dataset) -> float | None:
    if "token_loss" not in ds:
        return None
    loss = float(ds["token_loss"].mean("query").mean("prompt"))
    return loss if np.isfinite(loss) else None


def _variables(ds: xr.Dataset, payload: Payload, prompts: int, tokens: int) -> dict[str, Any]:
    """Pack the variables by token: attention received, entropy of the row, value norm."""
    dims = {
        "key_mass": ("prompt", "layer", "head", "key"), "entropy": ("prompt", "layer", "head", "query"),
        "value_norm": ("prompt", "layer", "kv_head", "key"),
    }  # fmt: skip
    return {
        name: payload.add(ds[name].transpose(*order).values[:prompts, ..., :tokens])
        for name, order in dims.items() if name in ds
    }  # fmt: skip


def _maps(ds: xr.Dataset, payload: Payload, prompts: int, tokens: int, most: int) -> dict[str, Any] | None:
    """Pack the attention maps that were recorded, of as many prompts as ``most`` numbers hold; None without one."""
    if "attention" not in ds:
        return None
    maps = ds["attention"].transpose("prompt", "layer", "head", "query", "key").values[:prompts, ..., :tokens, :tokens]
    held = np.argwhere(np.isfinite(maps).any(axis=(0, 3, 4)))
    if not len(held):
        return None
    places = maps.shape[3] * maps.shape[4]
    kept = held[: max(1, most // places)]
    shown = maps[: max(1, most // (len(kept) * places)), kept[:, 0], kept[:, 1]]
    return {"heads": kept.tolist(), "all": len(held) == len(kept), "values": payload.add(shown)}


def _prompts(cut: xr.Dataset, ds: xr.Dataset, sinks: Sinks) -> list[dict[str, Any]]:
    roles = cut["token_role"].transpose("prompt", "key").values.astype(str)
    mask = sinks.mask.transpose("prompt", "key").values
    shown = []
    for p, role in enumerate(roles):
        count = int(((role != "") & (role != "pad")).sum())
        texts = cut["token"].isel(prompt=p).values.astype(str)[:count] if "token" in cut.coords else ["token"] * count
        tokens = [visible(str(text), 40) for text in texts]
        words = question(cut, p, 48) if (role == "image").any() else ""
        shown.append({
            "label": str(ds["prompt"].values[p]), "tokens": tokens, "roles": role[:count].tolist(), "words": words,
            "sinks": np.flatnonzero(mask[p, :count]).tolist(),
        })  # fmt: skip
    return shown


def _note(ds: xr.Dataset, prompts: int, tokens: int) -> str:
    parts = []
    if prompts < ds.sizes["prompt"]:
        parts.append(f"the first {prompts} of {ds.sizes['prompt']} prompts")
    if tokens < ds.sizes["key"]:
        parts.append(f"the first {tokens} tokens of each (the longest has {ds.sizes['key']})")
    if not parts:
        return ""
    return f"To keep this page small it carries {' and '.join(parts)}; the file of the reading holds all of them."
