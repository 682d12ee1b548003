"""What scaling the attention to the first token does, head by head (ZeroTuning, Han et al. 2025, Figs. 3 to 5).

Claim: heads differ in sign and size, so that scaling chosen heads helps and scaling all blurs it. The paper scales
whole layers or groups of heads and reads task accuracy of Llama-3.1-8B; here every head alone, the loss per token, and
beside the exact sweep the first-order estimate from one backward pass, with its rank correlation over heads.
Cost: layers x heads x gammas passes that restart at the edited layer; under two minutes for the planted model.
"""

from __future__ import annotations

from common import arguments, finish, reading

import sinkscope as sk
from sinkscope.methods.profiling import profile_heads

GAMMAS = [0.25, 0.5, 2.0, 4.0]


def main() -> None:
    """Sweep, compare with the estimate, and draw a head map and a curve."""
    given, model, prompts = arguments(__doc__ or "", "planted")
    tower = model.backend.towers[model.backend.default_tower]
    heads = range(min(site.heads for site in tower.attention))
    grid = sk.grid(sk.ScaleKeys, gamma=GAMMAS, layers=range(len(tower.attention)), heads=heads)
    ds = reading(
        given.output / "gamma_per_head.nc", lambda: sk.sweep(model, prompts, grid, [sk.TokenLoss()], baseline=True)
    )
    effect = (ds["token_loss"] - ds["token_loss_baseline"]).mean("query")
    at = effect.sel(gamma=2.0).rename(edit_layer="layer", edit_head="head")
    tested = sk.metrics.compare(at, to=at * 0, test="wilcoxon")
    sure = tested["q_value"] < 0.05
    print(
        f"{model.id}: {int(sure.sum())} of {sure.size} heads change the loss at gamma 2 (q < 0.05, n = {len(prompts)})."
    )
    profile = profile_heads(model, prompts, exact=2.0)
    print(
        f"First-order estimate against the exact effect: Spearman {float(profile['rank_correlation']):.2f} "
        f"[{float(profile['rank_low']):.2f}, {float(profile['rank_high']):.2f}] over {int(profile['rank_n'])} heads."
    )
    shown = sk.plot.described(tested["difference"].assign_attrs(units="nat"), ds)
    axes = sk.plot.effect_map(shown, marked=sure, title="First token at gamma 2, one head at a time")
    finish(
        axes, shown, given.output / "gamma_per_head.png", "change of the loss per token; dots: q < 0.05 over prompts"
    )
    curve = effect.mean(["prompt", "edit_head"]).rename(edit_layer="layer")
    curve = sk.plot.described(curve.assign_attrs(units="nat", long_name="change of the loss"), ds)
    axes = sk.plot.sweep_curve(curve, title="Mean over the heads of a layer")
    finish(axes, curve, given.output / "gamma_per_layer.png", "change of the loss per token, one head scaled at a time")


if __name__ == "__main__":
    main()
