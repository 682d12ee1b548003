"""Visual sinks: the sink dimension of visual tokens against the attention they get.

Paper: Kang et al. 2025 (arXiv 2503.03321), figures 2 and 3a. Claims: visual tokens with a high phi are the ones that
get the attention; they spike in the dimensions in which the first token spikes. Cost: one pass over 48 short prompts,
a minute on ``zoo:vlm-smol``. Different here: pictures are made (coloured shapes on photographs, or on plain and
textured backgrounds); attention is that of the rows after the picture, mean over heads, at eight layers at most: those
where a visual token or more a picture passes tau, else the deeper half; tau is the width-relative one (the paper's 20
at width 4096), unless that lies among ordinary text tokens.

    python analyses/kang2025/phi_and_attention.py --model zoo:vlm-smol
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope import metrics
from sinkscope.analysis import (
    VISION_LANGUAGE_MODELS,
    Study,
    describe_difference,
    spread_layers,
    visual_sink_layers,
    visual_tau,
)
from sinkscope.methods.var import sink_dims_or_largest
from sinkscope.plot.theme import OTHER, SINK
from sinkscope.tasks.scene_questions import scene_questions

ALIKE = 0.8
"""A visual token spikes like the first token where its phi is at least this part of the first token's."""


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw, and state what was found on one model."""
    shapes = scene_questions(model, 10 if study.quick else 48)
    dims, found = sink_dims_or_largest(model, shapes.prompts)
    layers = spread_layers(model)
    probes = [sk.KeyMass(queries="after_image"), sk.SinkDims(dims)]
    ds = study.reading("mass", lambda: sk.run(model, shapes.prompts, probes)).sel(layer=layers)
    phi = metrics.at_block_inputs(ds["phi"].astype("float64"), layers).reset_coords(drop=True)
    image = ds["token_role"].reset_coords(drop=True) == "image"
    weight = ds["key_mass"].mean("head").reset_coords(drop=True)
    tau, source = visual_tau(model, ds)
    visual, ground = phi.where(image), shapes.background(ds).reset_coords(drop=True)
    sinks = (visual >= tau) & image

    late = sorted(visual_sink_layers(phi, image, tau)) or layers[len(layers) // 2 :]
    each = [metrics.rank_correlation(visual.sel(layer=i), weight.where(image).sel(layer=i), over="key") for i in late]
    ranks = xr.concat([one["correlation"] for one in each], "layer").mean("layer")
    parts = (visual, weight.where(image), ground.broadcast_like(visual))
    x, y, behind = (part.sel(layer=late).transpose("prompt", "layer", "key").values.ravel() for part in parts)
    points = xr.DataArray(x, dims="key", coords={"token_role": ("key", np.where(behind, "background", "shape"))})
    axes = sk.plot.phi_vs_attention(points, xr.DataArray(y, dims="key"), threshold=tau)
    says = f"each visual token at the input of layers {', '.join(map(str, late))}; dimensions {list(dims)}"
    study.figure(axes, "phi_vs_attention", source=ds, says=says)
    words, result = describe_difference(ranks)
    study.claim(
        "Fig. 3a", "Visual tokens with a high phi are the highly attended ones", paper="positive, by eye",
        found=f"rank correlation {words}", agrees=float(result["low"]) > 0.2,
    )  # fmt: skip

    figure, axis = plt.subplots()
    bins = np.linspace(0, float(np.sqrt(ds.attrs["d_model"])), 60)
    first = phi.isel(key=0).sel(layer=late).values.ravel()
    axis.hist(visual.sel(layer=late).values.ravel(), bins, color=OTHER, alpha=0.7, density=True, label="visual tokens")
    axis.hist(first, bins, color=SINK, alpha=0.7, density=True, label="first token")
    axis.axvline(tau, color="black", linestyle="--", label=f"tau = {tau:.3g}")
    axis.set(xlabel="phi (its bound is the right end)", ylabel="density", title="Who spikes in the sink dimensions")
    axis.legend()
    study.figure(figure, "phi_histogram", source=ds, says=says)
    count, tokens = int(sinks.sum()), int(image.sum()) * len(layers)
    highest = float(visual.max())
    study.claim(
        "Fig. 2", "Some visual tokens spike in the first token's dimensions, about as high as it does", paper="yes",
        found=f"{count} of {tokens} (token, layer) pairs reach tau = {tau:.3g} ({source}); highest phi of a "
        f"visual token {highest:.2f}, of the first token {float(np.nanmax(first)):.2f}; dimensions {list(dims)} "
        f"{'found by the rule' if found else 'are only the largest, none passes the rule'}",
        agrees=count > 0 and highest > ALIKE * float(np.nanmedian(first)) if found else None,
    )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="kang2025", model=VISION_LANGUAGE_MODELS) as study:
        study.for_each(judge)
