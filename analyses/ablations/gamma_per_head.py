"""What scaling the attention to the first token does, head by head (Han et al. 2025, Figs. 3 to 5).

Claim: heads differ in sign and size, so that scaling chosen heads helps and scaling all blurs it. The paper scales
whole layers or groups of heads and reads task accuracy of Llama-3.1-8B; here every head alone, the loss per token, and
beside the exact sweep the first-order estimate from one backward pass, with its rank correlation over heads.
Cost: layers x heads x gammas passes that restart at the edited layer.
"""

from __future__ import annotations

import xarray as xr
from common import texts

import sinkscope as sk
from sinkscope.analysis import Study
from sinkscope.methods.profiling import HeadProfileSettings, profile_heads

GAMMAS = [0.25, 0.5, 2.0, 4.0]


def main() -> None:
    """Sweep, compare with the estimate, and draw a head map and a curve."""
    with Study(__doc__, paper="han2025") as study:
        model, prompts = study.model, texts(study)
        tower = model.backend.towers[model.backend.default_tower]
        heads = range(min(site.heads for site in tower.attention))
        grid = sk.grid(sk.ScaleKeys, gamma=GAMMAS, layers=range(len(tower.attention)), heads=heads)
        read = [sk.TokenLoss()]
        ds = study.reading("scaled", lambda: sk.sweep(model, prompts, grid, read, batch_size=16, baseline=True))
        effect = (ds["token_loss"] - ds["token_loss_baseline"]).mean("query")
        per_head = effect.rename(edit_layer="layer", edit_head="head")
        tested = sk.metrics.compare(per_head, to=per_head * 0, test="wilcoxon")
        sure, up = tested["q_value"] < 0.05, tested["difference"] < 0
        counts = [
            f"gamma {gamma:g}: {int((sure & up).sel(gamma=gamma).sum())} heads lower the loss, "
            f"{int((sure & ~up).sel(gamma=gamma).sum())} raise it"
            for gamma in GAMMAS
        ]
        found = f"{model.id}, {sure[0].size} heads, q < 0.05, n = {len(prompts)} prompts: {'; '.join(counts)}"
        both = bool((sure & up).any() and (sure & ~up).any())
        claim = "heads differ in the sign of the effect"
        study.claim("Fig. 4", claim, paper="up- and down-effective heads", found=found, agrees=both)
        profile = profile_heads(model, prompts, HeadProfileSettings(exact=2.0)).found
        low, high = float(profile["rank_low"]), float(profile["rank_high"])
        found = (
            f"Spearman {float(profile['rank_correlation']):.2f} [{low:.2f}, {high:.2f}], {int(profile['rank_n'])} heads"
        )
        claim = "one backward pass ranks the heads as the exact sweep does"
        study.claim("-", claim, paper="not in the paper", found=found, agrees=low > 0.5)
        shown = sk.plot.described(tested["difference"].sel(gamma=0.25, drop=True).assign_attrs(units="nat"), ds)
        heat = sk.plot.effect_map(
            shown, marked=sure.sel(gamma=0.25, drop=True), title="First token at gamma 0.25, one head at a time"
        )
        study.figure(heat, "gamma_per_head", source=shown, says="change of the loss per token; dots: q < 0.05")
        curve = effect.mean(["prompt", "edit_head"]).rename(edit_layer="layer")
        curve = xr.concat([curve, xr.zeros_like(curve.isel(gamma=[0])).assign_coords(gamma=[1.0])], "gamma")
        curve = sk.plot.described(curve.sortby("gamma").assign_attrs(units="nat", long_name="change of the loss"), ds)
        lines = sk.plot.sweep_curve(curve, title="Mean over the heads of a layer")
        study.figure(lines, "gamma_per_layer", source=curve, says="change of the loss per token, one head at a time")


if __name__ == "__main__":
    main()
