"""Do attention sinks matter? Masked, dropped, or without the dimension that carries them; each against controls.

Claim: Yu et al. 2024 and Gu et al. 2025 (first token); Sun et al. 2024, Table 3, for the carrier dimension. The papers
ablate decoders and give no controls for tokens; here any model, with as many random tokens of the same prompts, and
random dimensions at the same token. Sinks are tokens with a mean attention above 0.3 in some head (Gu et al. 2025); the
carrier is the dimension of the largest entry at a sink, relative to the median magnitude of its site (block outputs).
Effect: change of the loss per token, or for an encoder the cosine distance of the mean-pooled last state to the one
without an edit; each prompt's own tokens, edits and controls, paired over prompts, 95 per cent bootstrap intervals.
Cost: one pass per edit; under two minutes for MiniLM on one core.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from common import arguments, change, effect_probe, finish, reading

import sinkscope as sk

DRAWS = 5


def carrier(ds: xr.Dataset, sinks: xr.DataArray) -> tuple[str, int]:
    """The site and dimension of the largest entry at a sink, relative to the site's median magnitude."""
    at = sinks.isel(key=ds["top_position"].fillna(0).astype(int))
    size = (abs(ds["top_value"]) / ds["median_abs"]).where(at)
    size = size.sel(site=[name for name in ds["site"].values if name.endswith("post")])
    best = size.argmax(...)
    chosen = {dim: int(index) for dim, index in best.items()}
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


def main() -> None:
    """Measure, compare, draw and say what was found."""
    given, model, prompts = arguments(__doc__ or "")
    plain = sk.run(model, prompts, [sk.KeyMass(), sk.MassiveActivations()])
    sinks = sk.metrics.sink_tokens(plain).any(["layer", "head"])
    site, dim = carrier(plain, sinks)
    found = f"{int(sinks.sum())} sinks in {len(prompts)} prompts, {float(sinks.isel(key=0).mean()):.0%} of prompts have"
    print(f"{model.id}: {found} one at the first token. Carrier: dimension {dim} at {site}.")
    edits = variants(sinks, site, dim, plain.attrs["d_model"])
    ds = reading(
        given.output / "mask_sinks.nc", lambda: sk.sweep(model, prompts, edits, [effect_probe(model)], baseline=True)
    )
    effect = change(ds)
    names = ["masked", "dropped", "carrier zeroed"]
    own = effect.sel(edit=names)
    controls = xr.concat(
        [effect.sel(edit=[f"{n} control {i}" for n in names]).assign_coords(edit=names) for i in range(DRAWS)], "draw"
    )
    against = sk.metrics.compare(own, to=controls.mean("draw"))
    alone = sk.metrics.compare(own, to=own * 0)
    for name in names:
        row, bare = against.sel(edit=name), float(own.sel(edit=name).mean())
        verdict = "more than" if float(row["low"]) > 0 else "less than" if float(row["high"]) < 0 else "no more than"
        print(
            f"{name}: {bare:.4g}, that is {float(row['difference']):+.4g} [{float(row['low']):.4g}, "
            f"{float(row['high']):.4g}] against its controls (n = {int(row['n'])}): {verdict} random ones."
        )
    shown = sk.plot.described(own.mean("prompt").assign_attrs(own.attrs), ds)
    axes = sk.plot.effect_bars(
        shown, interval=(alone["low"], alone["high"]), controls=controls.mean("prompt").T, title="Without the sinks"
    )
    text = f"{own.attrs['long_name']}; diamonds are {DRAWS} random draws; 95% bootstrap intervals over prompts"
    finish(axes, shown, given.output / "mask_sinks.png", text)


if __name__ == "__main__":
    main()
