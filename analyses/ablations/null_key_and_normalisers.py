"""Does another denominator remove the sink? A null key, softmax-off-by-one, sigmoid and ReLU attention, after training.

Claim: Gu et al. 2025 (section 7, sigmoid attention trained so has no sink); those models are
trained with the change. Here it is made afterwards, so a higher loss is expected and no evidence on training: the
script shows where the mass of the first token goes and what it costs. Cost: one pass per variant.
"""

from __future__ import annotations

from common import arguments, change, effect_probe, finish, reading

import sinkscope as sk


def main() -> None:
    """Swap, compare, draw."""
    given, model, prompts = arguments(__doc__ or "", "planted")
    edits: dict[str, list[sk.edits.Edit]] = {f"null key, logit {x:g}": [sk.NullKey(x)] for x in (0.0, 2.0, 4.0)}
    edits |= {name: [sk.SwapNormaliser(name)] for name in ("softmax1", "sigmoid", "relu")}
    path = given.output / "null_key_and_normalisers.nc"
    probes = [effect_probe(model), sk.KeyMass()]
    ds = reading(path, lambda: sk.sweep(model, prompts, edits, probes, baseline=True))
    mass = ds["key_mass"].isel(key=0).mean(["layer", "head", "prompt"])
    effect = change(ds)
    table = sk.metrics.compare(effect, to=effect * 0)
    print(f"{model.id}: key mass of the first token {float(mass.sel(edit='baseline')):.3f} without an edit.")
    for name in edits:
        print(f"  {name:<18} {float(mass.sel(edit=name)):.3f}, {effect.attrs['long_name']} "
              f"{float(table['difference'].sel(edit=name)):+.4g} (n = {len(prompts)})")  # fmt: skip
    shown = sk.plot.described(table["difference"].assign_attrs(effect.attrs), ds)
    axes = sk.plot.effect_bars(shown, interval=(table["low"], table["high"]), title="Another denominator")
    finish(
        axes, shown, given.output / "null_key_and_normalisers.png", f"{effect.attrs['long_name']}, all layers edited"
    )


if __name__ == "__main__":
    main()
