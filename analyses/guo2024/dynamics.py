"""Bigram-Backcopy along training: risks, sink attention, sink logit and drained value, under softmax and ReLU.

Paper: Guo et al. 2024, figures of training dynamics (softmax and ReLU attention) and the theorem on the sink logit.
Claims: both risks fall early, then the sink logit keeps growing about like ln(t) while the value of <s> shrinks; under
ReLU attention there is neither sink nor drain.
Cost: none, the curves were measured while the zoo trained.
Different here: a bigram chain from a seed, width 64, 600 steps for one layer and 3000 for three. The learning rate of
the models of one layer falls, so growth in time is judged on those of three layers, where it is constant. Claims are
over all seeds of an arm, the seed as the unit; the figure shows the first. The theorem on the sink logit is for a value
that is held at zero (theorem.py); these runs train it along, and how their logit grows is told as a finding.
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from scipy import stats

import sinkscope as sk
from recipes import seeds
from sinkscope import zoo
from sinkscope.analysis import Estimate, Study
from sinkscope.plot.naming import drop_names

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


def over_seeds(values: list[float], spec: str = ".2f") -> Estimate:
    """Mean over the seeds with Student's interval."""
    mean, ends = seeds.mean_and_interval(values)
    return Estimate(mean, *(ends or (mean, mean)), len(values), "", spec)


def last(name: str, over: str, under: str | None = None) -> Estimate:
    """Last value at the first layer, as a number or a ratio."""
    final = [zoo.curve(name, seed)[-1] for seed in zoo.seeds(name)]
    return over_seeds([row[over][0] / (row[under][0] if under else 1.0) for row in final])


def late_growth(values: xr.DataArray) -> tuple[list[float], xr.DataArray]:
    """Steps at which the two risks fell below a tenth of their start, and the sink logit gap from then on."""
    fallen = [float(values["step"][(values.sel(series=k) < 0.1 * values.sel(series=k)[0]).argmax("step")]) for k in
              ("backcopy_risk", "bigram_excess")]  # fmt: skip
    return fallen, values.sel(series="sink_logit_gap").where(values["step"] >= max(fallen), drop=True)


def draw(study: Study) -> None:
    """Curves of the first seed of each arm, each over its maximum."""
    figure, axes = plt.subplots(1, len(ARMS), figsize=(9.6, 3.8), sharey=True)
    for ax, name in zip(axes, ARMS, strict=True):
        values = curve(name)
        shown = (values / abs(values).max("step")).assign_coords(series=list(SERIES.values()), step=values["step"] + 1)
        sk.plot.sweep_curve(shown, x="step", reference=None, title=f"zoo:{name}", ax=ax)
        for line in ax.lines:
            line.set_marker("")
        ax.set(xscale="log", xlabel="step + 1", ylabel="value over its maximum" if ax is axes[0] else "")
        if ax is not axes[-1]:
            drop_names(ax)
    source = curve(ARMS[-1]).assign_attrs(model_id=", ".join(f"zoo:{name}" for name in ARMS), n_prompts=128)
    study.figure(figure, "dynamics", source=source, says="first layer, measured while training, each over its maximum")


def judge_growth(study: Study) -> None:
    """When the risks fall, and how the sink logit grows from then on, in the models of three layers."""
    study.subject = "zoo:bb-3l"
    runs = [curve("bb-3l", seed) for seed in zoo.seeds("bb-3l")]
    grown = [late_growth(run) for run in runs]
    end = int(runs[0]["step"][-1])
    steps = "; ".join(f"{back:.0f} and {bigram:.0f}" for (back, bigram), _ in grown)
    gaps = "; ".join(f"{float(late[0]):.1f} to {float(late[-1]):.1f}" for _, late in grown)
    growth = over_seeds([float(late[-1] / late[0]) for _, late in grown])
    soon = max(max(at) for at, _ in grown) < 0.5 * end
    study.claim(
        "F4", "The risks fall first, then the sink logit grows on", paper="back-copy, then bigram, then slow growth",
        number=growth, found=f"times its size when back-copy and bigram risk were below a tenth of their start (steps "
        f"{steps} of {end}): {gaps}", agrees=growth.above(1.2) if soon else False,
    )  # fmt: skip
    fits = [[stats.linregress(x, late.values).rvalue ** 2 for x in (np.log(late["step"].values), late["step"].values)]
            for _, late in grown]  # fmt: skip
    apart = over_seeds([log - plain for log, plain in fits], "+.3f")
    study.claim(
        "Theorem", "With the value trained along, the sink logit grows more like ln(t) than like t", paper="",
        number=apart, found=f"R2 of a line in ln(step) {over_seeds([f[0] for f in fits])}, less that in the step",
        agrees=apart.above(0.0),
    )  # fmt: skip


def main() -> None:
    """Draw the curves and judge them over seeds."""
    with Study(__doc__, paper="guo2024", model=()) as study:
        draw(study)
        judge_growth(study)
        drained = last("bb-1l", "bos_value", "other_value")
        study.subject = "zoo:bb-1l"
        study.claim(
            "F4", "The value of <s> is drained", paper="near 0 (curve, bars)", number=drained,
            found="|W_O v| of <s> over the median of other tokens", agrees=drained.below(0.2),
        )  # fmt: skip
        study.subject = "zoo:bb-1l-relu"
        sink, ratio = last("bb-1l-relu", "bos_attention"), last("bb-1l-relu", "bos_value", "other_value")
        study.claim(
            "F5", "No sink under ReLU attention", paper="none (curve)", agrees=sink.below(0.05), number=sink,
            found=f"attention of non-triggers to <s>; softmax {last('bb-1l', 'bos_attention')}",
        )  # fmt: skip
        study.claim(
            "F5", "No drain under ReLU attention", paper="none (curve)", agrees=ratio.above(0.3), number=ratio,
            found=f"|W_O v| of <s> over the median of other tokens; softmax {drained}",
        )  # fmt: skip


if __name__ == "__main__":
    main()
