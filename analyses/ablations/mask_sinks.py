"""Do attention sinks matter? Masked, dropped, or without the dimension that carries them; each against controls.

Claim: Yu et al. 2024 and Gu et al. 2025 (first token); Sun et al. 2024, Table 3, for the carrier dimension. The papers
ablate decoders and give no controls for tokens; here any model, with as many random tokens of the same prompts, and
random dimensions at the same token. Sinks are tokens with a mean attention above 0.3 in some head (Gu et al. 2025), the
last 15 tokens of a decoder left out, whose mean is over few queries; the carrier is the dimension of the largest entry
at a sink, relative to the median magnitude of its site (block outputs).
Effect: change of the loss per token, or for an encoder the cosine distance of the mean-pooled last state to the one
without an edit; each prompt's own tokens, edits and controls, paired over prompts, 95 per cent bootstrap intervals.
Cost: one pass per edit; two minutes for both default models on one core.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from common import change, effect_probe, texts, told

import sinkscope as sk
from sinkscope.analysis import Study, with_intervals

DRAWS = 5
NAMES = ["masked", "dropped", "carrier zeroed"]


def carrier(ds: xr.Dataset, sinks: xr.DataArray) -> tuple[str, int]:
    """The site and dimension of the largest entry at a sink, relative to the site's median magnitude."""
    at = sinks.isel(key=ds["top_position"].fillna(0).astype(int))
    size = (abs(ds["top_value"]) / ds["median_abs"]).where(at)
    size = size.sel(site=[name for name in ds["site"].values if name.endswith("post")][:-1])
    chosen = {dim: int(index) for dim, index in size.argmax(...).items()}
    site = str(size["site"].values[chosen.pop("site")])
    return site, int(ds["top_dim"].sel(site=site)[chosen])


def variants(sinks: xr.DataArray, site: str, dim: int, width: int) -> dict[str, list[sk.edits.Edit]]:
    """Three edits of the sinks, and the same edits of random tokens and dimensions."""
    rng = np.random.default_rng(0)
    out: dict[str, list[sk.edits.Edit]] = {
        "masked": [sk.MaskKeys(sinks)],
        "dropped": [sk.DropKeys(sinks)],
        "carrier zeroed": [sk.SetActivations(site, dims=[dim], keys=sinks)],
    }
    for draw in range(DRAWS):
        tokens = sk.metrics.matched_controls(sinks, seed=draw)
        other = int(rng.choice([d for d in range(width) if d != dim]))
        out |= {
            f"masked control {draw}": [sk.MaskKeys(tokens)],
            f"dropped control {draw}": [sk.DropKeys(tokens)],
            f"carrier zeroed control {draw}": [sk.SetActivations(site, dims=[other], keys=sinks)],
        }
    return out


def study_of(study: Study, model: sk.Model) -> None:
    """Measure, edit, compare and draw for one model."""
    prompts = texts(study)
    probes = [sk.KeyMass(), sk.MassiveActivations()]
    plain = study.reading("plain", lambda: sk.run(model, prompts, probes, batch_size=16))
    sinks = sk.metrics.sink_mask(plain, min_queries=16).any(["layer", "head"])
    site, dim = carrier(plain, sinks)
    edits = variants(sinks, site, dim, plain.attrs["d_model"])
    read = [effect_probe(model)]
    ds = study.reading("edited", lambda: sk.sweep(model, prompts, edits, read, batch_size=16, baseline=True))
    effect = change(ds)
    own = effect.sel(edit=NAMES)
    drawn = [effect.sel(edit=[f"{name} control {i}" for name in NAMES]) for i in range(DRAWS)]
    controls = xr.concat([one.assign_coords(edit=NAMES) for one in drawn], "draw")
    against, alone = sk.metrics.compare(own, to=controls.mean("draw")), with_intervals(own)
    first = float(sinks.isel(key=0).sum() / sinks.sum())
    where = f"{model.id}, {int(sinks.sum())} sinks in {len(prompts)} prompts, {first:.0%} of them the first token"
    for name in NAMES:
        row, bare = against.sel(edit=name), float(own.sel(edit=name).mean())
        kind = f"random dimensions (dimension {dim} at {site})" if name == "carrier zeroed" else "random tokens"
        found = f"{where}: {own.attrs['long_name']} {bare:.3g}, minus that of {kind}: {told(row)}"
        source = "Sun et al., Table 3" if name == "carrier zeroed" else "section 2"
        claim = f"sinks {name} change the output more than {kind.split(' (')[0]}"
        study.claim(source, claim, paper="they matter", found=found, agrees=float(row["low"]) > 0)
    shown = sk.plot.described(own.mean("prompt").assign_attrs(own.attrs), ds)
    interval, diamonds = (alone["low"], alone["high"]), controls.mean("prompt").T
    bars = sk.plot.effect_bars(shown, interval=interval, controls=diamonds, title=f"{model.id} without its sinks")
    says = f"{own.attrs['long_name']}; diamonds: {DRAWS} random draws; 95% bootstrap intervals over prompts"
    study.figure(bars, "mask_sinks", source=shown, says=says)


def main() -> None:
    """Do the study for each model."""
    with Study(__doc__, paper="gu2025", model=["minilm", "zoo:lm-python"]) as study:
        for model in study.each():
            study_of(study, model)


if __name__ == "__main__":
    main()
