"""Gates of gated attention: how their values are spread, and what they leave of the attention on the first token.

Paper: Qiu et al. 2025 (arXiv 2505.06708): attention on the first token by layer, and the histogram of the gates.
Claims: gates are sparse (mean about .12, most near 0); a model trained with them attends little to its first token
(.048 against .467) and has no massive activation (94 against 1053).
Cost: two passes over 16 prompts, seconds; training curves are shipped.
Different here: language models of 1.5 million parameters, element-wise gates (``zoo:lm-python-gate-elements``), at step
1000 of the recipe, where the plain softmax model of the same seed already has a sink; one seed, so no interval over
runs. Effective attention is a weight times the mean gate of its head at the query, over the sum of such weights.
Attention on the first token is the mean over rows from the second on. Intervals are over prompts.
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from recipes import emergence
from sinkscope import zoo
from sinkscope.analysis import Estimate, Study, need, with_intervals
from sinkscope.engine.run import find_tower
from sinkscope.methods.gates import gate_values

RUNS = {
    "softmax": emergence.BASE,
    "one gate a head": "lm-python-gate",
    "one gate an element": "lm-python-gate-elements",
}


def measured(model: sk.Model, prompts: sk.Prompts) -> xr.Dataset:
    """Gates, and attention to the first token by layer, as it is and as the gates leave it: (prompt kind layer)."""
    sites, gates = find_tower(model, None).attention, gate_values(model, prompts)
    maps = sk.run(model, prompts, [sk.AttentionMap(range(len(sites)), range(max(s.heads for s in sites)))])["attention"]
    weights = np.nan_to_num(maps.transpose("prompt", "layer", "head", "query", "key").values)
    passed = sk.metrics.effective_attention(weights, gates["gate"].values)
    first = [part[..., 1:, 0].sum((2, 3)) / part[..., 1:, :].sum((2, 3, 4)) for part in (weights, passed)]
    parked, kept = weights[..., 1:, 0], gates["gate"].values[..., 1:]
    related = [np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in zip(parked, kept, strict=True)]
    return gates.assign(
        first=(("prompt", "kind", "layer"), np.stack(first, 1)), related=("prompt", related)
    ).assign_coords(kind=["attention", "attention times gate"]).assign_attrs(n_prompts=len(prompts))  # fmt: skip


def draw(study: Study, ds: xr.Dataset) -> None:
    """Histogram of the gates, attention to the first token by layer, and along training."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13.5, 4), layout="constrained")
    share = ds["gate_count"].sum("head")
    share = share / share.sum("bin")
    for layer in range(share.sizes["layer"]):
        colour = plt.get_cmap("viridis")(layer / max(1, share.sizes["layer"] - 1))
        left.step(share["bin"], share[layer], where="mid", color=colour, label=f"layer {layer}")
    left.set(xlabel="gate", ylabel="share of the gates", title="Values of the gates", ylim=(0, None))
    left.legend()
    table = with_intervals(ds["first"])
    sk.plot.layer_profile(
        table["difference"].transpose("kind", "layer"), band=(table["low"], table["high"]),
        ylabel="mean attention on the first token", title="First token", ax=middle,
    )  # fmt: skip
    for label, name in RUNS.items():
        rows = zoo.curve(name, 0)
        right.plot([row["step"] for row in rows], [row["alpha_mean"] for row in rows], label=label)
    right.set(xlabel="step", ylabel="mean attention on the first token", title="Along training, seed 0")
    right.set_xlim(0, max(row["step"] for row in zoo.curve(RUNS["one gate an element"], 0)))
    right.legend()
    study.figure(
        figure, "gates", source=ds,
        says="element-wise gates over all heads and tokens; times the gate: each weight times the mean gate of its "
        "head at the query, over the sum of these; bands: 95 % intervals over prompts",
    )  # fmt: skip


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw and judge one model."""
    ds = study.reading("gates", lambda: measured(model, study.texts("code", n=16)))
    need(model, bool(abs(ds["gate"] - 1).max() > 1e-3), "gates behind its heads; it has none")
    draw(study, ds)
    count = ds["gate_count"].sum(["layer", "head"])
    shut = float(count.where(count["bin"] < 0.1).sum() / count.sum())
    mean = Estimate.mean(ds["gate"].mean(["layer", "head", "query"]), ".3f")
    study.claim(
        "histogram", "Gates are sparse", paper="mean about .116, most near 0", number=mean,
        found=f"mean gate; {shut:.0%} of them below .1", agrees=mean.below(0.3) if shut > 0.3 else False,
    )  # fmt: skip
    own, passed = (ds["first"].sel(kind=kind, drop=True).mean("layer") for kind in ds["kind"].values)
    less = Estimate.paired(passed, own, "+.4f")
    study.claim(
        "effective attention", "What the gates let through holds less of the first token than the weights do", paper="",
        number=less, found=f"from {float(own.mean()):.3f}; correlation of a row's gate with its weight on the first "
        f"token {Estimate.mean(ds['related'], '+.2f')}", agrees=less.below(0.0),
    )  # fmt: skip
    named = model.id.removeprefix("zoo:")
    if named not in zoo.curves():
        return
    step = min(zoo.curve(named)[-1]["step"], zoo.curve(emergence.BASE, 0)[-1]["step"])
    gated, plain = ({row["step"]: row for row in zoo.curve(name, 0)}[step] for name in (named, emergence.BASE))
    for claim, key, paper in (
        ("Trained with gates the first token gets less attention", "alpha_mean", ".048 against .467"),
        ("Trained with gates the largest activation is smaller", "massive", "94 against 1053"),
    ):
        study.claim(
            "table", claim, paper=paper, found=f"{gated[key]:.3g} against {plain[key]:.3g} at step {step}, one seed",
            agrees=gated[key] < plain[key] / 2,
        )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="qiu2025", model="zoo:lm-python-gate-elements") as study:
        study.for_each(judge)
