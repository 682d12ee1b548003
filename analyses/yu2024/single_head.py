"""Calibrating the sinks of one head at a time: which heads help?

Paper: Yu et al. 2024 (ACT), figure of single-head effects (axes as third parties describe them). Claim: damping the
sinks after the first token helps in most heads and hurts in few.
Cost: one pass per head and question, from the head's layer on; a minute on the zoo model, two on a language model.
Different here: two tasks made here, of held-out source code for models of the zoo, of word lists and of source code for
others; the map shows the log probability of the right option, tested per head over questions (Wilcoxon, false discovery
rate 5 %); a head in which ACT finds no sink stays as it was. Of models with more than 48 heads a random sample of 24 is
calibrated, on fewer questions: all 270 of SmolLM2 are an hour per task.
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope import tasks
from sinkscope.analysis import LANGUAGE_MODELS, Study, ask, heads_that_change, largest_changes
from sinkscope.engine.run import find_tower

MANY, SAMPLE = 48, 24
"""Heads from which on some are drawn at random, and how many."""


def measure(model: sk.Model, name: str, n: int) -> xr.Dataset:
    """Change of the log probability with ACT in one head: ``effect`` (prompt layer head), NaN for heads not drawn."""
    questions = tasks.Questions.of(ask(model, name, n, 1).calibration, model)
    sites = find_tower(model, None).attention
    places = [(at, head) for at, site in enumerate(sites) for head in range(site.heads)]
    if len(places) > MANY:
        places = [places[i] for i in np.sort(np.random.default_rng(0).choice(len(places), SAMPLE, replace=False))]
    edits = {f"{at}.{head}": [sk.CalibrateSinks(0.1, beta=0.4, heads={sites[at].layer: [head]})] for at, head in places}
    answers = tasks.evaluate(model, questions, {"none": [], **edits}, batch_size=16)
    scores = answers["log_probability"]
    effect = np.full((n, len(sites), max(site.heads for site in sites)), np.nan)
    for at, head in places:
        effect[:, at, head] = scores.sel(edit=f"{at}.{head}") - scores.sel(edit="none")
    labels = {"prompt": range(n), "layer": [site.layer for site in sites], "head": range(effect.shape[-1])}
    return xr.Dataset({"effect": (("prompt", "layer", "head"), effect)}, labels, answers.attrs)


def judge(study: Study, model: sk.Model) -> None:
    """Calibrate each head alone, draw the maps, count who helps and who hurts."""
    sites = find_tower(model, None).attention
    total = sum(site.heads for site in sites)
    names, n = (("sentiment", "copy"), 24) if total > MANY else (tasks.suited(model, "sst2", "arc-c"), 64)
    names = ("operators", "copy") if "operators" in names else names
    names, n = (names[-1:], 8) if study.quick else (names, n)
    size = (4.4 * len(names), max(4.4, 0.22 * len(sites)))
    figure, axes = plt.subplots(1, len(names), figsize=size, squeeze=False)
    words, splits, ds = [], [], xr.Dataset()
    for panel, name in zip(axes[0], names, strict=True):
        ds = study.reading(f"single_head_{name}", lambda name=name: measure(model, name, n))
        tested, up, down, least = heads_that_change(ds["effect"].reset_coords(drop=True))
        change = tested["difference"].rename("change").assign_attrs(units="nat", long_name="log probability")
        sk.plot.effect_map(change, marked=tested["q_value"] < 0.05, title=name, ax=panel)
        ends = largest_changes(tested)
        words.append(f"{name}: {up} help, {down} hurt, {ends}, effects from {least:.2g} nat could be found")
        splits.append((up, down))
    some = int(ds["effect"].isel(prompt=0).notnull().sum())
    drawn = f", {some} of {total} heads drawn at random" if some < total else ""
    says = f"change of the log probability of the right option, ACT in one head{drawn}; dots: q < 0.05"
    study.figure(figure, "single_head", source=ds, says=says)
    study.claim(
        "single heads", "ACT helps in most heads and hurts in few", paper="most heads of LLaMA-2-7B",
        found=f"of {some} heads{f' drawn from {total}' if drawn else ''} at q < 0.05, {'; '.join(words)}; n = {n} "
        "questions each",
        agrees=all(up > down for up, down in splits) if any(map(sum, splits)) else "no head changes for sure",
    )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="yu2024", model=LANGUAGE_MODELS) as study:
        study.for_each(judge)
