"""Secondary sinks: which tokens, at which layer they begin and how long they live, and their norms.

Paper: Wong et al. 2025, figures 1, 2 and 7. Claims: some later tokens become sinks in the middle layers, at a few
discrete (first layer, lifetime) pairs; their residual norm is large, below the primary's, their keys and values are
small; they draw attention, less than the primary.
Cost: two passes per prompt, some minutes per language model.
Different here: models of up to 19 layers have none by the paper's thresholds, so they scale with depth, and a state
must be 3 times the layer's median norm; sinks are looked for in each stage of the primary one. A model without any is
said to have none, and the other claims are not judged on it. A constructed model checks the detector: it shows that
what was built in is found, is no evidence about models and counts as no claim. The control for the attention score is
the nearest token on either side that is no sink. Intervals are over prompts, of norms over those with a secondary sink.
"""

import case
import constructed
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study, together
from sinkscope.methods import secondary_sinks
from sinkscope.plot.naming import drop_names
from sinkscope.plot.theme import SEQUENTIAL


def draw(study: Study, chosen: case.Case, norms: xr.Dataset, levels: xr.DataArray) -> None:
    """Norms by layer, levels, and the attention that the sinks get."""
    kind = chosen.found["kind"].values == "secondary"
    life, score, beside = (chosen.found[name].values[kind] for name in ("lifetime", "score", "score_beside"))
    figure, axes = plt.subplots(2, 2, figsize=(9.6, 7.6))
    for ax, name in zip(axes.ravel(), ("residual", "value"), strict=False):
        shown = norms[name].assign_coords(group=["primary", "secondary", "rest"])
        sk.plot.norm_profile(shown, title=f"Norm of the {name} vector", ax=ax)
    drop_names(axes[0, 0])  # its neighbour says them
    grid = levels.transpose("lifetime", "start").values
    top = max(int(life.max()) + 2, 6)
    image = axes[1, 0].imshow(np.log1p(grid[:top]), origin="lower", aspect="auto", cmap=SEQUENTIAL)
    figure.colorbar(image, ax=axes[1, 0], label="log(1 + tokens)")
    axes[1, 0].set(xlabel="first layer", ylabel="lifetime [layers]", title=f"Sink levels, {int(kind.sum())} tokens")
    spread = 0.12 * (np.arange(len(life)) / max(len(life) - 1, 1) - 0.5)
    axes[1, 1].scatter(life + spread, beside, s=16, color="#7F7F7F", label="nearest token that is no sink")
    axes[1, 1].scatter(life + spread, score, s=16, color="#D55E00", label="secondary sink")
    axes[1, 1].set(xlabel="lifetime [layers]", ylabel="mean attention", title="Attention they get")
    axes[1, 1].set_ylim(bottom=0, top=1.3 * float(np.nanmax(score)))
    axes[1, 1].set_xticks(sorted(set(life.tolist())))
    axes[1, 1].legend()
    study.figure(
        figure, "levels_and_norms--constructed" if chosen.constructed else "levels_and_norms", source=chosen.found,
        says="tokens with |cosine| above 0.9 to the primary sink's state, relative rule; attention over the layers "
        "that read them" + ("; a constructed model" if chosen.constructed else ""),
    )  # fmt: skip


def judge_case(study: Study, chosen: case.Case) -> None:
    """Draw and judge a model that has secondary sinks."""
    found, model = chosen.found, chosen.model
    probes = [sk.ResidualNorm(), sk.KeyNorm(), sk.ValueNorm()]
    reading = sk.run(model, chosen.prompts, probes, batch_size=4)
    norms, levels = secondary_sinks.norm_profiles(reading, found), secondary_sinks.levels(found)
    draw(study, chosen, norms, levels)
    kind = found["kind"].values == "secondary"
    score, beside = (found[name].values[kind] for name in ("score", "score_beside"))
    pairs = [(int(s), int(k), int(levels.sel(start=s, lifetime=k))) for s, k in np.argwhere(levels.values)]
    pairs.sort(key=lambda pair: -pair[2])
    frequent = kind & np.any(
        [(found["start"].values == s) & (found["lifetime"].values == k) for s, k, _ in pairs[:6]], axis=0
    )
    most = Estimate.resampled(
        lambda drawn: frequent[drawn].sum() / kind[drawn].sum() if kind[drawn].any() else np.nan, len(kind), ".0%"
    )
    study.claim(
        "Fig. 2", "A few discrete levels", paper=chosen.paper("(22, 23) x 114, (22, 22) x 98, (22, 24) x 45"),
        number=most, found=f"of {int(kind.sum())} sinks in the six most frequent of {len(pairs)} levels (first layer, "
        f"lifetime): {', '.join(f'({s}, {k}) x {c}' for s, k, c in pairs[:6])}", agrees=most.above(0.8),
    )  # fmt: skip
    judge_norms(study, chosen, reading, norms)
    more = Estimate.mean(xr.DataArray(score - beside, dims="sink"), "+.3f")
    study.claim(
        "Section 3", "They draw attention (detection does not look at it)", paper=chosen.paper("less than the primary"),
        number=more, found=f"{float(np.nanmean(score)):.3f} less that of the nearest token that is no sink",
        agrees=more.above(0.0),
    )  # fmt: skip


