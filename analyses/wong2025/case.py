"""Which model the scripts of this folder look at: the one asked for, or the constructed one where it has none."""

from __future__ import annotations

from dataclasses import dataclass

import constructed
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import Study
from sinkscope.methods import secondary_sinks


@dataclass(frozen=True, eq=False)
class Case:
    """A model with secondary sinks, its prompts and what was found, and what the model asked for shows."""

    model: sk.Model
    prompts: sk.Prompts
    found: xr.Dataset
    constructed: bool
    seen: str


def choose(study: Study) -> Case:
    """Look for secondary sinks in the model of ``--model``; take the constructed model if there are none."""
    model = study.model
    length = min(256, model.context_length or 256)
    prompts = study.texts("code", n=24, tokens=length)
    found = study.reading("found", lambda: secondary_sinks.detect(model, prompts))
    count, seen = int((found["kind"] == "secondary").sum()), describe(found, model)
    if count:
        return Case(model, prompts, found, False, seen)
    model = constructed.build(0)
    prompts = sk.Prompts.from_ids(constructed.token_ids(2 if study.quick else 8, 48, 3), model)
    found = study.reading("found-constructed", lambda: secondary_sinks.detect(model, prompts))
    return Case(model, prompts, found, True, seen)


def describe(found: xr.Dataset, model: sk.Model) -> str:
    """Say how many tokens became sinks, and how near the others came."""
    kind, layers = found["kind"].values, found["layer"].values
    cosine = np.abs(found["cosine"].values.transpose(0, 2, 1)[kind == ""])
    tokens = int(np.isfinite(cosine).all(1).sum())
    names = ("secondary", "extra_primary", "noise")
    counts = ", ".join(f"{int((kind == name).sum())} {name.replace('_', ' ')}" for name in names)
    ranges = stages(found)
    where = " and ".join(f"{layers[first]} to {layers[last]}" for first, last in ranges) or "none"
    inside = np.isin(np.arange(len(layers)), [x for first, last in ranges for x in range(first, last + 1)])
    near = f"{np.nanmax(cosine[:, inside]):.2f}" if inside.any() else "-"
    return (
        f"{model.id}: {counts} among {tokens} tokens of {found.sizes['prompt']} prompts; primary in layers {where} of "
        f"{len(layers)}; largest cosine of the rest {near}"
    )


def stages(found: xr.Dataset) -> list[tuple[int, int]]:
    """Stages of the primary sink that most prompts have."""
    rows = np.stack([found["stage_first"].values, found["stage_last"].values], -1).reshape(-1, 2)
    kept, counts = np.unique(rows[rows[:, 0] >= 0], axis=0, return_counts=True)
    return [(int(a), int(b)) for (a, b), n in zip(kept, counts, strict=True) if n > 0.5 * found.sizes["prompt"]]
