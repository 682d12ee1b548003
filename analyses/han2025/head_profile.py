"""Heads that want more of the first token, and heads that want less.

Paper: Han et al. 2025, figure 5. Accuracy with the first token scaled by 1.5 in one head alone, for every head. Claim:
heads split into up-effective and down-effective ones, in proportions that differ by task.
Cost: small models, one pass per head and question, from the head's layer on; models of more than 48 heads, one backward
pass per question and one pass for each of 16 heads. A minute or two per model.
Different here: tasks made of held-out source code without a network and for models of the zoo (else SST-2, BoolQ, MMLU
and MathQA). So few questions leave most heads tied in accuracy; the map shows the log probability of the right option,
whose changes are tested per head over questions (Wilcoxon, false discovery rate 5 %), and the claim counts those heads
alone. Of models with many heads the change is the first-order estimate of all heads (derivative with respect to
ln gamma, times ln 1.5); how well that ranks heads is told from 16 of them, drawn at random and scaled.
"""

import matplotlib.pyplot as plt
import numpy as np
import panels
import torch
import xarray as xr
from matplotlib.axes import Axes

import sinkscope as sk
from sinkscope import tasks
from sinkscope.analysis import LANGUAGE_MODELS, Study, heads_that_change, largest_changes
from sinkscope.engine.run import find_tower
from sinkscope.methods.profiling import HeadProfileSettings, profile_heads
from sinkscope.models.backends.base import Output
from sinkscope.prompts import Batch

GAMMA = 1.5
FEW = 5
"""Fewer heads that change for sure than this do not show of which classes there are."""
MANY, SAMPLE, CHECKED = 48, 16, 12
"""Heads from which on the change is estimated; how many are scaled as a check, on how many questions."""
PANELS = ("sst2", "boolq", "mmlu", "mathqa")


def measure(model: sk.Model, name: str, n: int) -> xr.Dataset:
    """Change of the log probability with one head scaled: ``effect`` (prompt layer head), exact where known.

    Of models with many heads also ``estimate``, for all heads.
    """
    questions = tasks.Questions.of(tasks.load(name, calibration=n, test=1).calibration, model)
    sites = find_tower(model, None).attention
    places = [(at, head) for at, site in enumerate(sites) for head in range(site.heads)]
    some = places
    if len(places) > MANY:
        some = [places[i] for i in np.sort(np.random.default_rng(0).choice(len(places), SAMPLE, replace=False))]
    edits = {"none": []} | {f"{at}.{h}": [sk.ScaleKeys(GAMMA, layers=[sites[at].layer], heads=[h])] for at, h in some}
    asked = questions if some is places else tasks.Questions.of(questions.items[:CHECKED], model)
    answers = tasks.evaluate(model, asked, edits, batch_size=8)
    scores = answers["log_probability"]
    effect = np.full((len(asked.items), len(sites), max(site.heads for site in sites)), np.nan)
    for at, head in some:
        effect[:, at, head] = scores.sel(edit=f"{at}.{head}") - scores.sel(edit="none")
    labels = {"prompt": range(len(effect)), "layer": [site.layer for site in sites], "head": range(effect.shape[-1])}
    found = xr.Dataset({"effect": (("prompt", "layer", "head"), effect)}, labels, answers.attrs)
    if some is not places:
        estimate = (first_order(model, questions) * np.log(GAMMA)).rename(prompt="question").reset_coords(drop=True)
        found = found.assign(estimate=estimate).assign_attrs(n_prompts=n)
    return found


def first_order(model: sk.Model, questions: tasks.Questions) -> xr.DataArray:
    """Derivative of the right option's log probability with respect to ln gamma, all heads, one pass per question."""
    right = [ids[item.answer] for item, ids in zip(questions.items, questions.options, strict=True)]

    def score(output: Output, batch: Batch) -> torch.Tensor:
        return output.logits[:, -1].float().log_softmax(-1)[:, right[batch.indices[0]]]

    return profile_heads(model, questions.prompts, HeadProfileSettings(metric=score)).found["first_order"]


def effect_of(ds: xr.Dataset) -> xr.DataArray:
    """Change of the log probability with each head scaled: the estimate of all heads where there is one."""
    return ds["estimate"].rename(question="prompt") if "estimate" in ds else ds["effect"].reset_coords(drop=True)


def told(ds: xr.Dataset, name: str, ax: Axes, limit: float) -> tuple[str, tuple[int, int], str]:
    """Draw one task; say the classes, count them, and say how well the estimate ranks the heads."""
    effect = effect_of(ds)
    tested, up, down, least = heads_that_change(effect)
    change = tested["difference"].rename("change").assign_attrs(units="nat", long_name="log probability")
    sk.plot.effect_map(change, marked=tested["q_value"] < 0.05, limit=limit, title=name, ax=ax)
    rank = ""
    if "estimate" in ds:
        same = ds["estimate"].isel(question=slice(ds.sizes["prompt"])).mean("question")
        near = sk.metrics.rank_correlation(same, ds["effect"].mean("prompt"))
        rank = f"; first order, Spearman {float(near['correlation']):.2f} with {int(near['n'])} heads scaled"
    ends = largest_changes(tested)
    return f"{name} {up} up, {down} down, {ends}, effects from {least:.2g} nat could be found{rank}", (up, down), rank


def judge(study: Study, model: sk.Model) -> None:
    """Profile each task, draw the maps, count the classes."""
    names, n = panels.amount(study, model, *PANELS)
    if not study.quick and model.model.num_parameters() > panels.LARGE:
        names, n = tasks.suited(model, *PANELS)[-2:], 48
    depth = len(find_tower(model, None).attention)
    size = (min(9.6, max(4.2 * len(names), 5)), max(4.4, 0.22 * depth))
    figure, axes = plt.subplots(1, len(names), figsize=size, squeeze=False)
    parts = [study.reading(f"head_profile_{name}", lambda name=name: measure(model, name, n)) for name in names]
    limit = max(float(abs(effect_of(ds).mean("prompt")).max()) for ds in parts)
    rows = [told(ds, name, ax, limit) for ds, name, ax in zip(parts, names, axes[0], strict=True)]
    for ax in axes[0][:-1]:
        ax.images[0].colorbar.remove()  # tasks share one scale, and the last panel's bar
    how = "first-order estimate of the change" if "estimate" in parts[0] else "change"
    says = f"{how} of the log probability of the right option, first token times {GAMMA} in one head; dots: q < 0.05"
    study.figure(figure, "head_profile", source=parts[-1], says=says)

    total = int(parts[0]["estimate" if "estimate" in parts[0] else "effect"][0].notnull().sum())
    judged = [(up, down) for _, (up, down), _ in rows if up + down >= FEW]
    study.claim(
        "Fig. 5", "Heads split into up-effective and down-effective ones",
        paper="both classes on SST-2, BoolQ, MMLU and MathQA",
        found=f"of {total} heads at q < 0.05: {'; '.join(words for words, *_ in rows)}; n = {n} questions each",
        agrees=all(up and down for up, down in judged) if judged else f"fewer than {FEW} heads change for sure",
    )  # fmt: skip
    shares = [up / (up + down) for up, down in judged]
    study.claim(
        "Fig. 5", "The proportion of the classes differs by task", paper="proportions vary by task",
        found=f"up-effective among those that change: {', '.join(f'{share:.0%}' for share in shares) or 'none'}; n = "
        f"{n} questions each",
        agrees=max(shares) - min(shares) > 0.1 if len(shares) > 1 else "fewer than two tasks with heads that change",
    )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="han2025", model=LANGUAGE_MODELS) as study:
        study.for_each(judge)
