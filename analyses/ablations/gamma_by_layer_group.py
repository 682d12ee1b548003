"""Scaling the attention to the first token in the early, middle and late layers (Han et al. 2025, Fig. 3).

Claim: shallow and middle layers gain most from scaling the first token, deep layers little. The paper reads task
accuracy of Llama-3.1-8B over gamma; here the loss per token of held-out text, each gamma against the model without an
edit, and as control the same scaling of one random token of each prompt. Cost: one pass per gamma, group and token.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from common import texts, told

import sinkscope as sk
from sinkscope.analysis import Study

GAMMAS = [0.0, 0.25, 0.5, 2.0, 4.0]


def main() -> None:
    """Scale, compare, draw."""
    with Study(__doc__, paper="han2025") as study:
        model, prompts = study.model, texts(study, 64)
        blocks = np.arange(len(model.backend.towers[model.backend.default_tower].attention))
        groups = dict(zip(("early", "middle", "late"), np.array_split(blocks, 3), strict=True))
        plain = study.reading("plain", lambda: sk.run(model, prompts, [sk.KeyMass(keys="first")], batch_size=16))
        first = (xr.DataArray(np.arange(plain.sizes["key"]), dims="key") == 0) & (plain["token_role"] != "pad")
        tokens = {"first token": "first", "random token": sk.metrics.matched_controls(first, seed=0)}
        edits: dict[str, list[sk.edits.Edit]] = {
            f"{token}|{group}|{gamma:g}": [sk.ScaleKeys(gamma, keys=keys, layers=layers.tolist())]
            for token, keys in tokens.items() for group, layers in groups.items() for gamma in GAMMAS
        }  # fmt: skip
        read = [sk.TokenLoss()]
        ds = study.reading("scaled", lambda: sk.sweep(model, prompts, edits, read, batch_size=16, baseline=True))
        loss = ds["token_loss"].mean("query")
        effect = loss.drop_sel(edit="baseline") - loss.sel(edit="baseline", drop=True)
        for group in groups:
            own, other = (effect.sel(edit=f"{token}|{group}|0", drop=True) for token in tokens)
            row, best = (
                sk.metrics.compare(own, to=other),
                effect.sel(edit=[f"first token|{group}|{g:g}" for g in GAMMAS]),
            )
            low = best.mean("prompt")
            found = f"{model.id}, {group} layers {groups[group].tolist()}: hiding the first token changes the loss by "
            gain, at = float(low.min()), GAMMAS[int(np.argmin(low.values))]
            found += f"{float(own.mean()):+.3g}, minus a random token {told(row)}; the lowest loss is at gamma "
            found += f"{at:g} ({gain:+.3g})" if gain < 0 else "1"
            claim = f"the first token matters in the {group} layers, and less attention to it costs"
            agrees = float(row["low"]) > 0
            study.claim("Fig. 3", claim, paper="most in early and middle layers", found=found, agrees=agrees)
        mean = effect.sel(edit=[f"first token|{group}|{g:g}" for group in groups for g in GAMMAS]).mean("prompt")
        curve = xr.DataArray(
            np.insert(mean.values.reshape(len(groups), len(GAMMAS)), 3, 0.0, axis=1),  # gamma = 1 is no edit
            dims=("layer", "gamma"), coords={"layer": list(groups), "gamma": np.insert(GAMMAS, 3, 1.0)},
        )  # fmt: skip
        curve = sk.plot.described(curve.assign_attrs(units="nat", long_name="change of the loss"), ds)
        lines = sk.plot.sweep_curve(curve, title=f"{model.id}: first token scaled by layer group")
        study.figure(
            lines, "gamma_by_layer_group", source=curve, says="change of the loss per token; gamma = 1: no edit"
        )


if __name__ == "__main__":
    main()
