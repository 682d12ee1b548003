"""What visual sinks hold: how much they write, and whether they lie on background.

Paper: Kang et al. 2025 (arXiv 2503.03321), figures 3c, 3d and table 6. Claims: visual sinks write far less than other
visual tokens, and over nine in ten lie on background. Cost: one pass over 48 short prompts, a minute on
``zoo:vlm-smol``. Different here: background is known from the pixels of made pictures; what a token writes is taken as
its weight times the norm of its value, without W_O, mean over heads; eight layers at most; tau is the width-relative
one, unless that lies among ordinary text tokens. The most attended visual tokens are judged beside those that pass tau,
as phi may mark others.

    python analyses/kang2025/sink_content.py --model zoo:vlm-smol
"""

from __future__ import annotations

import textwrap

import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope import metrics
from sinkscope.analysis import (
    VISION_LANGUAGE_MODELS,
    Study,
    describe_difference,
    highest_tokens,
    spread_layers,
    visual_sink_layers,
    visual_tau,
)
from sinkscope.methods.var import sink_dims_or_largest
from sinkscope.tasks.scene_questions import BOX, SceneQuestions, scene_questions

FEW = 20
"""Fewer (token, layer) pairs than this, or half as many prompts with any, show nothing of visual sinks."""
MOST = 3
"""Visual tokens of each prompt and layer that count as the most attended."""


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw, and state what was found on one model."""
    shapes = scene_questions(model, 10 if study.quick else 48)
    dims, _ = sink_dims_or_largest(model, shapes.prompts)
    layers = spread_layers(model)
    probes = [sk.KeyMass(queries="after_image"), sk.SinkDims(dims), sk.ValueNorm()]
    ds = study.reading("mass", lambda: sk.run(model, shapes.prompts, probes)).sel(layer=layers)
    phi = metrics.at_block_inputs(ds["phi"].astype("float64"), layers).reset_coords(drop=True)
    image, (tau, source) = ds["token_role"].reset_coords(drop=True) == "image", visual_tau(model, ds)
    weight = ds["key_mass"].mean("head").reset_coords(drop=True)
    written = weight * ds["value_norm"].mean("kv_head").reset_coords(drop=True)
    passing = (phi >= tau) & image
    attended = [highest_tokens(weight.sel(layer=layer), image, MOST).assign_coords(layer=layer) for layer in layers]
    chosen = {"pass tau": passing, f"{MOST} most attended": xr.concat(attended, "layer")}

    ground = shapes.background(ds).reset_coords(drop=True)
    for name, sinks in chosen.items():
        ratio = written.where(sinks).mean("key") / written.where(image & ~sinks).mean("key")
        ratio = ratio.mean("layer")
        count = int(sinks.sum())
        missing = f"none of {int(image.sum()) * len(layers)} (token, layer) pairs passes {tau:.3g}, {source}"
        prompts = int(sinks.any(["layer", "key"]).sum())
        some = count >= FEW and prompts >= FEW // 2
        reason = "" if some else f"{count} (token, layer) pairs of {prompts} prompts are too few"
        words, result = describe_difference(ratio) if int(ratio.count()) > 1 else (missing, xr.Dataset())
        study.claim(
            "Fig. 3c", f"Visual sinks write less than other visual tokens (sinks: {name})", paper="far less",
            found=f"written, sinks over others: {words}", agrees=float(result["high"]) < 1 if some else reason,
        )  # fmt: skip
        over = metrics.background_overlap(
            sinks.assign_coords(token_role=ds["token_role"]), ground, over=("prompt", "layer")
        )
        on, base = float(over["sinks_on_background"]), float(over["tokens_on_background"])
        study.claim(
            "Table 6", f"Visual sinks lie on background (sinks: {name})", paper="over 90 %",
            found=f"{on:.0%} of {count}, {base:.0%} of all visual tokens" if count else missing,
            agrees=on > max(0.9, base) if some else reason,
        )  # fmt: skip

    per = xr.concat([written.where(s).mean("key") for s in (*chosen.values(), image)], "tokens")
    per = per.assign_coords(tokens=[*chosen, "all visual"]).mean("prompt")
    says = "weight times value norm per token, from rows after the picture, mean over heads and prompts"
    axes = sk.plot.layer_profile(per, ylabel="written per token", title="What visual tokens write")
    study.figure(axes, "written_by_layer", source=ds, says=says)

    stand = visual_sink_layers(phi, image, tau)
    ringed = passing.sel(layer=stand[0]) if stand else chosen[f"{MOST} most attended"].sel(layer=layers[-2])
    label = f"phi over {tau:.3g}" if stand else f"{MOST} most attended"
    draw(study, shapes, ds, {"attention weight": weight, "phi": phi.where(image)}, (ringed, label))


def draw(
    study: Study,
    shapes: SceneQuestions,
    ds: xr.Dataset,
    arrays: dict[str, xr.DataArray],
    rings: tuple[xr.DataArray, str],
) -> None:
    """Draw attention and phi on the first three pictures that have ringed tokens, each on one scale."""
    image = ds["token_role"].reset_coords(drop=True) == "image"
    late, label = int(rings[0]["layer"]), rings[1]
    ringed = rings[0].transpose("prompt", "key")
    first = np.flatnonzero(ringed.any("key"))[:3]
    for name, array in arrays.items():
        shown = {}
        for which in first:
            places = {box: ds[box].isel(prompt=which) for box in BOX}
            line = array.isel(prompt=which).sel(layer=late).where(image.isel(prompt=which)).assign_coords(places)
            picture = np.asarray(shapes.scenes[which].image(shapes.scale))
            shown[textwrap.fill(shapes.questions[which].text, 18)] = (
                picture,
                line.assign_attrs(long_name=name, n_prompts=len(first)),
            )
        axes = sk.plot.panels(sk.plot.patch_overlay, shown, columns=3)
        for which, panel in zip(first, axes, strict=True):
            boxes = np.stack([ds[box].values[which] for box in BOX], -1)[ringed.values[which]]
            sk.plot.mark_patches({"": boxes[:0], label: boxes}, ax=panel, legend=which == first[0])
        seen = "from the rows after the picture" if name == "attention weight" else "of the token's state before it"
        says = f"{name} at layer {late}, {seen}; the first pictures with rings, one scale"
        stem = "on_the_picture" if name == "attention weight" else f"{name}_on_the_picture"
        study.figure(
            axes[0], stem, source=line.assign_attrs(n_prompts=len(first), model_id=ds.attrs["model_id"]), says=says
        )


if __name__ == "__main__":
    with Study(__doc__, paper="kang2025", model=VISION_LANGUAGE_MODELS) as study:
        study.for_each(judge)
