"""Attention before and after the layer where massive activations appear, and without them.

Paper: Sun et al. 2024, figures 5 and 6, section 4. Claim: attention concentrates on the tokens that carry them.
Cost: one pass for the maps and one per edit, under a minute.
Different here: numbers for pictures. Attention on the carrier is averaged over heads, before and after the block with
the largest step; the entry is set to zero there, other dimensions of the token are controls; intervals over prompts.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import Study
from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.engine.run import find_tower
from sinkscope.models.backends.base import Instruments


def logits(model: sk.Model, prompts: sk.Prompts) -> dict[int, np.ndarray]:
    """Attention logits of the first prompt, averaged over the heads of each layer, NaN where nothing is seen."""
    tower, found = find_tower(model, None), {}

    def watch(layer: int, call: Call) -> CallEdits:
        keys = call.key[0].repeat_interleave(call.query.shape[1] // call.key.shape[1], 0)
        mean = (call.query[0] @ keys.transpose(1, 2) * call.scale).mean(0).float()
        hidden = torch.ones_like(mean).triu(1).bool() & tower.causal
        found[layer] = mean.masked_fill(hidden, torch.nan).numpy()
        return CallEdits()

    with torch.no_grad(), model.evaluating():
        model.backend.forward(prompts.batch([0]).inputs, tower, Instruments(edits=watch))
    return found


def carrier(ds: xr.Dataset) -> tuple[int, int, int]:
    """Block with the largest step of the largest entry, and the position and dimension of that entry."""
    blocks = ds.isel(rank=0).sel(site=[s for s in ds["site"].values if s.endswith("post")])
    size = abs(blocks["top_value"]).mean("prompt").values
    onset = int((size[1:] / size[:-1]).argmax()) + 1
    places = (blocks[name].isel(site=onset).values.astype(int) for name in ("top_position", "top_dim"))
    return onset, *(int(np.bincount(place).argmax()) for place in places)


def said(row: xr.Dataset) -> str:
    """A difference with its interval."""
    return f"{float(row['difference']):+.3f} [{float(row['low']):+.3f}, {float(row['high']):+.3f}]"


def study_of(study: Study, model: sk.Model) -> None:
    """Measure, draw and judge one model."""
    prompts = study.texts("prose", n=24, tokens=48)
    plain = study.reading("plain", lambda: sk.run(model, prompts, [sk.KeyMass(), sk.MassiveActivations()]))
    onset, position, dim = carrier(plain)
    mass = plain["key_mass"].isel(key=position).mean("head").reset_coords(drop=True)
    late = slice(onset + 1, None)
    before, after = (mass.sel(layer=part).mean("layer") for part in (slice(None, onset), late))
    step = sk.metrics.compare(after, to=before)

    site, rng = f"{onset}.post", np.random.default_rng(0)
    others = rng.choice([d for d in range(plain.attrs["d_model"]) if d != dim], 5, replace=False).tolist()
    edits = {f"zero {d}": [sk.SetActivations(site, dims=[d], keys=[position])] for d in (dim, *others)}
    swept = study.reading("zeroed", lambda: sk.sweep(model, prompts, edits, [sk.KeyMass()], batch_size=8))
    now = swept["key_mass"].isel(key=position).mean("head").reset_coords(drop=True).sel(layer=late)
    change = sk.metrics.compare(now.mean("layer"), to=after)

    shown = sorted({max(onset - 1, 0), min(onset + 2, len(mass["layer"]) - 1)})
    maps = logits(model, prompts)
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.4), width_ratios=(1, 1, 1.1))
    tokens = {"token": ("key", plain["token"].isel(prompt=0).values[:16])}
    for ax, layer in zip(axes, shown, strict=False):
        grid = xr.DataArray(maps[layer][:16, :16], tokens, ("query", "key"))
        sk.plot.pair_map(grid, signed=True, label="logit, mean over heads", title=f"Logits, layer {layer}", ax=ax)
    lines = [mass.mean("prompt"), now.isel(edit=0).mean("prompt")]
    lines = xr.concat(lines, dim=xr.Variable("run", ["plain", "entry set to zero"]), join="outer")
    sk.plot.layer_profile(lines, ylabel="attention on the carrier", title=f"Entry appears in block {onset}", ax=axes[2])
    says = f"logits of one prompt; attention on position {position}, mean over heads and prompts; entry {dim} at {site}"
    study.figure(figure, "attention_before_after", source=plain, says=says)

    study.claim(
        "Figs. 5 and 6", "Attention concentrates on the carriers once massive activations exist", paper="pictures",
        found=f"{model.id}: attention on position {position} in layers {onset + 1} up {said(step)} above that in "
        f"layers 0 to {onset} ({float(before.mean()):.3f}; n = {len(prompts)})",
        agrees=float(step["low"]) > 0.5 * float(before.mean()),
    )  # fmt: skip
    control = change["difference"].isel(edit=slice(1, None))
    study.claim(
        "Section 4", "The attention is there because of them", paper="set to zero, attention no longer concentrates",
        found=f"{model.id}: entry set to zero {said(change.isel(edit=0))}, {len(control)} other dimensions "
        f"{float(control.min()):+.3f} to {float(control.max()):+.3f} (n = {len(prompts)})",
        agrees=float(change["high"][0]) < min(0.0, float(control.min())),
    )  # fmt: skip


with Study(__doc__, paper="sun2024", model=("zoo:lm-python", "minilm")) as study:
    for model in study.each():
        study_of(study, model)
