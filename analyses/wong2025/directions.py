"""Which inputs make the MLP write the primary direction: its inputs in two dimensions, and a sweep along them.

Paper: Wong et al. 2025, figure 5. Claims: a few directions of the making MLP's input, fed alone, make it write the
primary sink's direction (cosine .992 and -.994); sinks and other tokens differ along them.
Cost: one pass per prompt that has a secondary sink, seconds after they were found.
Different here: other tokens are drawn from the same prompts, those with the same id first; a random direction is the
control. A model without secondary sinks is said to have none. A constructed model, where all this was built in, checks
the method and counts as no claim.
"""

from __future__ import annotations

import case
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from scipy import stats

from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study
from sinkscope.methods.secondary_sweep import direction_sweep

FIRST = (
    "Fig. 5", "A direction of the making MLP's input, fed alone, makes it write the primary sink's direction",
    "cosine .992 and -.994",
)  # fmt: skip


def draw(study: Study, chosen: case.Case, swept: xr.Dataset) -> None:
    """The inputs on their first two principal directions, and what is written along each."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.6), layout="constrained")
    for who, marker in (("other", "o"), ("sink", "^")):
        rows = swept["projection"].values[swept["who"].values == who]
        left.scatter(rows[:, 0], rows[:, 1], s=16, alpha=0.6, marker=marker, label=f"{who} (n = {len(rows)})")
    share = [f"{float(value):.0%}" for value in swept["explained"].values[:2]]
    left.set(
        xlabel=f"PC1 ({share[0]})",
        ylabel=f"PC2 ({share[1]})",
        title=f"Input of the MLP of layer {swept.attrs['layer']}",
    )
    left.legend()
    for name in swept["direction"].values:
        style = "--" if name == "random" else "-"
        right.plot(swept["scale"], swept["cosine"].sel(direction=name), style, label=str(name))
    right.axhline(0.98, color="0.6", linewidth=0.8)
    right.axhline(-0.98, color="0.6", linewidth=0.8)
    right.set(xlabel="size of the direction fed alone", ylabel="cosine with the primary's write", ylim=(-1.05, 1.05),
              title="What the MLP writes")  # fmt: skip
    right.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    name = "directions--constructed" if chosen.constructed else "directions"
    says = "principal directions of what the making MLP reads at secondary sinks and at as many other tokens"
    study.figure(figure, name, source=chosen.found, says=says + ("; a constructed model" * chosen.constructed))


def judge_case(study: Study, chosen: case.Case) -> None:
    """Draw and judge a model that has secondary sinks."""
    swept = direction_sweep(chosen.model, chosen.prompts, chosen.found)
    draw(study, chosen, swept)
    size = abs(swept["cosine"]).max("scale")
    own, control = size.drop_sel(direction="random"), float(size.sel(direction="random"))
    best = str(own["direction"].values[int(own.argmax("direction"))])
    figure, claim, paper = FIRST
    study.claim(
        figure, claim, paper=chosen.paper(paper),
        found=f"largest magnitude of the cosine {float(own.max()):.3f} ({best}), random direction {control:.3f}; layer "
        f"{swept.attrs['layer']}, {int((swept['who'] == 'sink').sum())} sinks and as many other tokens (n = 1 model)",
        agrees=float(own.max()) > 0.98 and control < float(own.max()),
    )  # fmt: skip
    rows, sink = swept["projection"].values, swept["who"].values == "sink"
    if min(sink.sum(), (~sink).sum()) < 4:
        words, agrees, apart = "too few tokens", "fewer than four sinks", None
    else:
        p = np.array([stats.mannwhitneyu(column[sink], column[~sink]).pvalue for column in rows.T]) * rows.shape[1]
        place = int(p.argmin())
        apart = beyond(rows[sink, place], rows[~sink, place])
        words = (
            f"of the pairs of a sink and another token the sink lies farther along PC{place + 1}, the clearest of "
            f"{rows.shape[1]} directions: p {min(1.0, float(p.min())):.2g} (Mann-Whitney, Bonferroni)"
        )
        agrees = bool(p.min() < 0.05)
    study.claim(
        figure, "Secondary sinks and other tokens differ along these directions", paper=chosen.paper("apart"),
        number=apart, found=words, agrees=agrees,
    )  # fmt: skip


def beyond(sinks: np.ndarray, others: np.ndarray) -> Estimate:
    """Share of the pairs of a sink and another token in which the sink lies farther, in the direction of most."""
    if (sinks[:, None] > others).mean() < 0.5:
        sinks, others = -sinks, -others
    n = min(len(sinks), len(others))
    return Estimate.resampled(lambda drawn: (sinks[drawn][:, None] > others[drawn]).mean(), n, ".0%")


if __name__ == "__main__":
    with Study(__doc__, paper="wong2025", model=LANGUAGE_MODELS) as study:
        study.for_each(lambda study, model: case.judge(study, model, FIRST, judge_case))
        judge_case(study, case.built(study))