def judge_norms(study: Study, chosen: case.Case, reading: xr.Dataset, norms: xr.Dataset) -> None:
    """Whether the sinks' states are large and their keys and values small, behind the layer where most begin."""
    found, kind = chosen.found, chosen.found["kind"].values == "secondary"
    layer = min(int(np.median(found["start"].values[kind])) + 1, norms.sizes["layer"] - 1)
    parts = [
        secondary_sinks.norm_profiles(reading.isel(prompt=[index]), found.isel(prompt=[index])).isel(layer=layer)
        for index in np.flatnonzero(kind.any(1)).tolist()
    ]
    by_prompt = xr.concat([part.drop_vars("n") for part in parts], "prompt")
    groups = {group: by_prompt.sel(group=group, drop=True) for group in ("primary", "secondary", "others")}
    against, of_primary = groups["secondary"] / groups["others"], groups["secondary"] / groups["primary"]
    told = "; ".join(
        f"{name} {', '.join(f'{float(norms[name].sel(group=group)[layer]):.1f}' for group in groups)}"
        for name in ("residual", "key", "value")
    )
    told = f"mean norms of primary, secondary, others: {told}; {int(kind.sum())} sinks"
    large, below = Estimate.times(against["residual"], ".1f"), Estimate.times(of_primary["residual"], ".2f")
    study.claim(
        "Fig. 1", "Large residual norm, below the primary's", paper=chosen.paper("picture"), number=large,
        found=f"times that of the others, {below} times the primary's, in prompts with a secondary sink; layer "
        f"{layer}, {told}", agrees=together([large.above(2.0), below.below(1.0)]),
    )  # fmt: skip
    if not chosen.constructed:  # nothing was built into its keys
        small = [Estimate.times(against[name], ".2f") for name in ("key", "value")]
        study.claim(
            "Fig. 1", "Small keys and values", paper="picture", number=small[0],
            found=f"times the key of the others, {small[1]} times the value; layer {layer}",
            agrees=together([each.below(1.0) for each in small]),
        )  # fmt: skip


def judge(study: Study, model: sk.Model) -> None:
    """Look for secondary sinks, and go on where there are some."""
    chosen = case.look(study, model)
    per_prompt = (chosen.found["kind"] == "secondary").sum("key").reset_coords(drop=True).astype(float)
    count = Estimate.mean(per_prompt, ".2f")
    study.claim(
        "Table of counts", "Later tokens become sinks in the middle layers", paper="262 in 300 texts (14B)",
        number=count, found=f"secondary sinks per prompt; {case.describe(chosen.found)}", agrees=count.above(0.0),
    )  # fmt: skip
    if chosen.secondary:
        judge_case(study, chosen)


def check(study: Study) -> None:
    """Whether the detector finds what was built into the constructed model."""
    chosen = case.built(study)
    kind = chosen.found["kind"].values == "secondary"
    planted = {(t, start, end - start) for t, start, _, end in constructed.LEVELS}
    ids = np.array([row.tolist() for row in chosen.prompts.ids])
    cells = (ids[kind], chosen.found["start"].values[kind], chosen.found["lifetime"].values[kind])
    hits = set(zip(*(cell.tolist() for cell in cells), strict=True))
    tokens = int(np.isin(ids, [t for t, *_ in planted]).sum())
    study.claim(
        "Method", "The detector finds what was built in, with its level, and nothing else", paper="",
        found=f"{int(kind.sum())} found of {tokens} built in, token and level (first layer, lifetime) right in "
        f"{len(hits & planted)} of {len(hits)} kinds (n = 1 model)",
        agrees=hits == planted and int(kind.sum()) == tokens,
    )  # fmt: skip
    judge_case(study, chosen)


if __name__ == "__main__":
    with Study(__doc__, paper="wong2025", model=LANGUAGE_MODELS) as study:
        study.for_each(judge)
        check(study)
