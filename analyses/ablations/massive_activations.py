"""Massive activations set to zero and to their mean (Sun et al. 2024, Table 3).

Claim: zeroing a handful of entries destroys LLaMA2-7B (perplexity without bound), setting them to their mean over other
texts changes nothing (5.47 to 5.47): they are biases. The paper gives perplexity and zero-shot accuracy; here the loss
per token, or for an encoder the cosine distance of the embedding. Controls: five random dimensions of the same token.
Entry: the dimension with the largest plateau (``metrics.massive_stages``), at the block where that begins and the
position where it stands most often. Means are taken on the first half of the texts, effects on the second. Where the
entry is the same in every text its mean is itself, and nothing can be learnt from setting it to that.
Cost: one pass per edit, under a minute per model.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr
from common import change, effect_probe, texts

import sinkscope as sk
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study, need, with_intervals
from sinkscope.edits import mean_activations


class MassiveEntry(NamedTuple):
    """Where the largest activation lies, how large it is, and whether it varies over texts."""

    site: str
    dim: int
    position: int
    size: float
    varies: bool


def largest(model: sk.Model, plain: xr.Dataset) -> MassiveEntry:
    """The entry of the largest plateau, where that begins."""
    stages = sk.metrics.massive_stages(plain)
    need(model, stages.sizes["stage"] > 0, "massive activations; the relative rule finds none in this model")
    row = stages.isel(stage=0)
    site, dim, position = f"{int(row['first'])}.post", int(row["dim"]), int(row["at"])
    at = plain.sel(site=site)
    values = at["top_value"].where((at["top_dim"] == dim) & (at["top_position"] == position))
    size, spread = float(values.mean()), float(values.std())
    return MassiveEntry(site, dim, position, size, spread > 1e-6 * abs(size))


def variants(model: sk.Model, held_out: sk.Prompts, entry: MassiveEntry, width: int) -> dict[str, list[sk.edits.Edit]]:
    """The entry set to zero and, where it varies, to its mean; five other dimensions of the token set to zero."""
    at = {"keys": [entry.position]}
    others = np.random.default_rng(0).choice([d for d in range(width) if d != entry.dim], 5, replace=False).tolist()
    edits: dict[str, list[sk.edits.Edit]] = {"set to zero": [sk.SetActivations(entry.site, dims=[entry.dim], **at)]}
    if entry.varies:
        mean = mean_activations(model, held_out, entry.site, [entry.dim], **at)
        edits["set to mean"] = [sk.SetActivations(entry.site, dims=[entry.dim], value=mean, **at)]
    return edits | {f"zero dim {d} (control)": [sk.SetActivations(entry.site, dims=[d], **at)] for d in others}


def judge(study: Study, model: sk.Model) -> None:
    """Find the entry, edit it, compare with controls, and draw."""
    prompts = texts(study, 32)
    half = len(prompts) // 2
    held_out, test = prompts.subset(range(half)), prompts.subset(range(half, len(prompts)))
    plain = study.run(held_out, [sk.MassiveActivations()])
    entry = largest(model, plain)
    ds = study.run(test, [effect_probe(model)], variants(model, held_out, entry, plain.attrs["d_model"]))
    effect = change(ds)
    unit, about = effect.attrs["long_name"], effect.attrs["units"].replace("1", "")
    zero, control = effect.sel(edit="set to zero", drop=True), effect.isel(edit=slice(-5, None)).mean("edit")
    where = f"{entry.size:.3g} in dimension {entry.dim} at {entry.site}, token {entry.position}"
    bare, less = Estimate.mean(zero, "+.3g", about), Estimate.paired(zero, control, "+.3g", about)
    study.claim(
        "Table 3", "Set to zero it hurts, other entries of the token set to zero do not", paper="5.47 to inf",
        number=bare, found=f"{unit}; less that of five other dimensions {less}; {where}", agrees=less.above(0.0),
    )  # fmt: skip
    if entry.varies:
        average = Estimate.mean(effect.sel(edit="set to mean", drop=True), "+.3g", about)
        share = average.value / bare.value
        study.claim(
            "Table 3", "Set to its mean over other texts it changes nothing", paper="5.47 to 5.47", number=average,
            found=f"{unit}, {share:.1%} of what zero does; {where}",
            agrees=share < 0.1 if bare.low > 0 else "zero does nothing either",
        )  # fmt: skip
    else:
        study.claim(
            "Table 3", "Set to its mean over other texts it changes nothing", paper="5.47 to 5.47",
            found=f"{where}, n = {half} texts", agrees="the same in every text, so its mean is itself",
        )  # fmt: skip
    table = with_intervals(effect)
    shown = sk.plot.described(table["difference"].assign_attrs(effect.attrs), ds)
    title = f"{model.id}: the largest activation, dim {entry.dim}"
    bars = sk.plot.effect_bars(shown, interval=(table["low"], table["high"]), title=title)
    study.figure(bars, "massive_activations", source=shown, says=f"{unit}; 95% bootstrap intervals over prompts")


if __name__ == "__main__":
    with Study(__doc__, paper="sun2024", model=(*LANGUAGE_MODELS, "minilm")) as study:
        study.for_each(judge)
