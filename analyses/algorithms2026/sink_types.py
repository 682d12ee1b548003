"""What the heads with a sink do: nothing, or one message to every token; and at which block sinks begin.

Paper: arXiv 2606.08105, by its abstract. Claims: heads with a sink are of two kinds, no-operations (the sink's value is
short, value ratio up to .2) and broadcasts (full size and the same for every query: ratio from .5, stable rank of the
output up to 1.5). Beside it, after Sun et al. 2024 and Gu et al. 2025: sinks begin behind the block that writes the
massive state. Cost: eight passes over 8 prompts, a minute per language model.
Different here: thresholds are those of the abstract. What a kind is worth is asked by zeroing the output of its heads,
beside as many heads without a sink drawn at random: a no-operation writes little, so little should be lost. Intervals
are over prompts.
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.ticker import MaxNLocator

import sinkscope as sk
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study, need
from sinkscope.methods.sink_heads import sink_heads

KINDS = {"no-operation": "#0072B2", "between": "#999999", "broadcast": "#D55E00"}
RATIO, LOUD, RANK, SOME = 0.2, 0.5, 1.5, 0.2
"""The abstract's thresholds, and the share of a layer's heads with a sink from which on it counts as one with sinks."""


def kinds_of(found: xr.Dataset) -> xr.DataArray:
    """The kind of each head (layer head): that of most prompts, empty where most see no sink."""
    names = ["", *KINDS]
    counts = np.stack([(found["type"].values == name).sum(0) for name in names])
    return found["sink"].isel(prompt=0, drop=True).copy(data=np.array(names)[counts.argmax(0)]).reset_coords(drop=True)


def zeroed(study: Study, prompts: sk.Prompts, kinds: xr.DataArray) -> dict[str, tuple[xr.DataArray, int]]:
    """Change of the loss by prompt with the output of a kind's heads at zero, of as many others; and how many."""
    free = np.argwhere(kinds.values == "")
    sets = {kind: np.argwhere(kinds.values == kind) for kind in KINDS}
    edits: dict[str, list[sk.edits.Edit]] = {}
    for kind, places in sets.items():
        if 0 < len(places) <= len(free):
            others = free[np.random.default_rng(0).permutation(len(free))[: len(places)]]
            edits[kind], edits[f"control {kind}"] = ([sk.AblateHeads(by_layer(each))] for each in (places, others))
        elif len(places):
            edits[kind] = [sk.AblateHeads(by_layer(places))]
    if not edits:
        return {}
    loss = study.run(prompts, [sk.TokenLoss()], edits)["token_loss"].mean("query").reset_coords(drop=True)
    cost = loss - loss.sel(edit="baseline", drop=True)
    return {name: (cost.sel(edit=name, drop=True), len(sets[name.removeprefix("control ")])) for name in edits}


def by_layer(places: np.ndarray) -> dict[int, list[int]]:
    """Heads by layer from rows (layer, head)."""
    return {int(layer): places[places[:, 0] == layer, 1].tolist() for layer in np.unique(places[:, 0])}


