"""Do attention sinks matter? Masked, dropped, or without the dimension that carries them; each against controls.

Claim: Yu et al. 2024 and Gu et al. 2025 (first token); Sun et al. 2024, Table 3, for the carrier dimension. The papers
ablate decoders and give no controls for tokens; here any model, with as many random tokens of the same prompts, and
random dimensions at the same token. Sinks are tokens with a mean attention above 0.3 in some head (Gu et al. 2025), the
last 15 tokens of a decoder left out, whose mean is over few queries; the carrier is the dimension of the largest
plateau at them (``metrics.massive_stages``), zeroed where that begins.
A sink masked in all layers may move to the next token (``metrics.sink_moves``): then its mask says little on whether
sinks matter, so they are also masked in the early, middle and late layers alone.
Effect: change of the loss per token, or for an encoder the cosine distance of the mean-pooled last state to the one
without an edit; each prompt's own tokens, edits and controls, paired over prompts, 95 per cent bootstrap intervals.
Cost: one pass per edit; a few minutes for each language model on one core.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from common import change, effect_probe, texts

import sinkscope as sk
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study, need, with_intervals

DRAWS = 3
PARTS = ("early", "middle", "late")


def variants(model: sk.Model, sinks: xr.DataArray, carrier: xr.Dataset, seed: int | None) -> dict[str, list]:
    """The edits of the sinks, or with a seed the same edits of random tokens and of a random dimension."""
    tower = model.backend.towers[model.backend.default_tower]
    tokens = sinks if seed is None else sk.metrics.matched_controls(sinks, seed=seed)
    thirds = np.array_split(np.arange(len(tower.attention)), len(PARTS))
    edits = {"masked": [sk.MaskKeys(tokens)]}
    edits |= {
        f"masked in the {part} layers": [sk.MaskKeys(tokens, layers=third.tolist())]
        for part, third in zip(PARTS, thirds, strict=True)
    }
    edits["dropped"] = [sk.DropKeys(tokens)]
    if carrier.sizes["stage"]:
        dim = int(carrier["dim"][0])
        if seed is not None:
            dim = int(np.random.default_rng(seed).choice([d for d in range(tower.d_model) if d != dim]))
        edits["carrier zeroed"] = [sk.SetActivations(f"{int(carrier['first'][0])}.post", dims=[dim], keys=sinks)]
    return edits


def judge(study: Study, model: sk.Model) -> None:
    """Measure, edit, compare and draw for one model."""
    prompts = texts(study)
    plain = study.run(prompts, [sk.KeyMass(), sk.MassiveActivations()])
    sinks = sk.metrics.sink_mask(plain, min_queries=16).any(["layer", "head"])
    need(model, bool(sinks.any()), "attention sinks; no token has a mean attention above 0.3 in any head")
    carrier = sk.metrics.massive_stages(plain, where=sinks)
    own = variants(model, sinks, carrier, None)
    edits = own | {
        f"{name} control {seed}": edit
        for seed in range(DRAWS) for name, edit in variants(model, sinks, carrier, seed).items()
    }  # fmt: skip
    effect = change(study.run(prompts, [effect_probe(model)], edits))
    masked = {name: edit for name, edit in own.items() if name.startswith("masked")}
    moves = sk.metrics.sink_moves(plain, study.run(prompts, [sk.KeyMass()], masked))
    controls = xr.concat(
        [effect.sel(edit=[f"{name} control {i}" for name in own]).assign_coords(edit=list(own)) for i in range(DRAWS)],
        "draw",
    )
    unit = effect.attrs["units"].replace("1", "")
    first = float(sinks.isel(key=0).sum() / sinks.sum())
    where = f"{int(sinks.sum())} sinks in {len(prompts)} prompts, {first:.0%} of them the first token"
    for name in own:
        less = Estimate.paired(
            effect.sel(edit=name, drop=True), controls.sel(edit=name, drop=True).mean("draw"), "+.3g", unit
        )
        told, kind, agrees = "", "random tokens", less.above(0.0)
        if name in masked:
            told, moved = gone(moves.sel(edit=name))
            agrees = told if moved and agrees is not True else agrees
        if name == "carrier zeroed":
            kind, dim = "random dimensions", int(carrier["dim"][0])
            told = f"dimension {dim}, {float(carrier['magnitude'][0]):.3g} from block {int(carrier['first'][0])} on"
        words = "; ".join(part for part in (f"{effect.attrs['long_name']} less that of {kind}", told, where) if part)
        study.claim(
            "Sun et al., Table 3" if name == "carrier zeroed" else "section 2",
            f"Sinks {name} change the output more than {kind}", number=less, agrees=agrees, found=words,
            paper="they matter" if name in ("masked", "carrier zeroed") else "",
        )  # fmt: skip
    draw(study, model, effect.sel(edit=list(own)), controls, plain)


def gone(row: xr.Dataset) -> tuple[str, bool]:
    """Where the attention stands after the mask, in words, and whether the sink moved there."""
    at, moved = int(row["target"]), bool(row["moved"])
    rates = f"(sink rate there {float(row['rate_before'].mean()):.2f} to {float(row['rate'].mean()):.2f})"
    if at == int(row["origin"]):
        return f"position {at} keeps most of the attention {rates}", False
    return f"the sink moves to position {at} {rates}" if moved else f"no other sink forms, position {at} {rates}", moved


def draw(study: Study, model: sk.Model, own: xr.DataArray, controls: xr.DataArray, plain: xr.Dataset) -> None:
    """Bars of the edits, with the controls beside them."""
    alone = with_intervals(own)
    shown = sk.plot.described(own.mean("prompt").assign_attrs(own.attrs), plain)
    interval, diamonds = (alone["low"], alone["high"]), controls.mean("prompt").transpose("edit", "draw")
    bars = sk.plot.effect_bars(shown, interval=interval, controls=diamonds, title=f"{model.id} without its sinks")
    says = f"{own.attrs['long_name']}; diamonds: {DRAWS} random draws; 95% bootstrap intervals over prompts"
    study.figure(bars, "mask_sinks", source=shown, says=says)


if __name__ == "__main__":
    with Study(__doc__, paper="gu2025", model=(*LANGUAGE_MODELS, "minilm")) as study:
        study.for_each(judge)
