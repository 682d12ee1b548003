"""Bigram-Backcopy along training: risks, sink attention, sink logit and drained value, under softmax and ReLU.

Paper: Guo et al. 2024, figures of training dynamics (softmax and ReLU attention) and the theorem on the sink logit.
Claims: both risks fall early, then the sink logit keeps growing about like ln(t) while the value of <s> shrinks; under
ReLU attention there is neither sink nor drain.
Cost: none, the curves were measured while the zoo trained.
Different here: a bigram chain from a seed, width 64, 600 steps for one layer and 3000 for three. The learning rate of
the models of one layer falls, so growth in time is judged on those of three layers, where it is constant. The last
values of the runs with other seeds are in the cards.
"""

import json

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from scipy import stats

import sinkscope as sk
from sinkscope import zoo
from sinkscope.analysis import Study

SERIES = {
    "backcopy_risk": "back-copy risk", "bigram_excess": "bigram excess risk", "bos_attention": "attention to <s>",
    "sink_logit_gap": "sink logit gap", "bos_value": "|W_O v| of <s>",
}  # fmt: skip
ARMS = ("bb-1l", "bb-1l-relu", "bb-3l")


def curve(name: str) -> xr.DataArray:
    """Curve of a zoo model at its first layer: dims (series, step)."""
    rows = json.loads((zoo.path(name) / "curve.json").read_text(encoding="utf-8"))
    values = [[row[key][0] if isinstance(row[key], list) else row[key] for row in rows] for key in SERIES]
    return xr.DataArray(values, {"series": list(SERIES), "step": [row["step"] for row in rows]}, ("series", "step"))


def last(name: str, over: str, under: str | None = None) -> tuple[str, list[float]]:
    """Last values of all seeds at the first layer, as a number or a ratio."""
    seeds = zoo.card(name)["facts"]["final_by_seed"].values()
    found = [row[over][0] / (row[under][0] if under else 1.0) for row in seeds]
    return ", ".join(f"{value:.2f}" for value in found) + f" (n = {len(found)} seeds)", found


with Study(__doc__, paper="guo2024", model="zoo:bb-1l") as study:
    curves = {name: curve(name) for name in ARMS}
    figure, axes = plt.subplots(1, len(ARMS), figsize=(13, 4.2), sharey=True)
    for ax, (name, values) in zip(axes, curves.items(), strict=True):
        shown = (values / abs(values).max("step")).assign_coords(series=list(SERIES.values()), step=values["step"] + 1)
        sk.plot.sweep_curve(shown, x="step", reference=None, title=f"zoo:{name}", ax=ax)
        for line in ax.lines:
            line.set_marker("")
        ax.set(xscale="log", xlabel="step + 1", ylabel="value over its maximum" if ax is axes[0] else "")
        ax.get_legend().remove()
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
    source = curves["bb-3l"].assign_attrs(model_id=", ".join(f"zoo:{name}" for name in ARMS), n_prompts=128)
    study.figure(figure, "dynamics", source=source, says="first layer, measured while training, each over its maximum")

    soft = curves["bb-3l"]
    fallen = {k: float(soft["step"][(soft.sel(series=k) < 0.1 * soft.sel(series=k)[0]).argmax("step")]) for k in
              ("backcopy_risk", "bigram_excess")}  # fmt: skip
    start = max(fallen.values())
    late = soft.sel(series="sink_logit_gap").where(soft["step"] >= start, drop=True)
    log, plain = (stats.linregress(x, late.values) for x in (np.log(late["step"].values), late["step"].values))
    study.claim(
        "F4", "The risks fall first, then the sink logit grows on", paper="back-copy, then bigram, then slow growth",
        found=f"zoo:bb-3l: risks below a tenth of their start at steps {fallen['backcopy_risk']:.0f} and "
        f"{fallen['bigram_excess']:.0f} of {int(soft['step'][-1])}; since then the sink logit gap went from "
        f"{float(late[0]):.1f} to {float(late[-1]):.1f} (one run)",
        agrees=start < 0.5 * float(soft["step"][-1]) and float(late[-1]) > 1.2 * float(late[0]),
    )  # fmt: skip
    study.claim(
        "Theorem", "The sink logit grows like ln(t)", paper="logarithmic while the value is near zero",
        found=f"zoo:bb-3l, from step {start:.0f}: R2 {log.rvalue**2:.3f} for a line in ln(step), {plain.rvalue**2:.3f} "
        f"for one in the step ({len(late)} points of one run)", agrees=log.rvalue**2 > plain.rvalue**2 + 0.02,
    )  # fmt: skip
    text, ratio = last("bb-1l", "bos_value", "other_value")
    study.claim(
        "F4", "The value of <s> is drained", paper="near 0 (curve, bars)", agrees=max(ratio) < 0.2,
        found=f"zoo:bb-1l: |W_O v| of <s> over the median of other tokens {text}",
    )  # fmt: skip
    text, sink = last("bb-1l-relu", "bos_attention")
    study.claim(
        "F5", "No sink under ReLU attention", paper="none (curve)", agrees=max(sink) < 0.05,
        found=f"zoo:bb-1l-relu: attention of non-triggers to <s> {text}, softmax {last('bb-1l', 'bos_attention')[0]}",
    )  # fmt: skip
    text, ratio = last("bb-1l-relu", "bos_value", "other_value")
    study.claim(
        "F5", "No drain under ReLU attention", paper="none (curve)", agrees=min(ratio) > 0.3,
        found=f"zoo:bb-1l-relu: |W_O v| of <s> over the median of other tokens {text}",
    )  # fmt: skip
