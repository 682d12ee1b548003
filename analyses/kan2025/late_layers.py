"""Late layers of SADS: what heads that do not look at the picture attend to, and attention moved from sinks to patches.

Paper: Kan et al. 2025 (RAR, OpenReview xTbFeDhdRG): the entropy of re-sinking heads over the other tokens, split at its
valley, and the probe that motivates the method: in the last five layers the attention of sink tokens is moved to visual
tokens (+.74 points). Claims: the entropies have two humps; moving helps, and more so in late layers. Cost: maps of half
the layers over 48 prompts and three runs over 128, a minute; half as many on a large model. Different here: which
visual tokens are relevant is not said there: those that are no sinks, in proportion to what they have; log probability
of the right answer; the first layers are the control, and where a model has fewer than ten, half stand for five.

    python analyses/kan2025/late_layers.py --model zoo:vlm-smol-sinks
"""

from __future__ import annotations

import xarray as xr

import sinkscope as sk
from sinkscope import metrics
from sinkscope.analysis import (
    VISUAL_SINK_MODELS,
    Study,
    change_bars,
    compare_arms,
    is_large,
    join_arms,
    visual_tau,
)
from sinkscope.methods.sads import measure
from sinkscope.methods.var import sink_dims_or_largest
from sinkscope.tasks.examples import answer_score
from sinkscope.tasks.scene_questions import scene_questions

LATE, EARLY = "last layers", "first layers"


def moved(model: sk.Model, n: int) -> xr.Dataset:
    """Scores with the sinks' attention moved in the last and in as many of the first layers: dims (arm prompt)."""
    others, test = scene_questions(model, 2 * n, seed=13).examples.split(0.5, seed=0)
    dims, _ = sink_dims_or_largest(model, others.prompts)
    depth = int(model.config.get_text_config().num_hidden_layers)
    count = min(5, depth // 2)
    tau, _ = visual_tau(model, sk.run(model, others.prompts, [sk.SinkDims(dims)]))
    fixed = {"tau": tau, "dims": dims, "rho": 0.0, "min_image_mass": 0.0}
    arms = {"plain": answer_score(model, test)}
    for name, layers in ((LATE, range(depth - count, depth)), (EARLY, range(count))):
        edit = sk.Redistribute(
            1.0, layers=layers, need_visual_sink=False, skip_last=False, start_layer=0, allow_empty=True, **fixed
        )
        arms[name] = answer_score(model, test, [edit])
    return join_arms(arms).assign_attrs(layers=count)


def entropies(model: sk.Model, n: int) -> xr.Dataset:
    """What heads of the late half are judged by (prompt layer head)."""
    asked = scene_questions(model, n)
    depth = int(model.config.get_text_config().num_hidden_layers)
    found = measure(model, asked.prompts, range(depth // 2, depth))
    return found.assign_attrs(sk.run(model, asked.prompts, [sk.TokenLoss()]).attrs)


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw, and state what was found on one model."""
    ds = study.reading("entropies", lambda: entropies(model, 8 if study.quick else 24 if is_large(model) else 48))
    vision = metrics.bimodality(ds["max_visual_attention"])
    away = ds["max_visual_attention"] < float(vision["valley"])
    note = "" if bool(vision["bimodal"]) else "; the maxima have no two humps, their least density between is taken"
    values = ds["non_vision_entropy"].where(away).rename("entropy over the other tokens")
    fit = metrics.bimodality(values)
    says = f"entropy over tokens that are not visual, heads below the valley of maximum visual attention{note}"
    drawn = sk.plot.described(values.assign_attrs(units="nat"), ds, says)
    axes = sk.plot.max_attention_histogram(drawn, fit, names=("isolated", "global"))
    axes.set_title("Heads that do not look at the picture")
    study.figure(axes, "entropy", source=ds, says=says)
    study.claim(
        "entropy", "The entropies of heads that do not look at the picture have two humps",
        paper="two, split at beta",
        found=f"{int(fit['n'])} heads: dip test p = {float(fit['dip_p']):.3g}, Ashman's D = "
        f"{float(fit['ashman_d']):.2f}, valley {float(fit['valley']):.2f} nat{note}", agrees=bool(fit["bimodal"]),
    )  # fmt: skip

    scores = study.reading("moved", lambda: moved(model, 12 if study.quick else 64 if is_large(model) else 128))
    says = f", all of the sinks' attention moved in {scores.attrs['layers']} layers"
    value = change_bars(study, scores, "moved", "From sinks to the picture", says)
    for claim, one, other, paper in (
        ("Moved in the last layers it helps", LATE, "plain", "+.74 points"),
        ("It helps more in the last layers than in the first", LATE, EARLY, ""),
    ):
        words, agrees = compare_arms(value, one, other, 1)
        study.claim("probe of the last layers", claim, paper=paper, found=words, agrees=agrees)


if __name__ == "__main__":
    with Study(__doc__, paper="kan2025", model=VISUAL_SINK_MODELS) as study:
        study.for_each(judge)
