"""Does another denominator remove the sink? A null key, softmax-off-by-one, sigmoid and ReLU attention, after training.

Claim: Gu et al. 2025, section 7: a model trained with sigmoid attention without normalisation has no sink. Here the
change is made to a trained softmax model, so a higher loss is expected and says nothing on training: the script shows
where the mass of the first token goes and what it costs. What training with the change does is shown by the page on the
zoo. Cost: one pass per variant.
"""

from __future__ import annotations

from common import change, effect_probe, texts, told

import sinkscope as sk
from sinkscope.analysis import Study, with_intervals


def main() -> None:
    """Swap, compare, draw."""
    with Study(__doc__, paper="gu2025") as study:
        model, prompts = study.model, texts(study)
        edits: dict[str, list[sk.edits.Edit]] = {f"null key, logit {x:g}": [sk.NullKey(x)] for x in (0.0, 2.0, 4.0)}
        edits |= {name: [sk.SwapNormaliser(name)] for name in ("softmax1", "sigmoid", "relu")}
        read = [effect_probe(model), sk.KeyMass(keys="first")]
        ds = study.reading("swapped", lambda: sk.sweep(model, prompts, edits, read, batch_size=16, baseline=True))
        mass = ds["key_mass"].isel(key=0).mean(["layer", "head", "prompt"])
        effect = change(ds)
        table = with_intervals(effect)
        before = float(mass.sel(edit="baseline"))
        for name in edits:
            after = float(mass.sel(edit=name))
            found = f"{model.id}: key mass of the first token {before:.3f} to {after:.3f}; {effect.attrs['long_name']} "
            found += told(table.sel(edit=name))
            claim = f"{name} put in after training takes mass from the first token at a cost"
            agrees = after < before and float(table["low"].sel(edit=name)) > 0
            study.claim("section 7", claim, paper="not in the paper, which trains anew", found=found, agrees=agrees)
        shown = sk.plot.described(table["difference"].assign_attrs(effect.attrs), ds)
        title = f"{model.id}: another denominator"
        bars = sk.plot.effect_bars(shown, interval=(table["low"], table["high"]), title=title)
        says = f"{effect.attrs['long_name']}, all layers edited; 95% bootstrap intervals over prompts"
        study.figure(bars, "null_key_and_normalisers", source=shown, says=says)


if __name__ == "__main__":
    main()
