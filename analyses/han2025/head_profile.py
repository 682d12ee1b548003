"""Heads that want more of the first token, and heads that want less.

Paper: Han et al. 2025, figure 5. Accuracy with the first token scaled by 1.5 in one head alone, for every head. Claim:
heads split into up-effective and down-effective ones, in proportions that differ by task.
Cost: one pass per head and question, from the head's layer on; two minutes on the zoo model.
Different here: tasks made of held-out source code for models of the zoo (SST-2, BoolQ, MMLU and MathQA for others). So
few questions leave most heads tied in accuracy; the map shows the log probability of the right option, whose changes
are tested per head over questions (Wilcoxon, false discovery rate 5 %), and the claim counts those heads alone.
"""

import matplotlib.pyplot as plt
import xarray as xr

import sinkscope as sk
from sinkscope import tasks
from sinkscope.analysis import Study
from sinkscope.engine.run import find_tower

GAMMA = 1.5
FEW = 5
"""Fewer heads that change for sure than this do not show of which classes there are."""
PANELS = ("sst2", "boolq", "mmlu", "mathqa")


def measure(model: sk.Model, name: str, n: int) -> xr.Dataset:
    """Scores (layer head prompt) with one head scaled, and without an edit (``..._baseline``)."""
    questions = tasks.Questions.of(tasks.load(name, calibration=n, test=1).calibration, model)
    sites = find_tower(model, None).attention
    heads = range(min(site.heads for site in sites))
    grid = sk.grid(sk.ScaleKeys(GAMMA), layers=[site.layer for site in sites], heads=heads)
    ds = tasks.evaluate(model, questions, grid, batch_size=16).rename(edit_layer="layer", edit_head="head")
    plain = tasks.evaluate(model, questions, {"none": []}, batch_size=16).isel(edit=0, drop=True)
    return ds.assign({f"{score}_baseline": plain[score] for score in ("correct", "log_probability")})


def main() -> None:
    """Profile each task, draw the maps, count the classes."""
    with Study(__doc__, paper="han2025") as study:
        names = tasks.suited(study.model, *PANELS)
        names = names[-1:] if study.quick else names[-4:]
        figure, axes = plt.subplots(1, len(names), figsize=(3.7 * len(names), 4.4), squeeze=False)
        words, splits, ties = [], [], []
        for panel, name in zip(axes[0], names, strict=True):
            n = 8 if study.quick else 64
            ds = study.reading(f"head_profile_{name}", lambda name=name, n=n: measure(study.model, name, n))
            tested = sk.metrics.compare(ds["log_probability"], to=ds["log_probability_baseline"].broadcast_like(
                ds["log_probability"]), test="wilcoxon")  # fmt: skip
            sure = tested["q_value"] < 0.05
            change = tested["difference"].rename("change").assign_attrs(units="nat", long_name="log probability")
            sk.plot.effect_map(change, marked=sure, title=name, ax=panel)
            up, down = (int((sure & (sign * tested["difference"] > 0)).sum()) for sign in (1, -1))
            accuracy = ds["correct"].mean("prompt") - ds["correct_baseline"].mean("prompt")
            ties.append(int((abs(accuracy) < 1e-9).sum()))
            words.append(f"{name} {up} up, {down} down")
            splits.append((up, down))
        says = (
            f"change of the log probability of the right option, first token times {GAMMA} in one head; dots: q < 0.05"
        )
        study.figure(figure, "head_profile", source=ds, says=says)

        judged = [pair for pair in splits if sum(pair) >= FEW]
        total = ds.sizes["layer"] * ds.sizes["head"]
        study.claim(
            "Fig. 5", "Heads split into up-effective and down-effective ones",
            paper="both classes on SST-2, BoolQ, MMLU and MathQA",
            found=f"of {total} heads at q < 0.05: {'; '.join(words)}; tied in accuracy: {', '.join(map(str, ties))}; "
            f"n = {ds.sizes['prompt']} questions each; judged where {FEW} heads or more change",
            agrees=all(up and down for up, down in judged) if judged else None,
        )  # fmt: skip
        shares = [up / (up + down) for up, down in splits if up + down]
        study.claim(
            "Fig. 5", "The proportion of the classes differs by task", paper="proportions vary by task",
            found=f"up-effective among those that change: {', '.join(f'{share:.0%}' for share in shares) or 'none'}",
            agrees=max(shares) - min(shares) > 0.1 if len(shares) > 1 else None,
        )  # fmt: skip


if __name__ == "__main__":
    main()
