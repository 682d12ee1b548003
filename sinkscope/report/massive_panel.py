"""What the page's script needs to show massive activations: the largest entries by site, token and dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from sinkscope.errors import MetricError
from sinkscope.metrics.massive import massive_dims
from sinkscope.report.payload import Payload
from sinkscope.report.runs import ShownRun

NEEDS = ("top_value", "top_dim", "top_position", "median_abs")
MAX_ENTRIES = 200_000
"""Most entries that a page carries, over all its runs; the reading's file holds all."""
NAMED = 6
"""Most dimensions that are named and drawn as lines."""
_ORDER = ("prompt", "site", "rank")


def massive_data(runs: Sequence[ShownRun], payload: Payload) -> dict[str, Any] | None:
    """Collect the largest entries of the residual stream; None where no run has them.

    Args:
        runs: the runs of the page; those without massive activations are left out.
        payload: takes the arrays.
    """
    held = [run for run in runs if all(name in run.ds for name in NEEDS)]
    if not held:
        return None
    ds = held[0].ds
    ranks = min(ds.sizes["rank"], 10)
    prompts = max(1, min(ds.sizes["prompt"], MAX_ENTRIES // (len(held) * ds.sizes["site"] * ranks)))
    return {
        "sites": [str(site) for site in ds["site"].values.tolist()],
        "prompts": [str(label) for label in ds["prompt"].values.tolist()[:prompts]],
        "all_prompts": ds.sizes["prompt"],
        "ranks": ranks,
        "runs": [_run(run, payload, prompts, ranks) for run in held],
    }


def _run(run: ShownRun, payload: Payload, prompts: int, ranks: int) -> dict[str, Any]:
    ds = run.ds
    value, dim, position = (ds[name].transpose(*_ORDER).values for name in NEEDS[:3])
    named, rule = named_dims(ds)
    size = np.abs(value)
    # An entry that is not among the ranked ones is unknown, and smaller than these.
    largest = [np.where(dim == d, np.nan_to_num(size), 0.0).max(2) for d in named]
    lines = np.array([_median(np.where(line > 0, line, np.nan)) for line in largest]).reshape(len(named), -1)
    median = ds["median_abs"].transpose("prompt", "site").values
    return {
        "label": run.label,
        "dims": named,
        "rule": rule,
        "lines": payload.add(lines, "single"),
        "median_line": payload.add(_median(median), "single"),
        "median": payload.add(median[:prompts], "single"),
        "value": payload.add(value[:prompts, :, :ranks], "single"),
        "dim": payload.add(dim[:prompts, :, :ranks], "index"),
        "position": payload.add(position[:prompts, :, :ranks], "index"),
    }


def named_dims(ds: xr.Dataset) -> tuple[list[int], str]:
    """Name the dimensions that hold massive activations, most common first; else those of the largest entries.

    Returns:
        The dimensions, and the rule by which they were chosen, in words.
    """
    try:
        found = [int(d) for d in massive_dims(ds)["dim"].values[:NAMED]]
    except MetricError:
        found = []
    if found:
        return found, "massive by the relative rule (see Definitions), the most common first"
    value, dim = (ds[name].transpose(*_ORDER).values.ravel() for name in ("top_value", "top_dim"))
    order = np.argsort(-np.nan_to_num(np.abs(value), nan=-1.0), kind="stable")
    largest = list(dict.fromkeys(int(d) for d in dim[order] if np.isfinite(d)))[:3]
    return largest, "none is massive; these hold the largest entries"


def _median(values: np.ndarray) -> np.ndarray:
    """Median over prompts of those that have a number in at least half of the prompts; NaN elsewhere."""
    enough = np.isfinite(values).mean(0) >= 0.5
    out = np.full(values.shape[1:], np.nan)
    out[enough] = np.nanmedian(values[:, enough], axis=0)
    return out
