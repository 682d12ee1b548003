"""The MLP that makes a secondary sink: what it writes, where the likeness arises, what its size does.

Paper: Wong et al. 2025, section on the making MLP, figures 5 and 7. Claims: the creating layer's MLP, not attention,
writes the primary's direction; its input and inner activations are not alike, its output is (cosine above .98); scaling
that write changes strength and lifetime.
Cost: a few passes per prompt, under a minute.
Different here: the write is scaled along the primary direction (factor 0 takes it away); the control scales everything
else the MLP writes there. If the model of ``--model`` has no secondary sinks, which is then said, a constructed model
is drawn, where all this was built in: it checks the method, no claim. Intervals are over sinks.
"""

import case
import matplotlib.pyplot as plt
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import Study
from sinkscope.methods import secondary_mlp

FACTORS = (0.0, 0.25, 0.5, 1.0, 1.5)

with Study(__doc__, paper="wong2025") as study:
    chosen = case.choose(study)
    where = (chosen.model, chosen.prompts, chosen.found)
    made = secondary_mlp.makers(*where)
    factors = FACTORS[::2] if study.quick else FACTORS
    runs = {rest: [secondary_mlp.steer(*where, factor, rest=rest) for factor in factors] for rest in (False, True)}

    figure, axes = plt.subplots(1, 3, figsize=(14, 4.6), width_ratios=(0.7, 1.2, 1))
    write = sk.metrics.compare(made["write_cosine"], to=made["write_cosine"] * 0, over="sink")
    sk.plot.grouped_bars(
        write["difference"], interval=(write["low"], write["high"]), ylabel="cosine with the primary sink's state",
        title="What is written", ax=axes[0],
    )  # fmt: skip
    stage = sk.metrics.compare(made["stage_cosine"], to=made["stage_cosine"] * 0, over="sink")
    sk.plot.grouped_bars(
        stage["difference"].transpose("stage", "who"), interval=(stage["low"], stage["high"]),
        ylabel="cosine with the primary sink's", title="Inside the MLP", ax=axes[1],
    )  # fmt: skip
    score = xr.DataArray(
        [[run["score"].values for run in found] for found in runs.values()],
        {"scaled": ["along the primary", "the rest"], "factor": list(factors)}, ("scaled", "factor", "sink"),
    )  # fmt: skip
    strength = sk.metrics.compare(score, to=score * 0, over="sink")
    shown = strength["difference"].assign_attrs(long_name="mean attention on the sinks")
    sk.plot.sweep_curve(
        shown, x="factor", interval=(strength["low"], strength["high"]), title="Scaling the write", ax=axes[2]
    )
    axes[2].set_ylim(bottom=0)
    study.figure(
        figure, "makers", source=chosen.found,
        says="secondary sinks against the primary, each at the layer that made it; neighbour: nearest tokens that are "
        "no sinks" + ("; a constructed model" if chosen.constructed else "") + "; 95 % intervals over sinks",
    )  # fmt: skip

    n = made.sizes["sink"]
    lead = "constructed, so built in: " if chosen.constructed else ""

    def verdict(holds: bool) -> bool | None:
        """A constructed model agrees with nothing."""
        return None if chosen.constructed else holds

    study.claim(
        "Table of counts", "There are secondary sinks to look at", paper="262 in 300 texts (14B)", found=chosen.seen,
        agrees=verdict(True),
    )  # fmt: skip
    cosines = {part: float(write["difference"].sel(part=part)) for part in ("attention", "mlp")}
    sizes = {part: float(made["write_norm"].sel(part=part).mean()) for part in cosines}
    study.claim(
        "Making layer", "The MLP writes the primary direction, attention does not", paper="MLP output (t-SNE, fig. 6)",
        found=f"{lead}cosine {cosines['mlp']:.3f} (norm {sizes['mlp']:.1f}) against {cosines['attention']:.3f} "
        f"({sizes['attention']:.1f}) for attention (n = {n} sinks)",
        agrees=verdict(cosines["mlp"] > 0.9 and abs(cosines["attention"]) < 0.5),
    )  # fmt: skip
    inner = abs(stage["difference"].sel(who="sink")).drop_sel(stage="output")
    out = float(stage["difference"].sel(who="sink", stage="output"))
    beside = float(stage["difference"].sel(who="neighbour", stage="output"))
    study.claim(
        "MLP cosine", "Only the MLP's output is alike", paper="above .98, inputs not similar",
        found=f"{lead}output {out:.3f}, everything before it at most {float(inner.max()):.2f}; neighbours' output "
        f"{beside:.2f} (n = {n} sinks)", agrees=verdict(out > 0.9 and float(inner.max()) < 0.5),
    )  # fmt: skip
    gone = [runs[rest][0] for rest in (False, True)]
    before, *score = (float(values.mean()) for values in (gone[0]["score_before"], gone[0]["score"], gone[1]["score"]))
    kept = [float(run["kept"].mean()) for run in gone]
    study.claim(
        "Steering", "Without the write the sink is gone, its size sets the strength", paper="larger: stronger, longer",
        found=f"{lead}score {before:.3f}, {score[0]:.3f} without it ({kept[0]:.0%} of its layers left), {score[1]:.3f} "
        f"without the rest of that MLP's output ({kept[1]:.0%}; n = {n} sinks)",
        agrees=verdict(kept[0] < 0.2 and kept[1] > 0.8),
    )  # fmt: skip