def draw(study: Study, found: xr.Dataset, kinds: xr.DataArray, cost: dict[str, tuple[xr.DataArray, int]]) -> None:
    """Heads by value ratio and rank, kinds by layer, and what each kind is worth."""
    figure, panels = plt.subplot_mosaic([["heads", "cost"], ["where"] * 2], figsize=(9.2, 7), layout="constrained")
    left, middle, right = (panels[name] for name in ("heads", "where", "cost"))
    ratio, rank = (found[name].mean("prompt").values for name in ("value_ratio", "output_rank"))
    bottom = np.zeros(kinds.sizes["layer"])
    for kind, colour in KINDS.items():
        which = kinds.values == kind
        left.scatter(ratio[which], rank[which], s=18, alpha=0.7, color=colour, label=f"{kind} ({int(which.sum())})")
        share = which.mean(1)
        middle.bar(np.arange(len(share)), share, bottom=bottom, color=colour, label=kind)
        bottom += share
    for bound in (RATIO, LOUD):
        left.axvline(bound, color="0.5", linestyle=":", linewidth=1)
    left.axhline(RANK, color="0.5", linestyle=":", linewidth=1)
    left.set(xlabel="value of the sink over the median of others", ylabel="stable rank of the head's output",
             title="Heads with a sink")  # fmt: skip
    sk.plot.log_scale(left)
    left.set_xlim(right=1.6 * float(ratio[kinds.values != ""].max(initial=0.5)))  # room for the legend
    left.legend(loc="upper right")
    middle.set(xlabel="layer", ylabel="share of the heads", ylim=(0, 1), title="Where they are")
    middle.xaxis.set_major_locator(MaxNLocator(integer=True))
    names = [name for name in cost if not name.startswith("control")]
    for offset, (label, prefix, colour) in enumerate((("heads of the kind", "", None), ("others", "control ", "0.75"))):
        there = [place for place, name in enumerate(names) if prefix + name in cost]
        for place, name in ((place, names[place]) for place in there):
            made = Estimate.mean(cost[prefix + name][0])
            right.bar(place + 0.4 * offset, made.value, 0.38, color=colour or KINDS[name],
                      yerr=[[made.value - made.low], [made.high - made.value]],
                      label=label if place == there[0] else None)  # fmt: skip
    right.set_xticks(np.arange(len(names)) + 0.2, [f"{name}\n{cost[name][1]} heads" for name in names])
    right.set(ylabel="change of the loss [nat]", title="Output at zero")
    sk.plot.log_scale(right, linear=0.1)
    right.set_ylim(top=3 * right.get_ylim()[1])  # room for the legend, on a logarithmic axis
    right.legend(loc="upper right")
    study.figure(
        figure, "sink_types", source=found,
        says="heads whose mean attention to the first token is above .3 in most prompts; dotted: thresholds of the "
        "abstract; others: as many heads without a sink; whiskers: 95 % intervals over prompts",
    )  # fmt: skip


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw and judge one model."""
    prompts = study.texts("code" if model.id.startswith("zoo:lm-") else "prose", n=8)
    massive = study.run(prompts, [sk.MassiveActivations()])
    found = study.reading("kinds", lambda: sink_heads(model, prompts).assign_attrs(massive.attrs))
    kinds = kinds_of(found)
    sinks = kinds.values != ""
    need(model, bool(sinks.any()), "heads with a sink at the first token; it has none")
    cost = zeroed(study, prompts, kinds)
    draw(study, found, kinds, cost)

    counts = {kind: int((kinds.values == kind).sum()) for kind in KINDS}
    in_prompt = (found["type"] == "no-operation").sum(["layer", "head"]) / found["sink"].sum(["layer", "head"])
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    study.claim(
        "abstract", "Heads with a sink are of two kinds", paper="no-operation and broadcast",
        number=Estimate.mean(in_prompt, ".0%"), found=f"of sink heads are no-operations by prompt; {told} of "
        f"{int(sinks.sum())} sink heads in {sinks.size}", agrees=counts["no-operation"] > 0 and counts["broadcast"] > 0,
    )  # fmt: skip
    name = "no-operation"
    both = name in cost and f"control {name}" in cost
    less = Estimate.paired(cost[name][0], cost[f"control {name}"][0], "+.3f", "nat") if both else None
    study.claim(
        "controls", "No-operations cost less than as many heads without a sink", paper="", number=less,
        found="their output at zero, less that of the others" if both else f"{told}; no set of as many others",
        agrees=less.below(0.0) if less else "no head is one, or there are too few others",
    )  # fmt: skip
    stages = sk.metrics.massive_stages(massive)
    share = sinks.mean(1)
    begins = int(np.argmax(share >= SOME)) if (share >= SOME).any() else -1
    first = int(stages["first"].min()) if stages.sizes["stage"] else -1
    by_prompt = found["sink"].mean("head").reset_coords(drop=True)
    parts = slice(0, first + 1), slice(first + 1, None)
    before, behind = (100 * by_prompt.isel(layer=part).mean("layer") for part in parts)
    more = Estimate.paired(behind, 2 * before, "+.0f", "points")
    study.claim(
        "emergence", "Sinks begin behind the block that writes the massive activation", paper="", number=more,
        found=f"share of heads with a sink behind the block, less twice that before it: {Estimate.mean(behind, '.0f')} "
        f"and {Estimate.mean(before, '.0f')} %; a massive activation stands from block {first} on "
        f"({stages.sizes['stage']} stages); {SOME:.0%} of the heads have a sink from layer {begins} on",
        agrees=more.above(0.0) if min(first, begins) >= 0
        else "no massive activation, or no layer with so many sinks",
    )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="algorithms2026", model=LANGUAGE_MODELS) as study:
        study.for_each(judge)
