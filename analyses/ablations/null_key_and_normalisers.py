"""Does another denominator remove the sink? A null key, softmax-off-by-one, sigmoid and ReLU attention, after training.

Gu et al. 2025 train anew with other operations (section 7), which is asked of the zoo by ``gu2025/variants.py``. Here
the change is made to a trained softmax model, so a higher loss is expected and nothing is said on training: these are
checks of this project on where the attention of the first token goes and what that costs. Softmax-off-by-one is a null
key of logit 0, so that is no row of its own. Attention is each row over its sum (Gu et al.'s proxy), as in the training
curves: raw sigmoid weights are no shares. What goes to the null key is left out of the rows that are divided.
Cost: one pass per variant that keeps all maps, a minute or two per model.
"""

from __future__ import annotations

import xarray as xr
from common import change, effect_probe, texts

import sinkscope as sk
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study, with_intervals
from sinkscope.engine.run import find_tower

EDITS: dict[str, list[sk.edits.Edit]] = {
    "softmax1 (null key, logit 0)": [sk.SwapNormaliser("softmax1")],
    "null key, logit 2": [sk.NullKey(2.0)], "null key, logit 4": [sk.NullKey(4.0)],
    "sigmoid": [sk.SwapNormaliser("sigmoid")], "relu": [sk.SwapNormaliser("relu")],
}  # fmt: skip


def measure(model: sk.Model, prompts: sk.Prompts, edits: list[sk.edits.Edit]) -> xr.Dataset:
    """The model's output, share of each row on the first token, and what the rows leave to the null key."""
    sites = find_tower(model, None).attention
    maps = sk.AttentionMap(range(len(sites)), range(max(site.heads for site in sites)))
    ds = sk.run(model, prompts, [maps, effect_probe(model)], edits, batch_size=4)
    first = (
        sk.metrics.proxy_mass(ds.assign(attention=abs(ds["attention"])))
        .isel(key=0)
        .mean(["layer", "head"])
        .reset_coords(drop=True)
    )
    raw = ds["attention"].sum("key").where(ds["attention"].notnull().any("key")).mean(["layer", "head", "query"])
    return ds.drop_vars("attention").assign(first=first, row_sum=raw.reset_coords(drop=True))


def judge(study: Study, model: sk.Model) -> None:
    """Swap, compare, draw."""
    prompts = texts(study, 12)
    names = ["baseline", *EDITS]
    slugs = {name: "".join(c for c in name if c.isalnum()) for name in names}
    parts = [study.reading(f"swapped-{slugs[n]}", lambda n=n: measure(model, prompts, EDITS.get(n, []))) for n in names]
    ds = xr.concat(parts, xr.Variable("edit", names), join="exact", compat="override", coords="minimal",
                   combine_attrs="override")  # fmt: skip
    effect = change(ds)
    unit = effect.attrs["units"].replace("1", "")
    plain = ds["first"].sel(edit="baseline", drop=True)
    for name in EDITS:
        now = ds["first"].sel(edit=name, drop=True)
        moved, cost = Estimate.paired(now, plain, "+.3f"), Estimate.mean(effect.sel(edit=name, drop=True), "+.3g", unit)
        study.claim(
            "section 7", f"{name}, put in after training, takes attention from the first token", paper="",
            number=moved, found=f"share of the rows on the first token, from {float(plain.mean()):.3f}; rows sum to "
            f"{float(ds['row_sum'].sel(edit=name).mean()):.2f}; {effect.attrs['long_name']} {cost}",
            agrees=moved.below(0.0),
        )  # fmt: skip
    table = with_intervals(effect)
    shown = sk.plot.described(table["difference"].assign_attrs(effect.attrs), parts[0])
    bars = sk.plot.effect_bars(shown, interval=(table["low"], table["high"]), title=f"{model.id}: another denominator")
    says = f"{effect.attrs['long_name']}, all layers edited; 95% bootstrap intervals over prompts"
    study.figure(bars, "null_key_and_normalisers", source=shown, says=says)


if __name__ == "__main__":
    with Study(__doc__, paper="gu2025", model=LANGUAGE_MODELS) as study:
        study.for_each(judge)
