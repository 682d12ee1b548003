"""Scaling the attention to the first token in the early, middle and late layers (Han et al. 2025, Fig. 4).

Claim: shallow and middle layers respond most to scaling the first token, deep layers little. The paper reads task
accuracy of Llama-3.1-8B over gamma (``han2025/layer_groups.py`` does so on tasks); here the loss per token of held-out
text, each gamma against the model without an edit. Checks of this project: the first token hidden (gamma 0) in one
group, against a random token of each prompt; in the figure two random bands: a random token scaled in all layers, and
the first token in a random third of the heads of every layer, as many as a group of layers has. Cost: one pass per
gamma and arm; five minutes per language model.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from common import texts

import sinkscope as sk
from sinkscope.analysis import (
    DRAWS,
    LANGUAGE_MODELS,
    Estimate,
    Study,
    add_random_bands,
    need,
    random_tokens,
    with_intervals,
)

GAMMAS = [0.0, 0.25, 0.5, 2.0, 4.0]


def random_arms(model: sk.Model, tokens: list[xr.DataArray]) -> dict[str, list[sk.edits.Edit]]:
    """A random token scaled in all heads, and the first token scaled in a random third of the heads of each layer."""
    heads = min(site.heads for site in model.backend.towers[model.backend.default_tower].attention)
    edits: dict[str, list[sk.edits.Edit]] = {}
    for draw, token in enumerate(tokens):
        some = np.random.default_rng(draw).choice(heads, max(1, round(heads / 3)), replace=False).tolist()
        for gamma in GAMMAS:
            edits[f"random token {draw}|{gamma:g}"] = [sk.ScaleKeys(gamma, keys=token)]
            edits[f"random heads {draw}|{gamma:g}"] = [sk.ScaleKeys(gamma, heads=some)]
    return edits


def judge(study: Study, model: sk.Model) -> None:
    """Scale, compare, draw."""
    need(model, model.is_causal, "a decoder, whose loss per token it reads")
    prompts = texts(study)
    blocks = np.arange(len(model.backend.towers[model.backend.default_tower].attention))
    groups = dict(zip(("early", "middle", "late"), np.array_split(blocks, 3), strict=True))
    tokens = random_tokens(prompts, 1 if study.quick else DRAWS)
    edits: dict[str, list[sk.edits.Edit]] = {
        f"{group}|{gamma:g}": [sk.ScaleKeys(gamma, layers=layers.tolist())]
        for group, layers in groups.items() for gamma in GAMMAS
    }  # fmt: skip
    edits |= {f"{group}|random": [sk.MaskKeys(tokens[0], layers=layers.tolist())] for group, layers in groups.items()}
    ds = study.run(prompts, [sk.TokenLoss()], edits | random_arms(model, tokens))
    loss = ds["token_loss"].mean("query").reset_coords(drop=True)
    effect = loss.drop_sel(edit="baseline") - loss.sel(edit="baseline", drop=True)
    by_gamma = by_arm(effect, list(groups), "layers")
    size = abs(by_gamma).mean("gamma")
    for group in ("early", "middle"):
        more = Estimate.paired(size.sel(layers=group, drop=True), size.sel(layers="late", drop=True), "+.3g", "nat")
        study.claim(
            "Fig. 4", f"The {group} layers respond more to scaling the first token than the late ones", number=more,
            paper="deep layers (22 to 31 of 32) change accuracy little", agrees=more.above(0.0),
            found="mean change of the loss either way over gammas; " + ", ".join(
                f"{name} {float(size.sel(layers=name).mean()):.3g}" for name in groups
            ),
        )  # fmt: skip
    for group, layers in groups.items():
        hidden = effect.sel(edit=f"{group}|0", drop=True)
        less = Estimate.paired(hidden, effect.sel(edit=f"{group}|random", drop=True), "+.3g", "nat")
        study.claim(
            "Fig. 4", f"The first token hidden in the {group} layers costs more than a random one", paper="",
            number=less, found=f"layers {layers[0]} to {layers[-1]}; {float(hidden.mean()):+.3g} alone",
            agrees=less.above(0.0),
        )  # fmt: skip
    draw(
        study,
        ds,
        by_gamma,
        by_arm(effect, [f"random {what} {i}" for what in RANDOM for i in range(len(tokens))], "draw"),
    )


RANDOM = ("token", "heads")


def by_arm(effect: xr.DataArray, names: list[str], dim: str) -> xr.DataArray:
    """Return effects by arm and gamma: dims (arm, gamma, prompt)."""
    parts = [effect.sel(edit=[f"{name}|{g:g}" for g in GAMMAS]).assign_coords(edit=GAMMAS) for name in names]
    return xr.concat(parts, xr.Variable(dim, names)).rename(edit="gamma")


def draw(study: Study, ds: xr.Dataset, groups: xr.DataArray, controls: xr.DataArray) -> None:
    """Draw groups of layers with intervals over prompts, and the random arms with the range of their draws."""
    spread = with_intervals(groups)
    drawn = {
        f"random {what}": controls.sel(draw=[name for name in controls["draw"].values if what in name]).mean("prompt")
        for what in RANDOM
    }
    middle, edges = add_random_bands(spread["difference"], (spread["low"], spread["high"]), drawn, "layers")
    middle, low, high = (with_plain(each) for each in (middle, *edges))
    middle = sk.plot.described(middle.assign_attrs(units="nat", long_name="change of the loss"), ds)
    axes = sk.plot.sweep_curve(
        middle, interval=(low, high), title=f"{study.subject}: first token scaled by layer group"
    )
    says = (
        "change of the loss per token; gamma = 1: no edit; bands: 95% intervals over prompts, grey: range of the draws"
    )
    study.figure(axes, "gamma_by_layer_group", source=middle, says=says)


def with_plain(curve: xr.DataArray) -> xr.DataArray:
    """Put the model without an edit, which changes nothing, at gamma = 1."""
    none = xr.zeros_like(curve.isel(gamma=[0])).assign_coords(gamma=[1.0])
    return xr.concat([curve, none], "gamma").sortby("gamma")


if __name__ == "__main__":
    with Study(__doc__, paper="han2025", model=LANGUAGE_MODELS) as study:
        study.for_each(judge)
