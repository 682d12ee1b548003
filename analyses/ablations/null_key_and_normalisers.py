"""Does another softmax remove the sink? A null key, another denominator and twelve other forms, after training.

Gu et al. 2025 train anew with other operations (section 7), which is asked of the zoo by ``gu2025/variants.py``. Here
the change is made to a trained softmax model, so a higher loss is expected and nothing is said on training: these are
checks of this project on where the attention of the first token goes and what that costs. Softmax-off-by-one is a null
key of logit 0, so that is no row of its own. Attention is each row over its sum (Gu et al.'s proxy), as in the training
curves: raw sigmoid weights are no shares; where weights may be negative, their magnitude. What goes to the null key is
left out of the rows that are divided. The other forms are those of ``SwapNormaliser`` at its defaults: softmax changed
(temperature, selective temperature, clipped, affine, LUCID) and scores over their sum (sigmoid, ELU + 1, softplus,
softpick, identity, kernels of queries and keys). Their papers train with them, so no claim of theirs is judged here.
Cost: one pass per variant that keeps all maps, two or three minutes per model.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
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

FORMS = {
    "temperature": "softmax", "selective": "softmax", "clipped": "softmax", "affine": "softmax", "lucid": "softmax",
    "sigmoid_normalised": "scores", "elu_normalised": "scores", "softplus": "scores", "softpick": "scores",
    "identity": "scores", "elu_kernel": "scores", "mlp_kernel": "scores",
}  # fmt: skip
"""Other forms by name: a softmax that is changed, or scores over their sum."""


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


def joined(study: Study, model: sk.Model, edits: dict[str, list[sk.edits.Edit]]) -> xr.Dataset:
    """Readings without an edit and with each, along the dim ``edit``."""
    prompts, names = texts(study, 12), ["baseline", *edits]
    slugs = {name: "".join(c for c in name if c.isalnum()) for name in names}
    parts = [study.reading(f"swapped-{slugs[n]}", lambda n=n: measure(model, prompts, edits.get(n, []))) for n in names]
    return xr.concat(parts, xr.Variable("edit", names), join="exact", compat="override", coords="minimal",
                     combine_attrs="override")  # fmt: skip


def forms(study: Study, model: sk.Model) -> None:
    """Twelve forms of attention in the place of the softmax: share of the first token, and what they cost."""
    ds = joined(study, model, {name: [sk.SwapNormaliser(name)] for name in FORMS})
    effect, plain = change(ds), ds["first"].sel(edit="baseline", drop=True)
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for ax, values, title in (
        (left, ds["first"].drop_sel(edit="baseline"), "share of the first token"),
        (right, effect, effect.attrs["long_name"]),
    ):
        table = with_intervals(values)
        shown = table["difference"].assign_coords(edit=[name.replace("_", " ") for name in FORMS])
        shown = sk.plot.described(shown.assign_attrs(long_name=title, units=effect.attrs["units"]), ds)
        sk.plot.effect_bars(shown, interval=(table["low"], table["high"]), title=title, ax=ax)
    left.axvline(float(plain.mean()), color="black", linestyle=":", linewidth=1)
    left.set_xlabel("share of the rows on the first token")
    says = "another form of attention in all layers of a trained model; dotted: softmax; 95 % intervals over prompts"
    study.figure(figure, "attention_forms", source=ds, says=says)
    for kind, words in (("softmax", "A softmax that is changed keeps"), ("scores", "Scores over their sum keep")):
        names = [name for name in FORMS if FORMS[name] == kind]
        share = ds["first"].sel(edit=names) / plain
        moved = Estimate.mean(share.mean("edit"), ".0%")
        pairs = {name: (float(share.sel(edit=name).mean()), float(effect.sel(edit=name).mean())) for name in names}
        told = "; ".join(f"{name.replace('_', ' ')} {kept:.0%}, {cost:+.2f}" for name, (kept, cost) in pairs.items())
        study.claim(
            "section 7", f"{words} half of the first token's share, put in after training", paper="", number=moved,
            found=f"of its share under softmax ({float(plain.mean()):.3f}), mean over forms; by form, with the "
            f"{effect.attrs['long_name']}: {told}", agrees=moved.above(0.5),
        )  # fmt: skip


def judge(study: Study, model: sk.Model) -> None:
    """Swap, compare, draw."""
    ds = joined(study, model, EDITS)
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
    shown = sk.plot.described(table["difference"].assign_attrs(effect.attrs), ds)
    bars = sk.plot.effect_bars(shown, interval=(table["low"], table["high"]), title=f"{model.id}: another denominator")
    says = f"{effect.attrs['long_name']}, all layers edited; 95% bootstrap intervals over prompts"
    study.figure(bars, "null_key_and_normalisers", source=shown, says=says)
    forms(study, model)


if __name__ == "__main__":
    with Study(__doc__, paper="gu2025", model=LANGUAGE_MODELS) as study:
        study.for_each(judge)
