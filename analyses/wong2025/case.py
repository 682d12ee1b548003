"""What the scripts of this folder look at: a model with the secondary sinks found in it, or the constructed one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import constructed
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import Study
from sinkscope.methods import secondary_sinks


@dataclass(frozen=True, eq=False)
class Case:
    """A model, its prompts and the sinks found in them."""

    model: sk.Model
    prompts: sk.Prompts
    found: xr.Dataset
    constructed: bool = False

    @property
    def secondary(self) -> int:
        """Number of secondary sinks."""
        return int((self.found["kind"] == "secondary").sum())

    def paper(self, text: str) -> str:
        """What the paper says, or nothing: a claim about a constructed model is none of the paper's."""
        return "" if self.constructed else text


def look(study: Study, model: sk.Model) -> Case:
    """Look for secondary sinks in a model."""
    length = min(192, model.context_length or 192)
    prompts = study.texts("code", n=12, tokens=length)
    return Case(model, prompts, study.reading("found", lambda: secondary_sinks.detect(model, prompts)))


def judge(study: Study, model: sk.Model, first: tuple[str, str, str], go_on: Callable[[Study, Case], None]) -> None:
    """Look for secondary sinks and go on where there are some; elsewhere say so of a script's first claim.

    ``first`` is that claim's figure, words and number in the paper.
    """
    chosen = look(study, model)
    if chosen.secondary:
        go_on(study, chosen)
        return
    figure, claim, paper = first
    found = describe(chosen.found)
    study.claim(figure, claim, paper=paper, found=found, agrees="no secondary sink was found in its prompts")


def built(study: Study) -> Case:
    """The constructed model: truth for the detector, no evidence about models."""
    model = constructed.build(0)
    study.subject = model.id
    prompts = sk.Prompts.from_ids(constructed.token_ids(2 if study.quick else 8, 48, 3), model)
    return Case(model, prompts, secondary_sinks.detect(model, prompts), True)


def describe(found: xr.Dataset) -> str:
    """Say how many tokens became sinks, and how near the others came."""
    kind, layers = found["kind"].values, found["layer"].values
    cosine = np.abs(found["cosine"].values.transpose(0, 2, 1)[kind == ""])
    tokens = int(np.isfinite(cosine).all(1).sum())
    names = ("secondary", "extra_primary", "noise")
    counts = ", ".join(f"{int((kind == name).sum())} {name.replace('_', ' ')}" for name in names)
    ranges = stages(found)
    where = " and ".join(f"{layers[first]} to {layers[last]}" for first, last in ranges) or "none"
    inside = np.isin(np.arange(len(layers)), [x for first, last in ranges for x in range(first, last + 1)])
    near = f"{np.nanmax(cosine[:, inside]):.2f}" if inside.any() and len(cosine) else "-"
    return (
        f"{counts} among {tokens} tokens of {found.sizes['prompt']} prompts; primary in layers {where} of "
        f"{len(layers)}; largest cosine of the rest {near}"
    )


def stages(found: xr.Dataset) -> list[tuple[int, int]]:
    """Stages of the primary sink that most prompts have."""
    rows = np.stack([found["stage_first"].values, found["stage_last"].values], -1).reshape(-1, 2)
    kept, counts = np.unique(rows[rows[:, 0] >= 0], axis=0, return_counts=True)
    return [(int(a), int(b)) for (a, b), n in zip(kept, counts, strict=True) if n > 0.5 * found.sizes["prompt"]]
