"""Examples with pictures in front of a question: how much attention their pictures get, and what the answer owes them.

Paper: Chen et al. 2025 (DARA, arXiv 2507.15807). Claim: models pass over the pictures of demonstrations; more attention
to them helps. Cost: twelve passes over 32 prompts of three pictures, half a minute. Different here: the
demonstrations show how to answer and nothing else, so nothing is lost without them; the zoo's models were trained on
one picture a prompt; all pictures stand in front of all questions, where the template puts them; the factor on the
demonstrations' tokens is one number, not learned. Control: a blank query picture, which has to cost.

    python analyses/chen2025/demonstrations.py --model zoo:vlm-shapes
"""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import Estimate, Study, with_intervals
from sinkscope.methods.demonstrations import ARMS, DEMONSTRATION, GROUPS, QUERY, demonstrations
from sinkscope.prompts.labels import Image
from sinkscope.tasks.examples import Examples, answer_score
from sinkscope.tasks.scene_questions import scene_questions

FACTORS = (1.0, 2.0, 4.0, 8.0)
"""What the weight of the demonstrations' pictures is multiplied by."""


def prompts_of(model: sk.Model, n: int, shots: int = 2) -> tuple[Examples, Examples]:
    """Questions behind ``shots`` demonstrations of the same family, and the same questions alone."""
    family = ("colour",)
    shown = scene_questions(model, shots * n, family, seed=59)
    asked = scene_questions(model, n, family, seed=61)
    items: list[dict[str, Any]] = []
    for which, (scene, question) in enumerate(zip(asked.scenes, asked.questions, strict=True)):
        own = range(shots * which, shots * (which + 1))
        said = [f"{shown.questions[one].text} {shown.questions[one].answer}." for one in own]
        images = [np.asarray(shown.scenes[one].image(shown.scale)) for one in own]
        text = " ".join([*said, question.text])
        items.append({"image": [*images, np.asarray(scene.image(asked.scale))], "text": text})
    return Examples(sk.Prompts.from_chat(items, model), asked.examples.answers), asked.examples


def measured(model: sk.Model, n: int) -> xr.Dataset:
    """Scores (factor arm prompt), shares (factor prompt layer group), and the same questions alone (prompt)."""
    examples, alone = prompts_of(model, n)
    labels = sk.label_tokens(examples.prompts, {"shown": Image(0), "also shown": Image(1)})
    found = []
    for factor in FACTORS:
        edits = [] if factor == 1 else [sk.ScaleKeys(factor, keys=labels != "", queries="last")]
        ds = demonstrations(model, examples, edits)
        found.append(ds.drop_vars("group_share").assign(share=ds["group_share"].mean("head")))
    joined = xr.concat(found, "factor", combine_attrs="override").assign_coords(factor=list(FACTORS))
    single = answer_score(model, alone)["log_probability"].reset_coords(drop=True)
    return joined.assign(alone=single).assign_attrs(found[0].attrs)


def draw(study: Study, ds: xr.Dataset) -> None:
    """Shares by layer, answers by arm, and what blank demonstrations cost as their pictures get more weight."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9.6, 3.6), layout="constrained")
    for name in GROUPS:
        row = with_intervals(ds["share"].sel(factor=1.0, group=name))
        left.plot(ds["layer"], row["difference"], marker="o", markersize=3, label=name)
        left.fill_between(ds["layer"], row["low"], row["high"], alpha=0.15)
    left.set(xlabel="layer", ylabel="share of attention", title="Of the row that answers")
    left.legend()
    share = sk.tasks.rate(ds["correct"].sel(factor=1.0))
    sk.plot.interval_dots(share.sel(arm=list(ARMS)), title="Blank pictures", ax=middle)
    middle.set(xlim=(-0.03, 1.03), xlabel="share of right answers")
    plain = ds["log_probability"].sel(arm=ARMS[0])
    for arm in ARMS[1:]:
        row = with_intervals(plain - ds["log_probability"].sel(arm=arm))
        ends = np.abs([row["difference"] - row["low"], row["high"] - row["difference"]])
        right.errorbar(ds["factor"], row["difference"], yerr=ends, marker="o", capsize=3, label=arm)
    right.axhline(0.0, linestyle=":", color="0.5")
    right.set(xlabel="weight of demonstrations", ylabel="what the answer loses (nat)", title="Reliance",
              xscale="log", xticks=FACTORS)  # fmt: skip
    right.set_xticks([], minor=True)
    low, high = right.get_ylim()
    right.set_ylim(low, high + 0.3 * (high - low))  # room for the legend
    right.set_xticklabels([f"{factor:g}" for factor in FACTORS])
    right.legend(loc="upper right")
    study.figure(figure, "demonstrations", source=ds, says="two demonstrations; 95 % intervals")


def main() -> None:
    """Measure, draw, and state what was found."""
    with Study(__doc__, paper="chen2025", model="zoo:vlm-shapes") as study:
        ds = study.reading("demonstrations", lambda: measured(study.model, 4 if study.quick else 32))
        draw(study, ds)
        score = ds["log_probability"]
        lost = {
            arm: (score.sel(arm=ARMS[0]) - score.sel(arm=arm)).drop_vars("arm", errors="ignore") for arm in ARMS[1:]
        }
        demo, query = (lost[arm].sel(factor=1.0, drop=True) for arm in ARMS[1:])
        own = Estimate.mean(query, "+.2f", "nat")
        study.claim("control", "A blank query picture costs", paper="", number=own, agrees=own.above(0.0))
        gap = Estimate.paired(query, demo, "+.2f", "nat")
        study.claim(
            "claim", "The answer owes less to the demonstrations' pictures than to its own", paper="ignored",
            number=gap, found=f"blank demonstrations cost {Estimate.mean(demo, '+.2f', 'nat')}", agrees=gap.above(0.0),
        )  # fmt: skip
        share = ds["share"].sel(factor=1.0, drop=True).mean("layer")
        less = Estimate.paired(share.sel(group=QUERY, drop=True), share.sel(group=DEMONSTRATION, drop=True) / 2, "+.3f")
        study.claim(
            "claim", "A demonstration's picture gets less attention than the query's", paper="yes", number=less,
            found="share of the query's picture less that of one demonstration's, mean of layers",
            agrees=less.above(0.0),
        )  # fmt: skip
        plain = score.sel(arm=ARMS[0], drop=True)
        half = plain.sizes["prompt"] // 2
        first, test = plain.isel(prompt=slice(half)), plain.isel(prompt=slice(half, None))
        best = float(first.drop_sel(factor=1.0).mean("prompt").idxmax("factor"))
        more = Estimate.paired(test.sel(factor=best, drop=True), test.sel(factor=1.0, drop=True), "+.3f", "nat")
        study.claim(
            "claim", "More weight on the demonstrations' pictures helps", paper="yes, with learned factors",
            number=more, found=f"times {best:g}, the best of {len(FACTORS) - 1} on the other {half} questions",
            agrees=more.above(0.0),
        )  # fmt: skip
        single = Estimate.paired(plain.sel(factor=1.0, drop=True), ds["alone"], "+.2f", "nat")
        study.claim(
            "check", "Demonstrations do not disturb a model of one picture", paper="", number=single,
            found="with demonstrations less alone", agrees=single.above(0.0),
        )  # fmt: skip


if __name__ == "__main__":
    main()
