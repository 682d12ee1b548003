"""Attention while massive activations are there, and without them.

Paper: Sun et al. 2024, figures 5 and 6, section 4. Claim: attention concentrates on the tokens that carry them.
Cost: one pass for the maps and one per edit, under two minutes per model.
Different here: numbers for pictures. Massive activations may have several plateaus over the blocks (found by
``metrics.massive_stages``), so attention on the carrier, averaged over heads, is compared between the layers that read
a state with the largest one's dimension massive, and the layers that do not. The entry is set to zero where its largest
plateau begins, other dimensions of the token are controls; intervals are over prompts.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study, need
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


def readers(stages: xr.Dataset, dim: int) -> list[int]:
    """Layers that read a block output at which the dimension is massive."""
    mine = stages.isel(stage=np.flatnonzero(stages["dim"].values == dim))
    spans = zip(mine["first"].values.tolist(), mine["last"].values.tolist(), strict=True)
    return sorted({layer + 1 for first, last in spans for layer in range(first, last + 1)})


def without(study: Study, plain: xr.Dataset, stage: xr.Dataset) -> xr.DataArray:
    """Attention on the carrier with its entry set to zero, and with five other dimensions: dims (edit prompt layer)."""
    site, dim, position = f"{int(stage['first'])}.post", int(stage["dim"]), int(stage["at"])
    free = [d for d in range(int(plain.attrs["d_model"])) if d != dim]
    others = np.random.default_rng(0).choice(free, 5, replace=False).tolist()
    edits = {f"zero {d}": [sk.SetActivations(site, dims=[d], keys=[position])] for d in (dim, *others)}
    swept = study.run(study.texts("prose"), [sk.KeyMass(keys=[position])], edits).drop_sel(edit="baseline")
    return swept["key_mass"].isel(key=position).mean("head").reset_coords(drop=True)


def draw(study: Study, plain: xr.Dataset, stage: xr.Dataset, lines: xr.DataArray, title: str) -> None:
    """Logits of one prompt before and after the largest plateau begins, and attention on the carrier by layer."""
    onset, depth = int(stage["first"]), plain.sizes["layer"]
    shown = [max(onset, 0), min(onset + 2, depth - 1)]
    maps = logits(study.model, study.texts("prose"))
    top = max(float(np.nanmax(np.abs(maps[layer][:16, :16]))) for layer in shown)
    figure = plt.figure(figsize=(9.2, 8))
    above, below = figure.subfigures(2, 1, height_ratios=(1.2, 1))
    axes = above.subplots(1, 2)
    tokens = {"token": ("key", plain["token"].isel(prompt=0).values[:16])}
    for ax, layer in zip(axes, shown, strict=False):
        grid = xr.DataArray(maps[layer][:16, :16], tokens, ("query", "key"))
        said = {"label": "logit, mean over heads", "title": f"Logits, layer {layer}"}
        sk.plot.pair_map(grid, signed=True, limit=top, ax=ax, **said)
    axes[0].images[0].colorbar.remove()  # that of the second map holds for both
    sk.plot.layer_profile(lines, ylabel="attention on the carrier", title=title, ax=below.subplots())
    says = (
        f"logits of one prompt; attention on position {int(stage['at'])}, mean over heads and prompts; entry "
        f"{int(stage['dim'])} set to zero at {onset}.post"
    )
    study.figure(figure, "attention_before_after", source=plain, says=says)


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw and judge one model."""
    plain = study.run(study.texts("prose"), [sk.KeyMass(), sk.MassiveActivations()])
    stages = sk.metrics.massive_stages(plain)
    need(model, stages.sizes["stage"] > 0, "massive activations; the relative rule finds none in this model")
    stage = stages.isel(stage=0)
    dim, position, onset, last = (int(stage[name]) for name in ("dim", "at", "first", "last"))
    mass = plain["key_mass"].isel(key=position).mean("head").reset_coords(drop=True)
    reads = [layer for layer in readers(stages, dim) if layer in mass["layer"].values]
    rest = [int(layer) for layer in mass["layer"].values if int(layer) not in reads]
    with_it, without_it = (mass.sel(layer=layers).mean("layer") for layers in (reads, rest))
    now = without(study, plain, stage)
    lines = xr.concat(
        [mass.mean("prompt"), now.isel(edit=0).mean("prompt").where(mass["layer"] > onset)],
        dim=xr.Variable("run", ["plain", "entry set to zero"]), join="outer",
    )  # fmt: skip
    spans = [
        f"{int(a)} to {int(b)}"
        for d, a, b in zip(*(stages[name].values for name in ("dim", "first", "last")), strict=True) if d == dim
    ]  # fmt: skip
    draw(
        study,
        plain,
        stage,
        lines,
        f"Dimension {dim}: blocks {', '.join(sorted(spans, key=lambda s: int(s.split()[0])))}",
    )

    step = Estimate.paired(with_it, without_it, "+.3f")
    study.claim(
        "Figs. 5 and 6", "Attention concentrates on the carriers once massive activations exist", paper="pictures",
        number=step, agrees=step.above(0.0) if rest else "every layer reads them",
        found=f"attention on position {position} in the {len(reads)} layers that read dimension {dim} massive, less "
        f"the {len(rest)} others ({float(without_it.mean()):.3f})",
    )  # fmt: skip
    late = [layer for layer in reads if onset < layer <= last + 1]
    before = mass.sel(layer=late).mean("layer")
    after = now.sel(layer=late).mean("layer")
    change = [Estimate.paired(after.isel(edit=i, drop=True), before, "+.3f") for i in range(after.sizes["edit"])]
    control = [one.value for one in change[1:]]
    study.claim(
        "Section 4", "The attention is there because of them", paper="set to zero, attention no longer concentrates",
        number=change[0], agrees=change[0].below(min(0.0, *control)),
        found=f"on position {position} with dimension {dim} set to zero at {onset}.post (from "
        f"{float(mass.sel(layer=late).mean()):.3f}), {len(control)} other dimensions {min(control):+.3f} to "
        f"{max(control):+.3f}",
    )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="sun2024", model=(*LANGUAGE_MODELS, "minilm")) as study:
        study.for_each(judge)
