"""Dropping a class of heads against dropping as many random late heads.

Paper: Kan et al. 2025 (RAR, OpenReview xTbFeDhdRG), table 1 and SADS. Claim: late heads that are stuck on a few words
(low maximum visual attention, low entropy over the other tokens) can go, and the answers get better; heads that look at
the picture cannot. Cost: nineteen runs over 128 prompts. Different here: no training; a dropped head's output is zero;
one set of heads for all prompts, from their means: the third with the highest maximum are vision heads, the others are
halved by entropy (SADS' own valleys are reported beside); controls: five draws of as many other late heads.

    python analyses/kan2025/drop_heads.py --model zoo:vlm-smol-sinks
"""

from __future__ import annotations

import xarray as xr

import sinkscope as sk
from sinkscope import metrics
from sinkscope.analysis import VISUAL_SINK_MODELS, Study, describe_difference, has_sign, is_large
from sinkscope.methods.sads import SadsSettings, classify, measure
from sinkscope.tasks.examples import answer_score
from sinkscope.tasks.scene_questions import SceneQuestions, scene_questions

CLASSES = ("vision", "resink, global", "resink, isolated")


def classes(found: xr.Dataset) -> xr.DataArray:
    """Class of each late head by its means over prompts: strings, dims (layer head)."""
    vision, entropy = (found[name].mean("prompt") for name in ("max_visual_attention", "non_vision_entropy"))
    looks = vision > vision.quantile(2 / 3)
    rest = entropy.where(~looks)
    return xr.where(looks, CLASSES[0], xr.where(rest >= rest.median(), CLASSES[1], CLASSES[2])).astype(str)


def score(model: sk.Model, shapes: SceneQuestions, draws: int) -> xr.Dataset:
    """Scores of the right answer with each class dropped (draw 0) and controls dropped: dims (dropped draw prompt)."""
    depth = int(model.config.get_text_config().num_hidden_layers)
    found = measure(model, shapes.prompts, range(depth // 2, depth))
    split, _ = classify(found["max_visual_attention"], found["non_vision_entropy"], SadsSettings(scope="dataset"))
    kind = classes(found)
    rows = []
    for name in CLASSES:
        sets = [kind == name, *(metrics.random_heads(kind == name, seed, same_layer=False) for seed in range(draws))]
        edits = [sk.AblateHeads(metrics.head_list(heads), how="zero", allow_empty=True) for heads in sets]
        each = [answer_score(model, shapes.examples, [edit]) for edit in edits]
        rows.append(xr.concat(each, "draw", combine_attrs="override"))
    joined = xr.concat(rows, "dropped", combine_attrs="override").assign_coords(dropped=list(CLASSES))
    plain = answer_score(model, shapes.examples)
    joined["plain"] = plain["correct"]
    joined["kind"] = kind.reset_coords(drop=True)
    joined.attrs |= {"bimodal": int(bool(split["bimodal"]))}
    return joined


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw, and state what was found on one model."""
    shapes = scene_questions(model, 15 if study.quick else 64 if is_large(model) else 128)
    ds = study.reading("scores", lambda: score(model, shapes, 2 if study.quick else 2 if is_large(model) else 5))
    axes = sk.plot.head_class_map(sk.plot.described(ds["kind"], ds), title="Late heads by what they look at")
    study.figure(axes, "head_classes", source=ds, says="upper third by maximum visual attention, the rest by entropy")

    change = ds["correct"] - ds["plain"]
    spread = metrics.compare(change.isel(draw=0), to=0 * change.isel(draw=0))
    says = "change of the share of right answers; controls: as many other late heads, one point a draw"
    effect = spread["difference"].rename("change of accuracy").assign_attrs(units="1", long_name="change of accuracy")
    axes = sk.plot.effect_bars(
        sk.plot.described(effect, ds), interval=(spread["low"], spread["high"]),
        controls=change.isel(draw=slice(1, None)).mean("prompt"), title="Dropping a class of late heads",
    )  # fmt: skip
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
    study.figure(axes, "dropped_classes", source=ds, says=f"{says}; 95 % bootstrap intervals")

    plain = float(ds["plain"].mean())
    counts = {name: int((ds["kind"] == name).sum()) for name in CLASSES}
    controls = change.isel(draw=slice(1, None)).mean("draw")
    for name, claim, sign in (
        ("resink, isolated", "Dropping isolated resink heads costs less than dropping other heads", 1),
        ("vision", "Dropping vision heads costs more than dropping other heads", -1),
    ):
        words, found = describe_difference(change.isel(draw=0).sel(dropped=name), controls.sel(dropped=name))
        study.claim(
            "Table 1", claim, paper="39.5 to 43.8 without isolated ones; one vision head back out 42.6",
            found=f"{counts[name]} heads, change of accuracy less that of controls {words}; plain {plain:.3f}",
            agrees=has_sign(found, sign),
        )  # fmt: skip
    words, found = describe_difference(change.isel(draw=0).sel(dropped="resink, isolated"))
    study.claim(
        "Table 1", "Without isolated resink heads the answers get better", paper="+4.3 points",
        found=f"{words}; SADS' own rule finds {'' if ds.attrs['bimodal'] else 'no '}two humps",
        agrees=has_sign(found),
    )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="kan2025", model=VISUAL_SINK_MODELS) as study:
        study.for_each(judge)
