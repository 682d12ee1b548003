"""Massive activations set to zero and to their mean (Sun et al. 2024, Table 3).

Claim: zeroing a handful of entries destroys LLaMA2-7B (perplexity without bound), setting them to their mean over other
texts changes nothing (5.47 to 5.47): they are biases. The paper gives perplexity and zero-shot accuracy; here the loss
per token, or for an encoder the cosine distance of the embedding. The control is the paper's: entries of the same token
whose size is near the median. Entry: the largest at block outputs relative to the median (the paper's rule of 1000
medians finds none in small models). Means are taken on the first half of the texts, effects on the second.
Cost: one pass per edit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr
from common import change, effect_probe, texts, told

import sinkscope as sk
from sinkscope.analysis import Study, with_intervals
from sinkscope.edits import mean_activations


class MassiveEntry(NamedTuple):
    """Where the largest activation lies, and how large it is."""

    site: str
    dim: int
    position: int
    size: float
    ratio: float
    varies: bool


def largest(plain: xr.Dataset) -> MassiveEntry:
    """The entry that is largest relative to the median, at the output of a block but the last."""
    first = plain.isel(rank=0).sel(site=[name for name in plain["site"].values if name.endswith("post")][:-1])
    ratio = (abs(first["top_value"]) / first["median_abs"]).mean("prompt")
    site = str(ratio["site"].values[int(np.argmax(ratio.values))])
    at = first.sel(site=site)
    dim, position = (int(np.bincount(at[name].values.astype(int)).argmax()) for name in ("top_dim", "top_position"))
    size, spread = float(at["top_value"].mean()), float(at["top_value"].std())
    return MassiveEntry(site, dim, position, size, float(ratio.max()), spread > 1e-6 * abs(size))


def study_of(study: Study, model: sk.Model) -> None:
    """Find the entry, edit it, compare with controls, and draw."""
    prompts = texts(study, 64)
    half = len(prompts) // 2
    held_out, test = prompts.subset(range(half)), prompts.subset(range(half, len(prompts)))
    plain = study.reading("plain", lambda: sk.run(model, held_out, [sk.MassiveActivations()], batch_size=16))
    entry = largest(plain)
    keys, site = [entry.position], entry.site
    free = [d for d in range(plain.attrs["d_model"]) if d != entry.dim]
    others = np.random.default_rng(0).choice(free, 5, replace=False).tolist()
    edits: dict[str, list[sk.edits.Edit]] = {"set to zero": [sk.SetActivations(site, dims=[entry.dim], keys=keys)]}
    if entry.varies:
        mean = mean_activations(model, held_out, site, [entry.dim], keys=keys)
        edits["set to mean"] = [sk.SetActivations(site, dims=[entry.dim], value=mean, keys=keys)]
    edits |= {f"zero dim {d} (control)": [sk.SetActivations(site, dims=[d], keys=keys)] for d in others}
    read = [effect_probe(model)]
    ds = study.reading("edited", lambda: sk.sweep(model, test, edits, read, batch_size=16, baseline=True))
    effect = change(ds)
    zero, control = effect.sel(edit="set to zero", drop=True), effect.isel(edit=slice(-5, None)).mean("edit")
    where = (
        f"{model.id}, {entry.size:.3g} in dim {entry.dim} at {site}, token {entry.position}, {entry.ratio:.0f} medians"
    )
    row, unit = sk.metrics.compare(zero, to=control), effect.attrs["long_name"]
    claim = "setting it to zero hurts, ordinary entries set to zero do not"
    found = f"{where}: {unit}, minus controls {told(row)}"
    study.claim("Table 3", claim, paper="5.47 to inf", found=found, agrees=float(row["low"]) > 0)
    claim, found, agrees = (
        "setting it to its mean changes nothing",
        f"{where}, n = {half} texts: the same in every text, so nothing",
        True,
    )
    if entry.varies:
        average = effect.sel(edit="set to mean", drop=True)
        share = float(average.mean() / zero.mean())
        agrees = share < 0.1
        found = f"{where}: {unit} {told(sk.metrics.compare(average, to=zero * 0))}, {share:.1%} of what zero does"
    study.claim("Table 3", claim, paper="5.47 to 5.47", found=found, agrees=agrees)
    table = with_intervals(effect)
    shown = sk.plot.described(table["difference"].assign_attrs(effect.attrs), ds)
    title = f"{model.id}: the largest activation, dim {entry.dim}"
    bars = sk.plot.effect_bars(shown, interval=(table["low"], table["high"]), title=title)
    study.figure(bars, "massive_activations", source=shown, says=f"{unit}; 95% bootstrap intervals over prompts")


def main() -> None:
    """Do the study for each model."""
    with Study(__doc__, paper="sun2024", model=["minilm", "zoo:lm-python"]) as study:
        for model in study.each():
            study_of(study, model)


if __name__ == "__main__":
    main()
