"""Calibrating the sinks of one head at a time: which heads help?

Paper: Yu et al. 2024 (ACT), figure of single-head effects (axes as third parties describe them). Claim: damping the
sinks after the first token helps in most heads and hurts in few.
Cost: one pass per head and question, from the head's layer on; a minute on the zoo model.
Different here: two tasks made of held-out source code for models of the zoo (SST-2 and ARC-C for others); the map shows
the log probability of the right option, tested per head over questions (Wilcoxon, false discovery rate 5 %); a head in
which ACT finds no sink stays as it was.
"""

import matplotlib.pyplot as plt
import xarray as xr

import sinkscope as sk
from sinkscope import tasks
from sinkscope.analysis import Study, heads_that_change
from sinkscope.engine.run import find_tower


def measure(model: sk.Model, name: str, n: int) -> xr.Dataset:
    """Scores (layer head prompt) with ACT in one head, and without an edit (``..._baseline``)."""
    questions = tasks.Questions.of(tasks.load(name, calibration=n, test=1).calibration, model)
    sites = find_tower(model, None).attention
    heads = range(min(site.heads for site in sites))
    grid = sk.grid(sk.CalibrateSinks(0.1, beta=0.4), layers=[site.layer for site in sites], heads=heads)
    ds = tasks.evaluate(model, questions, grid, batch_size=16).rename(edit_layer="layer", edit_head="head")
    plain = tasks.evaluate(model, questions, {"none": []}, batch_size=16).isel(edit=0, drop=True)
    return ds.assign({f"{score}_baseline": plain[score] for score in ("correct", "log_probability")})


def main() -> None:
    """Calibrate each head alone, draw the maps, count who helps and who hurts."""
    with Study(__doc__, paper="yu2024") as study:
        suited = tasks.suited(study.model, "sst2", "arc-c")
        names = ("operators", "copy") if "copy" in suited else suited
        names = names[-1:] if study.quick else names
        figure, axes = plt.subplots(1, len(names), figsize=(4.4 * len(names), 4.4), squeeze=False)
        words, splits = [], []
        for panel, name in zip(axes[0], names, strict=True):
            n = 8 if study.quick else 64
            ds = study.reading(f"single_head_{name}", lambda name=name, n=n: measure(study.model, name, n))
            effect = (ds["log_probability"] - ds["log_probability_baseline"]).reset_coords(drop=True)
            tested, up, down, least = heads_that_change(effect)
            sure = tested["q_value"] < 0.05
            change = tested["difference"].rename("change").assign_attrs(units="nat", long_name="log probability")
            sk.plot.effect_map(change, marked=sure, title=name, ax=panel)
            words.append(f"{name}: {up} help, {down} hurt, effects from {least:.2g} nat could be found")
            splits.append((up, down))
        says = "change of the log probability of the right option, ACT in one head; dots: q < 0.05"
        study.figure(figure, "single_head", source=ds, says=says)
        study.claim(
            "single heads", "ACT helps in most heads and hurts in few", paper="most heads of LLaMA-2-7B",
            found=f"of {sure.size} heads at q < 0.05, {'; '.join(words)}; n = {ds.sizes['prompt']} questions each",
            agrees=all(up > down for up, down in splits) if any(map(sum, splits)) else "no head changes for sure",
        )  # fmt: skip


if __name__ == "__main__":
    main()
