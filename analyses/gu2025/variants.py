"""Which attention has a sink: softmax, sigmoid, softmax-off-by-one, ReLU, a learned extra key, gated heads.

Paper: Gu et al. 2025, tables on attention biases and attention operations; Qiu et al. 2025 on gated heads; Xiao et al.
2024 on softmax-off-by-one. Claims: trained without a sum that has to be one (sigmoid) a model has no sink; with a
learned key that carries no value that key is the sink and the first token is none; gated heads have none.
Cost: none for the trained models, whose training curves are shipped; one pass per swap, seconds.
Different here: language models of 1.5 million parameters, every variant with a curve in the zoo, each judged against
the plain softmax model of the same seeds at the same step of the same schedule. Beside them ``--model`` with another
normaliser put in after training: a control, no evidence on training. Sigmoid and ReLU weights are divided by their sum
over the row for the measurement only, as in the paper.
"""

import matplotlib.pyplot as plt
import xarray as xr

import sinkscope as sk
from recipes import emergence, seeds
from sinkscope.analysis import Study

SWAPS = ("softmax", "softmax1", "sigmoid", "relu")
GONE = "the first token is no sink"
CLAIMS = {
    "sigmoid": ("Attention operations", f"Trained with sigmoid, {GONE}", "0.44 % against 18.18 %", False),
    "relu": ("Guo et al.", f"Trained with ReLU attention, {GONE}", "no sink (curve)", False),
    "extra-key": ("Attention biases", f"Trained with a learned key without value, {GONE}", "Sink_1 = 0.00 %", False),
    "gate": ("Qiu et al.", f"Trained with gated heads, {GONE}", "attention on it .048 against .467", False),
    "softmax1": ("Xiao et al.", "Trained with softmax-off-by-one, the first token still is the sink",
                 "perplexity 29214 without the first tokens, 18.0 with them", True),
    "no-bos": ("Open models", "Trained without a token of its own in front, the first token is the sink",
               "GPT-2 XL 77.0 %", True),
}  # fmt: skip


def swapped(model: sk.Model, prompts: sk.Prompts, kind: str) -> xr.Dataset:
    """First-token attention of every head and loss under another normaliser."""
    tower = model.backend.towers[model.backend.default_tower]
    layers, heads = range(len(tower.attention)), range(max(site.heads for site in tower.attention))
    edits = [] if kind == "softmax" else [sk.SwapNormaliser(kind)]
    ds = sk.run(model, prompts, [sk.AttentionMap(layers, heads)], edits, batch_size=8)
    total, first = ds["attention"].sum("key"), ds["attention"].isel(key=0)
    ds["first"] = (first / total.where(total > 1e-8) if kind in ("sigmoid", "relu") else first).mean("query")
    ds["loss"] = sk.run(model, prompts, [sk.TokenLoss()], edits, batch_size=8)["token_loss"].mean("query")
    return ds.drop_vars("attention")


with Study(__doc__, paper="gu2025") as study:
    prompts = study.texts("prose", n=32, tokens=64)
    runs = {kind: study.reading(kind, lambda k=kind: swapped(study.model, prompts, k)) for kind in SWAPS}
    rate = xr.concat([(ds["first"] > 0.3).mean(["layer", "head"]) for ds in runs.values()],
                     dim=xr.Variable("normaliser", list(SWAPS)), compat="override", coords="minimal")  # fmt: skip
    table = sk.metrics.compare(rate, to=rate * 0)

    asked = {kind: claim for kind, claim in emergence.ARCHITECTURE.items() if kind in CLAIMS}
    step, trained = emergence.common_step(emergence.compared(asked))
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(1.3, 1))
    both = [[pair.own[key].mean() for key in ("sink_rate", "alpha_mean")] for pair in trained.values()]
    shown = xr.DataArray(both, {"arm": list(trained), "what": ["sink rate", "mean attention"]})
    sk.plot.grouped_bars(shown, ylabel="first token", title="Trained with it, mean over seeds", ax=axes[0])
    limits = (table["low"], table["high"])
    sk.plot.grouped_bars(table["difference"], interval=limits, ylabel="sink rate", title="Swapped in", ax=axes[1])
    source = rate.assign_attrs(model_id=study.model.id, n_prompts=rate.sizes["prompt"])
    study.figure(
        figure, "variants", source=source,
        says="sink rate: share of heads with mean attention to the first token above 0.3, T = 64; left: from training "
        f"curves at step {step}; right: after training, 95 % intervals over prompts",
    )  # fmt: skip

    for name, (where, claim, paper, stays) in CLAIMS.items():
        row = table.sel(normaliser=name) if name in SWAPS else None
        after = "" if row is None else (
            f"; swapped in after training {float(row['difference']):.1%} [{float(row['low']):.1%}, "
            f"{float(row['high']):.1%}], loss {float(runs[name]['loss'].mean()):.2f} (n = {len(prompts)} prompts)"
        )  # fmt: skip
        if name not in trained:
            study.claim(where, claim, paper=paper, found=f"no such run in the zoo{after}", agrees=None)
            continue
        own, other = trained[name].own, trained[name].plain
        keys = {"sink_rate": "sink rate", "alpha_mean": "mean attention", "loss": "loss"}
        told = ", ".join(
            f"{label} {own[key].mean():.3g} (softmax {other[key].mean():.3g}, difference "
            f"{seeds.text(own[key] - other[key], spec='+.2g')})" for key, label in keys.items()
        )  # fmt: skip
        kept = own["sink_rate"] > 0.5 * other["sink_rate"]
        agrees = bool((kept == stays).all()) if other["sink_rate"].min() > 0 else None
        found = f"after {step} steps {told}, n = {len(kept)} seeds{after}"
        study.claim(where, claim, paper=paper, found=found, agrees=agrees)
