"""What gated heads let through: the values of their gates, the first token's share behind them, gates replaced.

Paper: Qiu et al. 2025. Claims: gates are sparse, most values near 0 (mean .116); what matters is that they depend on
the token; a gated model spends little attention on the first token (.048 against .467).
Cost: seven passes over 32 prompts, seconds per model.
Different here: a language model of 1.5 million parameters after 1000 steps, with a gate per head; whether training with
gates leaves a sink is judged in ``gu2025/variants.py`` beside a plain model of the same step, whose attention on the
first token is a line here. A fresh gate is .5. Behind the gate the first token's share is that of all the head lets
through, ``sum g A / sum g``; its control has gates of another prompt's token at the same position. Gates replaced: the
mean over other prompts takes the token out, noise changes as much and leaves it in.
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope import zoo
from sinkscope.analysis import Estimate, Study, need, with_intervals
from sinkscope.engine.run import find_tower
from sinkscope.methods.gates import gate_edits, gate_values
from sinkscope.metrics import effective_attention

PLAIN = "lm-python-softmax"
SHARES = ("of attention", "behind the gates", "behind others' gates")
EDITS = {"one": "no gate", "mean": "mean", "shuffled": "another\ntoken's", "noise": "noise"}
FRESH = 0.5
"""A gate before training."""


def shares(maps: xr.DataArray, gate: xr.DataArray) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """The first token's share in each head: of attention, behind the gates, and behind those of another prompt.

    Rows from the second on are taken, as the first sees nothing else.
    """
    weights = np.nan_to_num(maps.transpose("prompt", "layer", "head", "query", "key").values)
    gates = gate.transpose("prompt", "layer", "head", "query").values
    found = [weights[..., 1:, 0].mean(-1)]
    for own in (gates, np.roll(gates, -1, axis=0)):
        passed = effective_attention(weights, own)[..., 1:, :]
        found.append(passed[..., 0].sum(-1) / passed.sum((-2, -1)))
    return {name: (("prompt", "layer", "head"), values) for name, values in zip(SHARES, found, strict=True)}


def measured(study: Study, model: sk.Model) -> xr.Dataset:
    """Gates, the first token's share before and behind them, and losses under the edits."""
    prompts = study.texts("code")
    tower = find_tower(model, None)
    heads = max(site.heads for site in tower.attention)
    reading = sk.run(model, prompts, [sk.AttentionMap(range(tower.depth), range(heads))])
    gates = gate_values(model, prompts)
    edited = gate_edits(model, prompts)["loss"]
    return gates.assign({**shares(reading["attention"], gates["gate"]), "loss": edited}).assign_attrs(reading.attrs)


def draw(study: Study, ds: xr.Dataset, cost: xr.DataArray, plain: float) -> None:
    """Gate values by layer, their means by head, the first token's share, what replaced gates cost."""
    figure, ((values, heads), (first, bars)) = plt.subplots(2, 2, figsize=(9.6, 7.6), layout="constrained")
    count = ds["gate_count"].sum("head")
    part, edges = (count / count.sum("bin")).values, np.linspace(0, 1, ds.sizes["bin"] + 1)
    for layer, colour in enumerate(plt.get_cmap("viridis")(np.linspace(0, 0.9, len(part)))):
        values.stairs(part[layer], edges, color=colour, label=f"layer {layer}", linewidth=1.4)
    values.axvline(FRESH, color="black", linestyle=":", linewidth=1)
    values.set(xlabel="gate", ylabel="share of the gates", title="Values of the gates")
    values.legend()
    mean = ds["gate"].mean(["prompt", "query"])
    sk.plot.sink_map(mean, title="Mean gate of each head", label="mean gate", ax=heads)
    by_layer = xr.concat([ds[name].mean("head") for name in SHARES], xr.IndexVariable("what", list(SHARES)))
    table = with_intervals(by_layer)
    sk.plot.layer_profile(
        table["difference"].transpose("what", "layer"), band=(table["low"], table["high"]), ylabel="share",
        title="The first token's share", ax=first,
    )  # fmt: skip
    first.axhline(plain, color="black", linestyle=":", linewidth=1)
    first.set_ylim(0, None)
    shown = with_intervals(cost.sel(edit=list(EDITS)))
    sk.plot.grouped_bars(
        shown["difference"].assign_attrs(long_name="change of the loss", units="nat"),
        interval=(shown["low"], shown["high"]), title="Gates replaced, all at once", ax=bars,
    )  # fmt: skip
    bars.set_xticks(range(len(EDITS)), list(EDITS.values()))
    study.figure(
        figure, "gates", source=ds,
        says="above, dotted: a gate before training; below, dotted: mean attention on the first token of a plain model "
        "of the same step (training curve, mean over all rows); 95 % intervals over prompts",
    )  # fmt: skip


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw and judge one model."""
    need(model, getattr(model.config, "sinkscope_gate", False), "a model trained with gates")
    ds = study.reading("gates", lambda: measured(study, model))
    cost = ds["loss"] - ds["loss"].sel(edit="same", drop=True)
    step = zoo.curve(study.subject)[-1]["step"]
    plain = {row["step"]: row for row in zoo.curve(PLAIN)}[step]["alpha_mean"]
    draw(study, ds, cost, plain)

    count = ds["gate_count"].sum(["layer", "head"])
    low = [float(count.where(count["bin"] < bound).sum() / count.sum()) for bound in (0.1, 0.25)]
    gate = Estimate.mean(ds["gate"].mean(["layer", "head", "query"]))
    study.claim(
        "gate scores", "Gates are sparse: most values are near 0", paper="mean .116", number=gate,
        found=f"mean gate, {FRESH} before training; {low[0]:.0%} of the gates under .1, {low[1]:.0%} under .25",
        agrees=gate.below(0.25) if low[1] > 0.5 else False,
    )  # fmt: skip
    attention, behind, other = (ds[name].mean(["layer", "head"]) for name in SHARES)
    less = Estimate.paired(behind, other, "+.4f")
    study.claim(
        "effective attention", "Gates are lower where a head looks at the first token", paper="", number=less,
        found=f"the first token's share behind the gates, less that behind another prompt's; {Estimate.mean(behind)} "
        f"beside {Estimate.mean(attention)} of attention (plain model {plain:.3g} at step {step})",
        agrees=less.below(0.0),
    )  # fmt: skip
    token = Estimate.paired(cost.sel(edit="mean", drop=True), cost.sel(edit="noise", drop=True), "+.3f", "nat")
    told = ", ".join(f"{name} {Estimate.mean(cost.sel(edit=name, drop=True), '+.2f')}" for name in EDITS)
    study.claim(
        "gating variants", "It matters that a gate depends on its token", paper="input-dependent gates are best",
        number=token, found=f"loss with mean gates less that with as much noise; {told} nat", agrees=token.above(0.0),
    )  # fmt: skip
    same = ds["loss"].sel(edit="same", drop=True).reset_coords(drop=True)
    own = sk.run(model, study.texts("code"), [sk.TokenLoss()])["token_loss"].mean("query").reset_coords(drop=True)
    changed = Estimate.paired(same, own, "+.1e", "nat")
    study.claim(
        "control", "Gates put back as they are change nothing", paper="", number=changed,
        found=f"change of the loss, {float(own.mean()):.4f} nat without edits",
        agrees=max(abs(changed.low), abs(changed.high)) < 1e-3,
    )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="qiu2025", model="zoo:lm-python-gate") as study:
        study.for_each(judge)
