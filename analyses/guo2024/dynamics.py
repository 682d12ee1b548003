"""Bigram-Backcopy along training: risks, sink attention, sink logit and drained value, under softmax and ReLU.

Paper: Guo et al. 2024, figures of training dynamics (softmax and ReLU attention) and the theorem on the sink logit.
Claims: both risks fall early, then the sink logit keeps growing about like ln(t) while the value of <s> shrinks; under
ReLU attention there is neither sink nor drain.
Cost: none, the curves were measured while the zoo trained.
Different here: a bigram chain from a seed, width 64, 600 steps for one layer and 3000 for three. The learning rate of
the models of one layer falls, so growth in time is judged on those of three layers, where it is constant. Claims are
over all seeds of an arm, the seed as the unit; the figure shows the first.
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from scipy import stats

import sinkscope as sk
from recipes import seeds
from sinkscope import zoo
from sinkscope.analysis import Study

SERIES = {
    "backcopy_risk": "back-copy risk", "bigram_excess": "bigram excess risk", "bos_attention": "attention to <s>",
    "sink_logit_gap": "sink logit gap", "bos_value": "|W_O v| of <s>",
}  # fmt: skip
ARMS = ("bb-1l", "bb-1l-relu", "bb-3l")


def curve(name: str, seed: int | None = None) -> xr.DataArray:
    """Curve of a zoo model at its first layer: dims (series, step)."""
    rows = zoo.curve(name, seed)
    values = [[row[key][0] if isinstance(row[key], list) else row[key] for row in rows] for key in SERIES]
    return xr.DataArray(values, {"series": list(SERIES), "step": [row["step"] for row in rows]}, ("series", "step"))


def last(name: str, over: str, under: str | None = None) -> tuple[str, list[float]]:
    """Last values of all seeds at the first layer, as a number or a ratio, with their mean and its interval."""
    final = [zoo.curve(name, seed)[-1] for seed in zoo.seeds(name)]
    found = [row[over][0] / (row[under][0] if under else 1.0) for row in final]
    return f"{seeds.text(found, spec='.2f')}, n = {len(found)} seeds", found


def late_growth(values: xr.DataArray) -> tuple[list[float], xr.DataArray]:
    """Steps at which the two risks fell below a tenth of their start, and the sink logit gap from then on."""
    fallen = [float(values["step"][(values.sel(series=k) < 0.1 * values.sel(series=k)[0]).argmax("step")]) for k in
              ("backcopy_risk", "bigram_excess")]  # fmt: skip
    return fallen, values.sel(series="sink_logit_gap").where(values["step"] >= max(fallen), drop=True)


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

    runs = [curve("bb-3l", seed) for seed in zoo.seeds("bb-3l")]
    grown = [late_growth(run) for run in runs]
    end = int(runs[0]["step"][-1])
    steps = "; ".join(f"{back:.0f} and {bigram:.0f}" for (back, bigram), _ in grown)
    gaps = "; ".join(f"{float(late[0]):.1f} to {float(late[-1]):.1f}" for _, late in grown)
    study.claim(
        "F4", "The risks fall first, then the sink logit grows on", paper="back-copy, then bigram, then slow growth",
        found=f"zoo:bb-3l: back-copy and bigram risk below a tenth of their start at steps {steps} of {end}; since "
        f"then the sink logit gap went from {gaps} ({len(runs)} seeds)",
        agrees=all(max(at) < 0.5 * end and float(late[-1]) > 1.2 * float(late[0]) for at, late in grown),
    )  # fmt: skip
    fits = [[stats.linregress(x, late.values).rvalue ** 2 for x in (np.log(late["step"].values), late["step"].values)]
            for _, late in grown]  # fmt: skip
    apart = [log - plain for log, plain in fits]
    study.claim(
        "Theorem", "The sink logit grows like ln(t)", paper="logarithmic while the value is near zero",
        found=f"zoo:bb-3l, after both risks fell: R2 of a line in ln(step) {seeds.text([f[0] for f in fits])}, in the "
        f"step {seeds.text([f[1] for f in fits])}, difference {seeds.text(apart, spec='+.3f')}, n = {len(runs)} seeds",
        agrees=min(apart) > 0.02,
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
