"""Scaling the attention to the first token in the early, middle and late layers (Han et al. 2025, Fig. 4).

Claim: shallow and middle layers respond most to scaling the first token, deep layers little. The paper reads task
accuracy of Llama-3.1-8B over gamma (``han2025/layer_groups.py`` does so on tasks); here the loss per token of held-out
text, each gamma against the model without an edit. Checks of this project: the first token hidden (gamma 0) in one
group, against a random token of each prompt. Cost: one pass per gamma and group; two minutes per language model.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from common import texts

import sinkscope as sk
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study, need

GAMMAS = [0.0, 0.25, 0.5, 2.0, 4.0]


def judge(study: Study, model: sk.Model) -> None:
    """Scale, compare, draw."""
    need(model, model.is_causal, "a decoder, whose loss per token it reads")
    prompts = texts(study)
    blocks = np.arange(len(model.backend.towers[model.backend.default_tower].attention))
    groups = dict(zip(("early", "middle", "late"), np.array_split(blocks, 3), strict=True))
    plain = study.run(prompts, [sk.KeyMass(), sk.TokenLoss()])
    first = (xr.DataArray(np.arange(plain.sizes["key"]), dims="key") == 0) & (plain["token_role"] != "pad")
    other = sk.metrics.matched_controls(first, seed=0)
    edits: dict[str, list[sk.edits.Edit]] = {
        f"{group}|{gamma:g}": [sk.ScaleKeys(gamma, layers=layers.tolist())]
        for group, layers in groups.items() for gamma in GAMMAS
    }  # fmt: skip
    edits |= {f"{group}|random": [sk.MaskKeys(other, layers=layers.tolist())] for group, layers in groups.items()}
    ds = study.run(prompts, [sk.TokenLoss()], edits)
    loss = ds["token_loss"].mean("query").reset_coords(drop=True)
    effect = loss.drop_sel(edit="baseline") - loss.sel(edit="baseline", drop=True)
    by_gamma = xr.concat(
        [effect.sel(edit=[f"{group}|{g:g}" for g in GAMMAS]).assign_coords(edit=GAMMAS) for group in groups],
        xr.Variable("layers", list(groups)),
    ).rename(edit="gamma")
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
    curve = by_gamma.mean("prompt").rename(layers="layer")
    curve = xr.concat([curve, xr.zeros_like(curve.isel(gamma=[0])).assign_coords(gamma=[1.0])], "gamma")
    curve = curve.sortby("gamma").assign_attrs(units="nat", long_name="change of the loss")
    curve = sk.plot.described(curve, ds)
    lines = sk.plot.sweep_curve(curve, title=f"{model.id}: first token scaled by layer group")
    study.figure(lines, "gamma_by_layer_group", source=curve, says="change of the loss per token; gamma = 1: no edit")


if __name__ == "__main__":
    with Study(__doc__, paper="han2025", model=LANGUAGE_MODELS) as study:
        study.for_each(judge)
