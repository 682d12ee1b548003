"""Which normaliser has a sink: softmax, softmax-off-by-one, sigmoid, ReLU, a learned extra key, gated heads.

Paper: Gu et al. 2025, tables on attention biases and attention operations. Claims: trained without a sum that has to be
one (sigmoid) a model has no sink; with a learned key that carries no value (key bias) that key is the sink and the
first token is none. Qiu et al. 2025 say the same of gated heads.
Cost: one pass per model, seconds.
Different here: the zoo's language models of 1.5 million parameters, every ``zoo:lm-*`` that is shipped, each judged
against ``--model`` at the same optimiser step (from its training curve, held-out code). Beside them ``--model`` with
another normaliser put in after training (``swapped``: a control, no evidence on training). Sigmoid and ReLU weights are
divided by their sum over the row for the measurement only, as in the paper.
"""

import json

import xarray as xr

import sinkscope as sk
from sinkscope import zoo
from sinkscope.analysis import Study

SWAPS = ("softmax1", "sigmoid", "relu")


def measured(model: sk.Model, prompts: sk.Prompts, edits: list[sk.edits.Edit]) -> xr.Dataset:
    """First-token attention of every head, row sums and loss."""
    tower = model.backend.towers[model.backend.default_tower]
    layers, heads = range(len(tower.attention)), range(max(site.heads for site in tower.attention))
    ds = sk.run(model, prompts, [sk.AttentionMap(layers, heads)], edits, batch_size=8)
    total, first = ds["attention"].sum("key"), ds["attention"].isel(key=0)
    normaliser = edits[0].to_dict()["kind"] if edits else getattr(model.config, "sinkscope_normaliser", "softmax")
    ds["first"] = (first / total.where(total > 1e-8) if normaliser in ("sigmoid", "relu") else first).mean("query")
    ds["sum"] = total.mean("query")
    ds["loss"] = sk.run(model, prompts, [sk.TokenLoss()], edits, batch_size=8)["token_loss"].mean("query")
    return ds.drop_vars("attention")


def at_equal_step(name: str, base: str, otherwise: float) -> tuple[int, float]:
    """How long a zoo model was trained, and the sink rate another one had by then; ``otherwise`` without its curve."""
    paths = [zoo.path(each) / "curve.json" for each in (name, base) if each.startswith("zoo:")]
    own, *rest = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
    before = [row["sink_rate"] for row in (rest[0] if rest else []) if row["step"] <= own[-1]["step"]]
    return int(own[-1]["step"]), before[-1] if before else otherwise


with Study(__doc__, paper="gu2025") as study:
    arms: dict[str, tuple[sk.Model, list[sk.edits.Edit]]] = {study.model.id: (study.model, [])}
    for entry in zoo.entries():
        if entry.name.startswith("lm-") and f"zoo:{entry.name}" not in arms:
            arms[f"zoo:{entry.name}"] = (study.load(f"zoo:{entry.name}"), [])
    trained = list(arms)
    arms |= {f"swapped: {name}": (study.model, [sk.SwapNormaliser(name)]) for name in SWAPS}
    rates, means = [], []
    for name, (model, edits) in arms.items():
        prompts = study.texts("prose", n=32, tokens=64, model=model)
        slug = name.replace(": ", "-").replace(":", "-")
        ds = study.reading(slug, lambda m=model, p=prompts, e=edits: measured(m, p, e))
        rates.append((ds["first"] > 0.3).mean(["layer", "head"]))
        means.append([float(ds[key].mean()) for key in ("first", "sum", "loss")])
    labels = xr.Variable("arm", [name.removeprefix("zoo:") for name in arms])
    rate = xr.concat(rates, dim=labels, compat="override", coords="minimal")
    table = sk.metrics.compare(rate, to=rate * 0)
    shown = table["difference"].assign_attrs(long_name="sink rate", units="share of heads")
    shown = shown.assign_attrs(model_id=", ".join(trained), n_prompts=rate.sizes["prompt"])
    axes = sk.plot.effect_bars(shown, interval=(table["low"], table["high"]), title="Sink rate by normaliser")
    study.figure(
        axes, "variants", source=shown,
        says="share of heads with mean attention to the first token above 0.3, T = 64; swapped: another normaliser put "
        "in after training; 95 % intervals over prompts",
    )  # fmt: skip

    def said(index: int) -> str:
        """A rate with its interval, mean attention, row sum and loss."""
        low, mid, high = (float(table[key][index]) for key in ("low", "difference", "high"))
        first, total, loss = means[index]
        return f"{mid:.1%} [{low:.1%}, {high:.1%}], attention {first:.3f}, row sum {total:.2f}, loss {loss:.2f}"

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
            step, base = at_equal_step(trained[index], trained[0], float(table["difference"][0]))
            found = f"{trained[index]}, {step} steps: {said(index)}; {trained[0]} at that step {base:.1%}"
            agrees = float(table["high"][index]) < 0.5 * base if base > 0 else None
            study.claim(figure, claim, paper=paper, found=f"{found} (n = {rate.sizes['prompt']})", agrees=agrees)
        if not at:
            swap = f"; {said(len(trained) + SWAPS.index(option))} swapped in" if option in SWAPS else ""
            study.claim(figure, claim, paper=paper, found=f"no such model in the zoo{swap}", agrees=None)
