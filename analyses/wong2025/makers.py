"""The MLP that makes a secondary sink: what it writes, where the likeness arises, what its size does.

Paper: Wong et al. 2025, section on the making MLP, figures 5 and 7. Claims: the creating layer's MLP, not attention,
writes the primary's direction; its input and inner activations are not alike, its output is (cosine above .98); scaling
that write changes strength and lifetime.
Cost: a few passes per prompt, some minutes per language model that has secondary sinks.
Different here: the write is scaled along the primary direction (factor 0 takes it away); the control scales everything
else the MLP writes there. A model without secondary sinks is said to have none; one whose MLP stands behind a norm of
its own is left out, which is said. A constructed model, where all this was built in, checks the method and counts as no
claim. Intervals are over sinks.
"""

import case
import matplotlib.pyplot as plt
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study, with_intervals
from sinkscope.methods import secondary_mlp

FIRST = ("Making layer", "The MLP writes the primary direction, attention does not", "MLP output (t-SNE, fig. 6)")
FACTORS = (0.0, 0.5, 1.0, 1.5)


def draw(
    study: Study, chosen: case.Case, made: xr.Dataset, runs: dict[bool, list[xr.Dataset]], factors: tuple[float, ...]
) -> None:
    """What is written, likeness inside the MLP, and strength over the scaled write."""
    figure, panels = plt.subplot_mosaic([["write", "scale"], ["inside"] * 2], figsize=(9.2, 7), width_ratios=(0.7, 1))
    axes = [panels[name] for name in ("write", "inside", "scale")]
    write, stage = (with_intervals(made[name], over="sink") for name in ("write_cosine", "stage_cosine"))
    sk.plot.grouped_bars(
        write["difference"], interval=(write["low"], write["high"]), ylabel="cosine with the primary sink",
        title="What is written", ax=axes[0],
    )  # fmt: skip
    sk.plot.grouped_bars(
        stage["difference"].transpose("stage", "who"), interval=(stage["low"], stage["high"]),
        ylabel="cosine with the primary sink", title="Inside the MLP", ax=axes[1],
    )  # fmt: skip
    score = xr.DataArray(
        [[run["score"].values for run in found] for found in runs.values()],
        {"scaled": ["along the primary", "the rest"], "factor": list(factors)}, ("scaled", "factor", "sink"),
    )  # fmt: skip
    strength = with_intervals(score, over="sink")
    shown = strength["difference"].assign_attrs(long_name="mean attention on the sinks")
    sk.plot.sweep_curve(
        shown, x="factor", interval=(strength["low"], strength["high"]), title="Scaling the write", ax=axes[2]
    )
    axes[2].set_ylim(bottom=0)
    study.figure(
        figure, "makers--constructed" if chosen.constructed else "makers", source=chosen.found,
        says="secondary sinks against the primary, each at the layer that made it; neighbour: nearest tokens that are "
        "no sinks" + ("; a constructed model" if chosen.constructed else "") + "; 95 % intervals over sinks",
    )  # fmt: skip


def judge_case(study: Study, chosen: case.Case) -> None:
    """Draw and judge a model that has secondary sinks."""
    where = (chosen.model, chosen.prompts, chosen.found)
    made = secondary_mlp.makers(*where)
    factors = FACTORS[::2] if study.quick else FACTORS
    runs = {rest: [secondary_mlp.steer(*where, factor, rest=rest) for factor in factors] for rest in (False, True)}
    draw(study, chosen, made, runs, factors)
    mlp, attention = (Estimate.mean(made["write_cosine"].sel(part=part, drop=True), ".3f")
                      for part in ("mlp", "attention"))  # fmt: skip
    sizes = {part: float(made["write_norm"].sel(part=part).mean()) for part in ("mlp", "attention")}
    figure, claim, paper = FIRST
    study.claim(
        figure, claim, number=mlp, paper=chosen.paper(paper),
        found=f"cosine of what the MLP writes (norm {sizes['mlp']:.1f}); attention {attention} (norm "
        f"{sizes['attention']:.1f})",
        agrees=mlp.value > 0.9 and abs(attention.value) < 0.5,
    )  # fmt: skip
    stage = made["stage_cosine"].mean("sink")
    inner = float(abs(stage.sel(who="sink")).drop_sel(stage="output").max())
    out = Estimate.mean(made["stage_cosine"].sel(who="sink", stage="output", drop=True), ".3f")
    study.claim(
        "MLP cosine", "Only the MLP's output is alike", paper=chosen.paper("above .98, inputs not similar"), number=out,
        found=f"cosine of its output, everything before it at most {inner:.2f}; neighbours' output "
        f"{float(stage.sel(who='neighbour', stage='output')):.2f}", agrees=out.value > 0.9 and inner < 0.5,
    )  # fmt: skip
    gone, rest = (runs[rest][0] for rest in (False, True))
    kept, other = (Estimate.mean(xr.DataArray(run["kept"].values.astype(float), dims="sink"), ".0%")
                   for run in (gone, rest))  # fmt: skip
    before, score, control = (float(values.mean()) for values in (gone["score_before"], gone["score"], rest["score"]))
    study.claim(
        "Steering", "Without the write the sink is gone", paper=chosen.paper("larger: stronger, longer"), number=kept,
        found=f"of its layers left without the write, {other} without the rest of that MLP's output; mean attention "
        f"{before:.3f}, {score:.3f} and {control:.3f}", agrees=kept.value < 0.2 and other.value > 0.8,
    )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="wong2025", model=LANGUAGE_MODELS) as study:
        study.for_each(lambda study, model: case.judge(study, model, FIRST, judge_case))
        judge_case(study, case.built(study))
