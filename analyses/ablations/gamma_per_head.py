"""What scaling the attention to the first token does, head by head (Han et al. 2025, Fig. 5).

Claim: heads differ in sign and size, so that scaling chosen heads helps and scaling all blurs it. The paper reads task
accuracy of Llama-3.1-8B (``han2025/head_profile.py`` does so on tasks); here the loss per token, each head tested over
prompts at one gamma, with the smallest effect that could have been found; of models with many heads a random sample of
them is scaled one by one. Check of this project: the first-order estimate of all heads, from one backward pass, against
the exact effects. Cost: a pass per head and gamma that restarts at the edited layer; three minutes per language model.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from common import texts

import sinkscope as sk
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study, heads_that_change, largest_changes, need, together
from sinkscope.engine.run import find_tower
from sinkscope.methods.profiling import profile_heads

GAMMAS = (0.25, 4.0)
MOST = 24
"""Heads that are scaled one by one; a random sample of larger models."""


def measure(study: Study, model: sk.Model, prompts: sk.Prompts) -> tuple[xr.DataArray, int]:
    """Change of the loss (gamma prompt layer head), NaN for heads out of the sample, and the number of heads."""
    sites = find_tower(model, None).attention
    every = [(place, head) for place, site in enumerate(sites) for head in range(site.heads)]
    some = every
    if len(every) > MOST:
        some = [every[i] for i in np.sort(np.random.default_rng(0).choice(len(every), MOST, replace=False))]
    edits: dict[str, list[sk.edits.Edit]] = {
        f"{layer}|{head}|{gamma:g}": [sk.ScaleKeys(gamma, heads={layer: [head]})]
        for layer, head in some for gamma in GAMMAS
    }  # fmt: skip
    loss = study.run(prompts, [sk.TokenLoss()], edits, batch_size=16)["token_loss"].mean("query")
    plain = loss.sel(edit="baseline")
    shape = (len(GAMMAS), len(prompts), len(sites), max(site.heads for site in sites))
    found = np.full(shape, np.nan)
    for layer, head in some:
        for place, gamma in enumerate(GAMMAS):
            found[place, :, layer, head] = loss.sel(edit=f"{layer}|{head}|{gamma:g}") - plain
    labels = {"gamma": list(GAMMAS), "layer": range(len(sites)), "head": range(shape[-1]), "prompt": plain["prompt"]}
    return xr.DataArray(found, dims=("gamma", "prompt", "layer", "head"), coords=labels), len(every)


def ranked_alike(estimate: xr.DataArray, effect: xr.DataArray) -> Estimate:
    """Rank correlation over the heads of two means over prompts, with an interval over the prompts."""
    one, other = (each.transpose("prompt", "layer", "head").reset_coords(drop=True) for each in (estimate, effect))

    def rank(drawn: np.ndarray) -> float:
        pair = (each.isel(prompt=drawn).mean("prompt") for each in (one, other))
        return float(sk.metrics.rank_correlation(*pair)["correlation"])

    return Estimate.resampled(rank, one.sizes["prompt"], ".2f")


def judge(study: Study, model: sk.Model) -> None:
    """Sweep, compare with the estimate, and draw both maps."""
    need(model, model.is_causal, "a decoder, whose loss per token it reads")
    prompts = texts(study, 12)
    effect, heads = measure(study, model, prompts)
    tested = {gamma: heads_that_change(effect.sel(gamma=gamma, drop=True)) for gamma in GAMMAS}
    words = [f"gamma {g:g}: {down} lower the loss, {up} raise it, {largest_changes(each)}, mean effects from "
             f"{least:.2g} nat could be found" for g, (each, up, down, least) in tested.items()]  # fmt: skip
    some = int(effect[0, 0].notnull().sum())
    ups, downs = (sum(counts) for counts in zip(*((up, down) for _, up, down, _ in tested.values()), strict=True))
    study.claim(
        "Fig. 5", "Heads differ in the sign of the effect", paper="up- and down-effective heads",
        found=f"{ups + downs} of {some * len(GAMMAS)} (head, gamma) pairs (n = {len(prompts)}); at q < 0.05, of "
        f"{heads} heads {some} scaled; {'; '.join(words)}",
        agrees=bool(ups and downs) if ups + downs > 4 else f"{ups + downs} heads change for sure, too few to tell",
    )  # fmt: skip
    profile = study.reading("first-order", lambda: profile_heads(model, prompts).found)
    order = profile["first_order"]
    ranks = {g: ranked_alike(order * np.log(g), effect.sel(gamma=g, drop=True)) for g in GAMMAS}
    worst = min(ranks.values(), key=lambda rank: rank.value)
    study.claim(
        "Fig. 5", "One backward pass ranks the heads as scaling each does", paper="", number=worst,
        agrees=together([rank.above(0.5) for rank in ranks.values()]),
        found=f"Spearman over {some} heads: {', '.join(f'{rank} at gamma {g:g}' for g, rank in ranks.items())}",
    )  # fmt: skip
    draw(study, profile, tested[GAMMAS[0]][0])
    sure = xr.concat([row[0]["q_value"] < 0.05 for row in tested.values()], xr.Variable("gamma", list(GAMMAS)))
    draw_curves(study, profile, effect, sure)


def draw_curves(study: Study, profile: xr.Dataset, effect: xr.DataArray, sure: xr.DataArray) -> None:
    """Every head's curve over gamma: measured where it was scaled, the first-order estimate behind it for all."""
    gammas = sorted({*GAMMAS, 1.0})
    mean = effect.mean("prompt").reindex(gamma=gammas)
    mean.loc[{"gamma": 1.0}] = mean.sel(gamma=GAMMAS[0]) * 0  # no edit, no change; NaN where none was measured
    slope = profile["first_order"].mean("prompt").reset_coords(drop=True)
    estimate = slope * xr.DataArray(np.log(gammas), dims="gamma", coords={"gamma": gammas})
    # One head whose estimate is far off would flatten the others; what is cut stands at the edge of its cell.
    limit = float(np.nanquantile(abs(xr.concat([mean, estimate], "part")), 0.99))
    curves = sk.plot.described(mean.assign_attrs(units="nat"), profile)
    axes = sk.plot.head_curves(
        curves, marked=sure.reindex(gamma=gammas).fillna(0.0) > 0, behind=estimate, limit=limit, size="page",
        title=f"{study.subject}: first token scaled in one head",
    )  # fmt: skip
    cut = int((abs(mean) > limit).any("gamma").sum())
    says = f"change of the loss per token; grey: first-order estimate; dots: q < 0.05; {cut} heads are cut at the edge"
    study.figure(axes, "curves_per_head", source=profile, says=says)


def draw(study: Study, profile: xr.Dataset, tested: xr.Dataset) -> None:
    """The estimate of every head, and the exact effect of those that were scaled."""
    order = profile["first_order"]
    estimate = (order.mean("prompt") * np.log(GAMMAS[0])).assign_attrs(units="nat", long_name="change of the loss")
    exact = tested["difference"].assign_attrs(units="nat", long_name="change of the loss")
    ratio = max(order.sizes["layer"] / 12, 1)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4 * ratio))
    limit = max(float(abs(each).max()) for each in (estimate, exact))
    sk.plot.effect_map(estimate, limit=limit, title=f"First order, gamma {GAMMAS[0]:g}", ax=axes[0])
    sure = tested["q_value"] < 0.05
    sk.plot.effect_map(exact, limit=limit, marked=sure, title="One head at a time", ax=axes[1])
    axes[0].images[0].colorbar.remove()  # the other panel's holds for both
    study.figure(figure, "gamma_per_head", source=profile, says="change of the loss per token; dots: q < 0.05")


if __name__ == "__main__":
    with Study(__doc__, paper="han2025", model=LANGUAGE_MODELS) as study:
        study.for_each(judge)
