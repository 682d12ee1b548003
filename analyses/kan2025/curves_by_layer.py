"""Key variance and gradient sparsity by layer, the two curves that say where SADS begins; and re-sinking by depth.

Paper: Kan et al. 2025 (RAR, OpenReview xTbFeDhdRG), figure 5 and the trigger. Claims: the variance of visual keys falls
early, rests, and jumps late; the sparsity of attention gradients rises with depth; the share of visual attention on
background is high early, low in the middle, high again late (re-sinking). Cost: one pass with gradients per prompt, 32
prompts. Different here: neither curve is defined in the sources; sparsity is Hoyer's, of dLoss/dA over rows after the
picture and visual keys, variance that of visual keys before rotary positions; curves over depth, not over training.

    python analyses/kan2025/curves_by_layer.py --model zoo:vlm-smol
"""

from __future__ import annotations

import xarray as xr

import sinkscope as sk
from sinkscope import metrics
from sinkscope.analysis import VISION_LANGUAGE_MODELS, Study, describe_difference, has_sign
from sinkscope.methods.sads_trigger import measure_curves, trigger_layer
from sinkscope.tasks.scene_questions import SceneQuestions, scene_questions


def measure(model: sk.Model, shapes: SceneQuestions) -> xr.Dataset:
    """Both curves and the share of visual attention on background, all by layer; dims (prompt layer)."""
    curves = measure_curves(model, shapes.prompts)
    ds = sk.run(model, shapes.prompts, [sk.KeyMass()])
    share = metrics.background_share(ds, shapes.background(ds), over="head")
    known = curves["key_variance"].mean("kv_head")
    variance = known if bool(known.notnull().all()) else curves["key_variance_rotated"].mean("kv_head")
    found = xr.Dataset(
        {"sparsity": curves["sparsity"], "variance": variance, "background": share.reset_coords(drop=True)}
    )
    ground = shapes.background(ds).where(ds["token_role"] == "image")
    found["tokens"] = ground.astype(float).mean("key").reset_coords(drop=True)
    found.attrs = ds.attrs
    return found


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw, and state what was found on one model."""
    shapes = scene_questions(model, 6 if study.quick else 32)
    ds = study.reading("curves", lambda: measure(model, shapes))
    titles = {
        "sparsity": (
            "Gradient sparsity",
            "Hoyer sparsity",
            "Hoyer sparsity of dLoss/dA, rows after the picture, visual keys",
        ),
        "variance": (
            "Spread of visual keys",
            "variance of visual keys",
            "mean over dimensions of the variance over visual tokens",
        ),
        "background": (
            "Visual attention on background",
            "share on background",
            "share of the attention on the picture that is on background",
        ),
    }
    for name, (title, label, says) in titles.items():
        spread = metrics.compare(ds[name], to=0 * ds[name])
        curve = sk.plot.described(ds[name].mean("prompt"), ds)
        band = (spread["low"], spread["high"])
        axes = sk.plot.layer_profile(curve, band=band, ylabel=label, title=title)
        if name == "background":
            base = float(ds["tokens"].mean())
            axes.axhline(base, color="black", linestyle=":", label="background among visual tokens")
            axes.legend()
            axes.set_ylim(0, 1)
        study.figure(axes, f"{name}_by_layer", source=ds, says=f"{says}; 95 % bootstrap intervals")

    trigger = trigger_layer(ds["sparsity"].mean("prompt").values, ds["variance"].mean("prompt").values)
    study.claim(
        "trigger", "Both curves jump at one layer of the second half, where SADS begins", paper="layer 15 or 20",
        found=f"{trigger.reason}; {ds.sizes['layer']} layers, n = {ds.sizes['prompt']} prompts",
        agrees=trigger.found,
    )  # fmt: skip
    depth = ds["layer"].values
    third = max(1, len(depth) // 3)
    parts = {"early": depth[:third], "middle": depth[third:-third], "late": depth[-third:]}
    mean = {
        name: ds[["sparsity", "variance", "background"]].sel(layer=part).mean("layer") for name, part in parts.items()
    }
    for name, claim, (up, down) in (
        ("sparsity", "Attention gradients on visual tokens are sparser late than early", ("late", "early")),
        ("variance", "Visual keys spread more in late layers than in the middle", ("late", "middle")),
        ("background", "Late layers look at background more than middle layers (re-sinking)", ("late", "middle")),
    ):
        words, found = describe_difference(mean[up][name], mean[down][name])
        study.claim(
            "Fig. 5" if name != "background" else "re-sinking", claim, paper="yes",
            found=f"{up} less {down} third of the layers: {words}", agrees=has_sign(found),
        )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="kan2025", model=VISION_LANGUAGE_MODELS) as study:
        study.for_each(judge)
