"""Which normaliser has a sink: softmax, softmax-off-by-one, sigmoid, ReLU, a learned extra key, gated heads.

Paper: Gu et al. 2025, tables on attention biases and attention operations. Claims: trained without a sum that has to be
one (sigmoid) a model has no sink; with a learned key that carries no value (key bias) that key is the sink and the
first token is none. Qiu et al. 2025 say the same of gated heads.
Cost: one pass per model, seconds.
Different here: the zoo's language models of 1.5 million parameters, every ``zoo:lm-*`` that is shipped, and beside them
``--model`` with another normaliser put in after training (labelled ``swapped``: a control, no evidence on training).
Rows that do not sum to one are divided by their sum for the measurement only, as in the paper.
"""

import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope import zoo
from sinkscope.analysis import Study

SWAPS = ("softmax1", "sigmoid", "relu")


def measured(model: sk.Model, prompts: sk.Prompts, edits: list[sk.edits.Edit]) -> xr.Dataset:
    """First-token attention of every head, from rows divided by their sum; row sums; loss."""
    tower = model.backend.towers[model.backend.default_tower]
    layers, heads = range(len(tower.attention)), range(max(site.heads for site in tower.attention))
    ds = sk.run(model, prompts, [sk.AttentionMap(layers, heads)], edits, batch_size=8)
    maps = ds["attention"].clip(min=0)
    total = maps.sum("key")
    ds["proxy"] = (maps.isel(key=0) / total.where(total > 1e-8)).mean("query")
    ds["sum"] = total.mean("query")
    ds["loss"] = sk.run(model, prompts, [sk.TokenLoss()], edits, batch_size=8)["token_loss"].mean("query")
    return ds.drop_vars("attention")


with Study(__doc__, paper="gu2025") as study:
    arms: dict[str, tuple[sk.Model, list[sk.edits.Edit]]] = {study.model.id: (study.model, [])}
    for entry in zoo.entries():
        if entry.name.startswith("lm-") and f"zoo:{entry.name}" not in arms:
            arms[f"zoo:{entry.name}"] = (study.load(f"zoo:{entry.name}"), [])
    trained = list(arms)
    arms |= {f"swapped: {name}": (study.model, [sk.SwapNormaliser(name)]) for name in SWAPS}
    rates, sums, losses = [], [], []
    for name, (model, edits) in arms.items():
        prompts = study.texts("prose", n=32, tokens=64, model=model)
        slug = name.replace(": ", "-").replace(":", "-")
        ds = study.reading(slug, lambda m=model, p=prompts, e=edits: measured(m, p, e))
        rates.append((ds["proxy"] > 0.3).mean(["layer", "head"]))
        sums.append(float(ds["sum"].mean()))
        losses.append(ds["loss"])
    labels = xr.Variable("arm", [name.removeprefix("zoo:") for name in arms])
    rate = xr.concat(rates, dim=labels, compat="override", coords="minimal")
    table = sk.metrics.compare(rate, to=rate * 0)
    shown = table["difference"].rename("sink rate").assign_attrs(long_name="sink rate", units="share of heads")
    shown = shown.assign_attrs(model_id=", ".join(trained), n_prompts=rate.sizes["prompt"])
    axes = sk.plot.effect_bars(shown, interval=(table["low"], table["high"]), title="Sink rate by normaliser")
    study.figure(
        axes, "variants", source=shown,
        says="share of heads with mean attention to the first token above 0.3, rows divided by their sum, T = 64; "
        "swapped: another normaliser put in after training; 95 % intervals over prompts",
    )  # fmt: skip

    base = float(table["difference"][0])

    def said(index: int) -> str:
        """A rate with its interval, row sum and loss."""
        row = table.isel(arm=index)
        low, mid, high = (float(row[key]) for key in ("low", "difference", "high"))
        loss = float(losses[index].mean())
        return f"{mid:.1%} [{low:.1%}, {high:.1%}], row sum {sums[index]:.2f}, loss {loss:.2f}"

    claims = {
        "sigmoid": ("Attention operations", "Trained with sigmoid, a model has no sink", "0.44 % against 18.18 %"),
        "relu": ("Guo et al.", "Trained with ReLU attention, a model has no sink", "no sink (picture)"),
        "extra_key": ("Attention biases", "With a learned key the first token is no sink", "Sink_1 = 0.00 %"),
        "gate": ("Qiu et al.", "With gated heads the first token is no sink", "4.8 % against 46.7 % of attention"),
    }
    for option, (figure, claim, paper) in claims.items():
        at = [
            index for index, name in enumerate(trained)
            if getattr(arms[name][0].config, "sinkscope_normaliser", "") == option
            or bool(getattr(arms[name][0].config, f"sinkscope_{option}", False))
        ]  # fmt: skip
        for index in at:
            found = f"{trained[index]}: {said(index)}; {trained[0]}: {said(0)} (n = {rate.sizes['prompt']} prompts)"
            agrees = float(table["high"][index]) < 0.5 * base if np.isfinite(base) and base > 0 else None
            study.claim(figure, claim, paper=paper, found=found, agrees=agrees)
        if not at:
            swapped = (
                f"; {said(len(trained) + SWAPS.index(option))} swapped in after training" if option in SWAPS else ""
            )
            study.claim(figure, claim, paper=paper, found=f"no such model in the zoo{swapped}", agrees=None)
