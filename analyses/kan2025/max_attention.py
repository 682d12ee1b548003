"""Maximum visual attention of each head: one hump or two, where the valley is, and which layers the low heads are in.

Paper: Kan et al. 2025 (RAR, OpenReview xTbFeDhdRG), the distribution figure and the count of sink heads. Claims: over
late-layer heads the maximum is bimodal, vision heads high and sink heads low; sink heads grow in number in late layers.
Cost: one pass over 96 prompts. Different here: pooled over prompts, late layers (the second half) and heads, as the
source's 1600 heads must be; bimodality is tested (interior valley, dip test, Ashman's D), not assumed; "sink head"
there means a head that does not look at the picture, called resink here.

    python analyses/kan2025/max_attention.py --model zoo:vlm-smol
"""

from __future__ import annotations

import sinkscope as sk
from sinkscope import metrics
from sinkscope.analysis import VISION_LANGUAGE_MODELS, Study, describe_difference, has_sign
from sinkscope.tasks.scene_questions import scene_questions


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw, and state what was found on one model."""
    shapes = scene_questions(model, 12 if study.quick else 96)
    probe = sk.MaxAttention(keys="image", queries="after_image")
    ds = study.reading("maxima", lambda: sk.run(model, shapes.prompts, [probe]))
    layers = ds["layer"].values.tolist()
    late = layers[len(layers) // 2 :]
    every = metrics.max_visual_attention(ds, over=())
    values = every.sel(layer=late).rename("maximum visual attention")
    fit = metrics.bimodality(values)
    says = f"mean over rows after the picture of the largest weight on a visual token; layers {late[0]} to {late[-1]}"
    drawn = sk.plot.described(values, ds, says)
    axes = sk.plot.max_attention_histogram(drawn, fit, names=("resink heads", "vision heads"))
    study.figure(axes, "max_visual_attention", source=ds, says=f"{says}; one number per prompt, layer and head")
    number = {name: float(fit[name]) for name in ("valley", "ashman_d", "dip_p", "low_mean", "high_mean")}
    study.claim(
        "distribution, panel b", "The maximum visual attention of late heads has two humps", paper="two, of 1600",
        found=f"{int(fit['n'])} heads: dip test p = {number['dip_p']:.3g}, Ashman's D = {number['ashman_d']:.2f}, "
        f"valley {number['valley']:.3f} {'inside' if bool(fit['interior']) else 'at the edge'}, "
        f"means {number['low_mean']:.3f} and {number['high_mean']:.3f}", agrees=bool(fit["bimodal"]),
    )  # fmt: skip

    low = (every < fit["valley"]).where(every.notnull()).astype(float)
    share = low.mean("head")
    spread = metrics.compare(share, to=0 * share)
    count = sk.plot.described(share.mean("prompt").rename("share"), ds)
    axes = sk.plot.layer_profile(
        count, band=(spread["low"], spread["high"]), ylabel="share of heads below the valley",
        title="Heads that do not look at the picture",
    )  # fmt: skip
    note = "" if bool(fit["bimodal"]) else " (the distribution has no two humps: the least density between its means)"
    axes.set_ylim(0, 1)
    study.figure(axes, "resink_heads_by_layer", source=ds, says=f"below the pooled valley{note}; 95 % intervals")
    half = len(late) // 2
    words, found = describe_difference(
        share.sel(layer=late[half:]).mean("layer"), share.sel(layer=late[:half]).mean("layer")
    )
    study.claim(
        "sink-head count", "Heads that do not look at the picture grow in number in the last layers", paper="yes",
        found=f"share of heads below the valley, layers {late[half:]} less layers {late[:half]}: {words}{note}",
        agrees=has_sign(found) if bool(fit["bimodal"]) else None,
    )  # fmt: skip

    other = {name: metrics.max_visual_attention(ds, reduce=name, over=()).sel(layer=late) for name in ("max", "last")}
    ranks = {name: float(metrics.rank_correlation(values, array)["correlation"]) for name, array in other.items()}
    study.claim(
        "section on heads", "How rows are reduced matters little (the source does not say)", paper="open",
        found="rank correlation of the mean with " + ", ".join(f"the {k} {v:.2f}" for k, v in ranks.items()),
        agrees=min(ranks.values()) > 0.7,
    )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="kan2025", model=VISION_LANGUAGE_MODELS) as study:
        study.for_each(judge)
