"""Text over image: attention per token of each, and what is left of the difference when visual tokens are left out.

Paper: "When Language Overrules" (arXiv 2508.10552), bars of the dominance index by stage and curves over compression.
Claims: text dominates in the middle and late layers; it goes away when visual tokens are left out (10.23 to 0.86 in
LLaVA-1.5's middle layers at 95 %). Cost: sixteen passes over 96 prompts, a minute on the zoo model. Different here: the
row that predicts a one-word answer; what counts as text is said twice, with and without the first token and the
template, as the sinks sit there; the same number of random visual tokens is the control.

    python analyses/text_dominance2025/compression.py --model zoo:vlm-shapes
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope import metrics
from sinkscope.analysis import Estimate, Study
from sinkscope.methods.compression import compressed_dominance
from sinkscope.roles import TEXT_ROLES
from sinkscope.tasks.scene_questions import scene_questions

SHARES = (0.0, 0.75, 0.9, 0.95)
COUNTED = {"all text": (*TEXT_ROLES, "bos", "special"), "words alone": TEXT_ROLES}


def measured(model: sk.Model, n: int) -> xr.Dataset:
    """Indices by stage: dims (counted ranking removed prompt stage)."""
    asked = scene_questions(model, n, seed=11)
    rows = []
    for text in COUNTED.values():
        each = [compressed_dominance(model, asked.prompts, SHARES, by=by, text=text) for by in ("tower", "random")]
        rows.append(xr.concat([one.map(metrics.by_stage) for one in each], "ranking", combine_attrs="override"))
    joined = xr.concat(rows, "counted", combine_attrs="override")
    reading = sk.run(model, asked.prompts, [sk.TokenLoss()])
    return joined.assign_coords(counted=list(COUNTED), ranking=["tower", "random"]).assign_attrs(reading.attrs)


def draw(study: Study, ds: xr.Dataset) -> None:
    """Bars by stage, and curves over what is left out, both on a logarithmic axis with a line at 1."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    median = ds["mdi"].median("prompt")
    place = np.arange(ds.sizes["stage"])
    for shift, name in ((-0.2, "all text"), (0.2, "words alone")):
        left.bar(place + shift, median.sel(counted=name, ranking="tower", removed=0.0), 0.38, label=name)
    left.set_xticks(place, ds["stage"].values.tolist())
    left.set(ylabel="attention per token, text over image", title="By stage, nothing left out")
    for ranking, style in (("tower", "-"), ("random", ":")):
        for colour, stage in enumerate(ds["stage"].values):
            line = median.sel(counted="words alone", ranking=ranking, stage=stage)
            right.plot(SHARES, line, style, marker="o", color=f"C{colour}", label=f"{stage}, {ranking}")
    right.set(xlabel="share of visual tokens left out", title="Words alone, over compression")
    for axes in (left, right):
        axes.axhline(1.0, color="0.5", linestyle="--", linewidth=1)
        sk.plot.log_scale(axes)
    left.legend()
    right.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    says = "median over prompts of the index; text: with the first token and the template, or words alone"
    study.figure(figure, "compression", source=ds, says=says)


def main() -> None:
    """Measure, draw, and state what was found."""
    with Study(__doc__, paper="text_dominance2025", model="zoo:vlm-shapes") as study:
        ds = study.reading("dominance", lambda: measured(study.model, 8 if study.quick else 96))
        draw(study, ds)
        logs = np.log(ds["mdi"])
        for name in COUNTED:
            for stage in ("middle", "late"):
                plain = logs.sel(counted=name, stage=stage, ranking="tower", removed=0.0, drop=True)
                found = Estimate.mean(plain, "+.2f")
                study.claim(
                    "bars", f"Text dominates, {stage} layers ({name})", paper="10.23 middle, 17.37 late",
                    found=f"logarithm of the index {found.counted}: {np.exp(found.value):.2f} times",
                    agrees=found.above(0.0),
                )  # fmt: skip
        middle = logs.sel(counted="words alone", stage="middle", removed=[0.0, 0.95])
        for ranking in ("tower", "random"):
            one = middle.sel(ranking=ranking, drop=True)
            fall = Estimate.paired(one.sel(removed=0.95, drop=True), one.sel(removed=0.0, drop=True), "+.2f")
            study.claim(
                "compression", f"Leaving visual tokens out lowers the dominance of words (ranking: {ranking})",
                paper="10.23 to 0.86 at 95 %" if ranking == "tower" else "",
                found=f"change of the logarithm at 95 %, middle layers {fall.counted}", agrees=fall.below(0.0),
            )  # fmt: skip


if __name__ == "__main__":
    main()
