"""Which residual dimension makes the sink: each is zeroed at the first token, and the sink is measured.

Claim: Sun et al. 2024, section 4, and Kang et al. 2025 name sink dimensions by their size; here they are found by what
they cause. Every dimension of the first token is zeroed alone at the input of the middle block, and the key mass of the
first token in the later blocks is read. Cost: one pass per dimension over half the blocks; --model planted has 64.
"""

from __future__ import annotations

from common import arguments, finish, reading

import sinkscope as sk


def main() -> None:
    """Sweep the dimensions, rank them, and draw the first ten."""
    given, model, prompts = arguments(__doc__ or "", "planted")
    tower = model.backend.towers[model.backend.default_tower]
    prompts = prompts.subset(range(min(4, len(prompts))))
    start = max(1, len(tower.attention) // 2)
    grid = sk.grid(sk.SetActivations, site=[f"{start - 1}.post"], dims=range(tower.d_model))
    probes = [sk.KeyMass()]
    path = given.output / "sink_dimension_search.nc"
    ds = reading(path, lambda: sk.sweep(model, prompts, grid, probes, baseline=True).isel(edit_site=0, drop=True))
    later = {"key": 0, "layer": slice(start, None)}
    mass = ds["key_mass"].isel(later).mean(["layer", "head"])
    plain = ds["key_mass_baseline"].isel(later).mean(["layer", "head"])
    effect = (mass - plain).rename(edit_dim="edit")
    ten = effect.isel(edit=effect.mean("prompt").argsort().values[:10])
    names = [f"dim {d}" for d in ten["edit"].values]
    table = sk.metrics.compare(ten.assign_coords(edit=names), to=ten.assign_coords(edit=names) * 0)
    best = table.isel(edit=0)
    print(
        f"{model.id}: zeroing {names[0]} at the first token takes {-float(best['difference']):.3f} of the "
        f"{float(plain.mean()):.3f} key mass that the first token has in blocks {start} and later; "
        f"the next dimension takes {-float(table['difference'][1]):.3f} (n = {int(best['n'])} prompts)."
    )
    shown = table["difference"].assign_attrs(units="attention weight", long_name="change of the sink's key mass")
    shown = sk.plot.described(shown, ds)
    axes = sk.plot.effect_bars(shown, interval=(table["low"], table["high"]), title="Which dimension makes the sink")
    finish(axes, shown, given.output / "sink_dimension_search.png", f"key mass of token 0, blocks {start} and later")


if __name__ == "__main__":
    main()
