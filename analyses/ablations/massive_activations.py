"""Massive activations set to zero and to their mean (Sun et al. 2024, Table 3).

Claim: zeroing a handful of entries destroys LLaMA2-7B (perplexity without bound), setting them to their mean over other
texts changes nothing (5.47 to 5.47): they are biases. The paper gives perplexity and zero-shot accuracy; here the loss
per token, or for an encoder the cosine distance of the embedding. The control is the paper's: as many entries of the
same token whose size is near the median. Entries: the dimension of the largest entry at block outputs (M1 loosened to
the largest, as small models seldom reach 1000 medians); means are taken on the first half, effects on the second half.
Cost: one pass per edit.
"""

from __future__ import annotations

import numpy as np
from common import arguments, change, effect_probe, finish, reading

import sinkscope as sk
from sinkscope.edits import mean_activations


def main() -> None:
    """Find the entry, edit it, compare with controls, and print the table."""
    given, model, prompts = arguments(__doc__ or "", "planted")
    half = len(prompts) // 2
    held_out, test = prompts.subset(range(half)), prompts.subset(range(half, len(prompts)))
    plain = sk.run(model, held_out, [sk.MassiveActivations(), sk.ResidualNorm()])
    outputs = [name for name in plain["site"].values if name.endswith("post")][:-1]
    first = plain.isel(rank=0).sel(site=outputs)
    ratio = (abs(first["top_value"]) / first["median_abs"]).mean("prompt")
    site = str(ratio["site"].values[int(ratio.argmax())])
    dim = int(np.bincount(first["top_dim"].sel(site=site).values.astype(int)).argmax())
    position = int(np.bincount(first["top_position"].sel(site=site).values.astype(int)).argmax())
    size = float(first["top_value"].sel(site=site).mean())
    print(f"{model.id}: largest entry {size:.4g} at {site}, dimension {dim}, position {position}: ", end="")
    print(f"{float(ratio.max()):.0f} times the median.")
    keys = [position]
    rng = np.random.default_rng(0)
    others = [int(d) for d in rng.choice([d for d in range(plain.attrs["d_model"]) if d != dim], 5, replace=False)]
    mean = mean_activations(model, held_out, site, [dim], keys=keys)
    edits: dict[str, list[sk.edits.Edit]] = {"set to zero": [sk.SetActivations(site, dims=[dim], keys=keys)]}
    if float(first["top_value"].sel(site=site).std()) > 1e-6 * abs(size):
        edits["set to mean"] = [sk.SetActivations(site, dims=[dim], value=mean, keys=keys)]
    else:
        print("  set to mean: the entry is the same in every prompt, so its mean changes nothing.")
    edits |= {f"control {d}": [sk.SetActivations(site, dims=[d], keys=keys)] for d in others}
    ds = reading(
        given.output / "massive_activations.nc",
        lambda: sk.sweep(model, test, edits, [effect_probe(model)], baseline=True),
    )
    effect = change(ds)
    table = sk.metrics.compare(effect, to=effect * 0)
    for name in edits:
        row = table.sel(edit=name)
        low, high = float(row["low"]), float(row["high"])
        print(f"  {name:<14} {float(row['difference']):+.4g} [{low:.4g}, {high:.4g}], n = {int(row['n'])}")
    shown = sk.plot.described(table["difference"].assign_attrs(effect.attrs), ds)
    axes = sk.plot.effect_bars(shown, interval=(table["low"], table["high"]), title="The largest activation")
    finish(axes, shown, given.output / "massive_activations.png", f"{effect.attrs['long_name']}; entry {dim} at {site}")


if __name__ == "__main__":
    main()
