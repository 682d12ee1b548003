"""Routed heads: what is lost when each token keeps only the heads with the longest queries.

Paper: Jin et al. 2025, MoH (arXiv 2410.11842): trained with a router models match or gain with 50 to 90 % of its heads.
Claims: three quarters of the heads, chosen token by token, cost nothing; the norm of the query ranks heads.
Cost: one pass per arm over 12 prompts, a minute per language model.
Different here: no training; the rule of the released LLaMA3 version (norm of the query) is put into a model that never
had it, so a loss is expected and only the ranking is judged against chance: as many heads drawn at random in each
layer, the same at every token. Intervals are over prompts.
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study, with_intervals
from sinkscope.engine.run import find_tower

SHARES, DRAWS = (0.25, 0.5, 0.75, 0.9), 3
"""Shares of the heads of a layer that stay, and random draws of as many."""


def arms(heads: int, depth: int, draws: int) -> dict[str, list[sk.edits.Edit]]:
    """Edits by arm: routed by norm, and the same number drawn at random in each layer."""
    found: dict[str, list[sk.edits.Edit]] = {}
    for kept in sorted({max(1, int(share * heads)) for share in SHARES}):
        found[f"routed {kept}"] = [sk.RouteHeads(kept)]
        for draw in range(draws):
            rng = np.random.default_rng([kept, draw])
            gone = {layer: rng.permutation(heads)[kept:].tolist() for layer in range(depth)}
            found[f"random {kept} {draw}"] = [sk.AblateHeads(gone)]
    return found


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw and judge one model."""
    tower = find_tower(model, None)
    heads, draws = max(site.heads for site in tower.attention), 2 if study.quick else DRAWS
    kind = "code" if model.id.startswith("zoo:lm-") else "prose"
    prompts, edits = study.texts(kind, n=12), arms(heads, tower.depth, draws)
    ds = study.run(prompts, [sk.TokenLoss()], edits)
    loss = ds["token_loss"].mean("query").reset_coords(drop=True)
    cost = loss - loss.sel(edit="baseline", drop=True)
    kept = sorted({int(name.split()[1]) for name in edits})
    routed = xr.concat([cost.sel(edit=f"routed {k}", drop=True) for k in kept], dim=xr.Variable("kept", kept))
    drawn = xr.concat(
        [cost.sel(edit=[f"random {k} {draw}" for draw in range(draws)]).mean("edit") for k in kept],
        dim=xr.Variable("kept", kept),
    )  # fmt: skip
    both = xr.concat([routed, drawn], dim=xr.Variable("chosen", ["by the norm of the query", "at random"]))
    table = with_intervals(both)
    _, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    shown = table["difference"].assign_coords(kept=np.array(kept) / heads).assign_attrs(long_name="change of the loss")
    sk.plot.sweep_curve(
        shown, x="kept", interval=(table["low"], table["high"]), title=f"Heads kept at each token, of {heads}",
        reference=1.0, ax=axes,
    )  # fmt: skip
    axes.set(xlabel="share of the heads of a layer that stay", ylabel="change of the loss [nat]")
    sk.plot.log_scale(axes, linear=0.1)
    study.figure(
        axes, "routing", source=ds, says="change of the loss per token against all heads, in all layers; at random: "
        f"mean of {draws} draws of as many heads; bands: 95 % intervals over prompts",
    )  # fmt: skip

    most = min(kept, key=lambda k: abs(k / heads - 0.75))
    lost = Estimate.mean(routed.sel(kept=most, drop=True), "+.3f", "nat")
    study.claim(
        "tables", "Three quarters of the heads, chosen token by token, do as well as all",
        paper="64.0 on average over 14 tasks, +2.4, trained with it", number=lost,
        found=f"{most} of {heads} heads in each layer of a model not trained with it",
        agrees=lost.below(0.05),
    )  # fmt: skip
    least = Estimate.paired(routed.sel(kept=most, drop=True), drawn.sel(kept=most, drop=True), "+.3f", "nat")
    study.claim(
        "released code", "The norm of the query keeps better heads than chance", paper="ranks the routed heads",
        number=least, found=f"{most} of {heads} heads, routed less random ones", agrees=least.below(0.0),
    )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="moh", model=LANGUAGE_MODELS) as study:
        study.for_each(judge)
