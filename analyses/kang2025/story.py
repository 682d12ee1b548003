"""One picture in three steps: where attention goes, which tokens spike, where attention goes once it is given back.

Paper: Kang et al. 2025 (arXiv 2503.03321), figures 1 to 3 and the overview of VAR. Claim: attention lies on tokens that
spike in the sink dimensions; redistribution moves it to the other visual tokens. Cost: two passes over twelve prompts.
Different here: at the layer where most visual tokens spike, else a deep one; where no visual token passes tau the
highest twentieth by phi stand for sinks, which the caption says; every head whose attention is on the picture is edited
(rho = 0), so that something is to be seen in one layer. The picture is the one whose ringed tokens lose most.

    python analyses/kang2025/story.py --model zoo:vlm-smol
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import sinkscope as sk
from sinkscope import metrics
from sinkscope.analysis import (
    VISION_LANGUAGE_MODELS,
    Estimate,
    Study,
    spread_layers,
    visual_sink_layers,
    visual_tau,
)
from sinkscope.methods.var import VarSettings, redistribution, sink_dims_or_largest
from sinkscope.tasks.scene_questions import BOX, SceneQuestions, scene_questions

HIGHEST = 0.05
"""Part of the visual tokens that stand for sinks where none passes tau."""


def judge(study: Study, model: sk.Model) -> None:
    """Measure before and after, draw the picture that loses most, say how much was moved."""
    shapes = scene_questions(model, 12, ("colour", "shape", "place"))
    dims, _ = sink_dims_or_largest(model, shapes.prompts)
    probes = [sk.KeyMass(queries="after_image"), sk.SinkDims(dims)]
    plain = study.reading("plain", lambda: sk.run(model, shapes.prompts, probes))
    image = plain["token_role"].reset_coords(drop=True) == "image"
    tau, told, label = visual_tau(model, plain)[0], "tokens that pass tau", "visual sinks"
    each = metrics.at_block_inputs(plain["phi"].astype("float64"), plain["layer"].values.tolist())
    layer = next(iter(visual_sink_layers(each, image, tau)), spread_layers(model)[-2])
    phi = each.sel(layer=layer).reset_coords(drop=True).where(image)
    if not bool((phi >= tau).any()):
        told, label = f"no token passes tau = {tau:.3g}: the highest {HIGHEST:.0%}", "highest phi"
        tau = float(phi.quantile(1 - HIGHEST))
    edit = redistribution(model, 0.0, dims, VarSettings(tau=tau))
    after = study.reading("after", lambda: sk.run(model, shapes.prompts, probes[:1], [edit]))
    sinks = (phi >= tau) & image
    before, behind = (
        ds["key_mass"].sel(layer=layer).mean("head").reset_coords(drop=True).where(image) for ds in (plain, after)
    )
    shares = [(each.where(sinks).sum("key") / each.sum("key")).where(sinks.any("key")) for each in (before, behind)]
    moved = Estimate.paired(shares[1].dropna("prompt"), shares[0].dropna("prompt"), "+.3f")
    study.claim(
        "Overview", "Redistribution takes the attention from tokens that spike", paper="shown on one picture",
        number=moved, agrees=moved.below(0.0),
        found=f"part of the attention to the picture at layer {layer} that is on them, after less before; "
        f"{float(shares[0].mean()):.3f} before; phi from {tau:.3g}, {told}",
    )  # fmt: skip
    which = int(np.argmax((shares[0] - shares[1]).fillna(-1.0).values))
    steps = {"Attention": before, "Sink dimensions": phi, "After redistribution": behind}
    figure = draw(shapes, plain.isel(prompt=which), {k: v.isel(prompt=which) for k, v in steps.items()}, (tau, label))
    says = (
        f"n = 1 prompt, layer {layer}, attention of the rows after the picture, mean over heads; rings: {told}; "
        f"dimensions {list(dims)}: {shapes.questions[which].text}"
    )
    source = before.isel(prompt=which).assign_attrs(model_id=plain.attrs["model_id"])
    study.figure(figure, "story", source=source, says=says)


def draw(shapes: SceneQuestions, one: xr.Dataset, steps: dict[str, xr.DataArray], rings: tuple[float, str]) -> Figure:
    """Draw the three steps on the picture; both attentions on one scale."""
    which, (tau, label) = int(one["prompt"]), rings
    picture = np.asarray(shapes.scenes[which].image(shapes.scale))
    top = max(float(steps[name].max()) for name in ("Attention", "After redistribution"))
    places = {name: one[name] for name in BOX}
    boxes = np.stack([one[name].values for name in BOX], -1)[(steps["Sink dimensions"] >= tau).values]
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 4))
    for ax, (name, array) in zip(axes, steps.items(), strict=True):
        attends = name != "Sink dimensions"
        line = array.assign_coords(places).assign_attrs(long_name="attention weight" if attends else "phi")
        sk.plot.patch_overlay(picture, line, limits=(0.0, top) if attends else None, title=name, ax=ax)
        sk.plot.mark_patches({"": boxes[:0], label: boxes}, ax=ax, legend=not attends)
    axes[0].collections[0].colorbar.remove()  # that of the last panel holds for both
    return figure


if __name__ == "__main__":
    with Study(__doc__, paper="kang2025", model=VISION_LANGUAGE_MODELS) as study:
        study.for_each(judge)
