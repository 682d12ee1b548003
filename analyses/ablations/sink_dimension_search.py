"""Which residual dimension makes the sink: each is zeroed at the first token, and the sink is measured.

Claim: Sun et al. 2024, section 4, and Kang et al. 2025 name sink dimensions by their size; here they are found by what
they cause. Every dimension of the first token is zeroed alone at the input of the middle block, and the key mass of the
first token in the later blocks is read. The dimension is found on one half of the texts and its effect told on the
other. Cost: one pass per dimension over half the blocks, 8 texts.
"""

from __future__ import annotations

from common import texts, told

import sinkscope as sk
from sinkscope.analysis import Study, with_intervals


def study_of(study: Study, model: sk.Model) -> None:
    """Sweep the dimensions, rank them, and draw the first ten."""
    prompts = texts(study, 16)
    half = len(prompts) // 2
    tower = model.backend.towers[model.backend.default_tower]
    start = max(1, len(tower.attention) // 2)
    grid = sk.grid(sk.SetActivations, site=[f"{start - 1}.post"], dims=range(tower.d_model))
    read = [sk.KeyMass(keys="first")]
    ds = study.reading("zeroed", lambda: sk.sweep(model, prompts, grid, read, batch_size=16, baseline=True))
    later = {"edit_site": 0, "key": 0, "layer": slice(start, None)}
    mass = ds["key_mass"].isel(later, missing_dims="ignore").mean(["layer", "head"])
    plain = ds["key_mass_baseline"].isel(later, missing_dims="ignore").mean(["layer", "head"])
    effect = (mass - plain).rename(edit_dim="edit").reset_coords(drop=True)
    found, test = effect.isel(prompt=slice(half)), effect.isel(prompt=slice(half, None))
    ten = test.isel(edit=found.mean("prompt").argsort().values[:10])
    ten = ten.assign_coords(edit=[f"dim {d}" for d in ten["edit"].values])
    table = with_intervals(ten)
    biggest = sk.run(model, prompts.subset(range(half)), [sk.MassiveActivations(top=1)], batch_size=16)
    named = int(biggest["top_dim"].sel(site=f"{start - 1}.post").isel(rank=0).median())
    best, drop = str(table["edit"].values[0]), -table["difference"].values
    study.claim(
        "section 4", "one dimension carries the sink, and it is the one of the largest entry", paper="yes",
        found=f"{model.id}, blocks {start} and later: {best} zeroed at the first token changes its key mass of "
        f"{float(plain.mean()):.3f} by {told(table.isel(edit=0))}; the next dimension takes {drop[1]:.3f}; the largest "
        f"entry is in dim {named}",
        agrees=best == f"dim {named}" and drop[0] > 2 * drop[1],
    )  # fmt: skip
    shown = table["difference"].assign_attrs(units="attention weight", long_name="change of the sink's key mass")
    shown = sk.plot.described(shown, ds)
    title = f"{model.id}: which dimension makes the sink"
    bars = sk.plot.effect_bars(shown, interval=(table["low"], table["high"]), title=title)
    says = f"key mass of the first token, blocks {start} and later, n = {half}; 95% bootstrap intervals"
    study.figure(bars, "sink_dimension_search", source=shown, says=says)


def main() -> None:
    """Do the study for each model."""
    with Study(__doc__, paper="sun2024", model=["minilm", "zoo:lm-python"]) as study:
        for model in study.each():
            study_of(study, model)


if __name__ == "__main__":
    main()
