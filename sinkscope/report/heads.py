"""What the page's script needs to show any head: plain lists and base64 arrays, within a budget."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from sinkscope.report.images import View, for_script, question
from sinkscope.report.sinks import Sinks
from sinkscope.report.text import visible

MAX_VALUES = 1_000_000
"""Most numbers of one variable that a page carries (about 5 MB each); the reading's file holds all."""
MAX_TOKENS = 256
"""Most tokens of one prompt that a page shows."""


def packed(array: np.ndarray) -> dict[str, Any]:
    """Pack an array for the script: shape, and little-endian float32 as base64 (NaN survives)."""
    flat = np.ascontiguousarray(array, dtype="<f4")
    return {"shape": list(flat.shape), "data": base64.b64encode(flat.tobytes()).decode()}


def window(sizes: dict[str, int], heads: int) -> tuple[int, int]:
    """Say how many prompts and how many tokens of each fit into the page's budget."""
    tokens = min(sizes["key"], MAX_TOKENS, max(1, MAX_VALUES // heads))
    return min(sizes["prompt"], max(1, MAX_VALUES // (heads * tokens))), tokens


def head_data(ds: xr.Dataset, sinks: Sinks | None, found: Sequence[View] = ()) -> dict[str, Any] | None:
    """Collect what a click on a head shows; None without ``key_mass``. ``found``: the prompts' pictures."""
    if "key_mass" not in ds or sinks is None:
        return None
    mass = ds["key_mass"].transpose("prompt", "layer", "head", "key")
    layers, heads = mass.sizes["layer"], mass.sizes["head"]
    prompts, tokens = window({str(k): v for k, v in mass.sizes.items()}, layers * heads)
    cut = ds.isel(prompt=slice(0, prompts), key=slice(0, tokens))
    if "query" in cut.dims:
        cut = cut.isel(query=slice(0, tokens))
    plain = mass.drop_vars([n for n in mass.coords if n not in mass.dims])
    data: dict[str, Any] = {
        "layers": [str(v) for v in ds["layer"].values.tolist()],
        "heads": [str(v) for v in ds["head"].values.tolist()],
        "sink": sinks.label,
        "maps": {f"attention on {sinks.label}": packed(plain.where(sinks.mask).mean(["prompt", "key"]).values)},
        "prompts": _prompts(cut, ds),
        "key_mass": packed(cut["key_mass"].transpose("prompt", "layer", "head", "key").values),
        "kv_of_head": ds["kv_of_head"].values.tolist() if "kv_of_head" in ds.coords else None,
        "note": _note(ds, prompts, tokens),
        "views": for_script(found, prompts, tokens) if found else None,
    }
    if "entropy" in ds:
        data["maps"]["mean entropy [nat]"] = packed(
            ds["entropy"].mean(["prompt", "query"]).transpose("layer", "head").values
        )
        data["entropy"] = packed(cut["entropy"].transpose("prompt", "layer", "head", "query").values)
    if "value_norm" in ds:
        data["value_norm"] = packed(cut["value_norm"].transpose("prompt", "layer", "kv_head", "key").values)
    return data


def _prompts(cut: xr.Dataset, ds: xr.Dataset) -> list[dict[str, Any]]:
    roles = cut["token_role"].transpose("prompt", "key").values.astype(str)
    shown = []
    for p, role in enumerate(roles):
        count = int(((role != "") & (role != "pad")).sum())
        texts = cut["token"].isel(prompt=p).values.astype(str)[:count] if "token" in cut.coords else ["token"] * count
        label = str(ds["prompt"].values[p])
        tokens = [visible(str(text), 40) for text in texts]
        words = question(cut, p, 48) if (role == "image").any() else ""
        shown.append({"label": label, "tokens": tokens, "roles": role[:count].tolist(), "words": words})
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
