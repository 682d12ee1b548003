"""Twelve forms of attention put into trained models: how much of the first token's share is left, and what they cost.

Softmax changed (temperature, selective temperature, clipped, affine, LUCID) and scores over their sum (sigmoid, ELU +
1, softplus, softpick, identity, kernels of queries and keys), each ``SwapNormaliser`` at its defaults in every layer.
Their papers train with them, so no claim of theirs is judged here: it is a check of this project on what the softmax
does in a model that was trained with it, measured as in ``null_key_and_normalisers.py``. Where weights may be negative
their magnitude counts. Cost: one pass per form that keeps all maps, two minutes per language model.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import xarray as xr
from common import change, texts
from null_key_and_normalisers import measure

import sinkscope as sk
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study, with_intervals

FORMS = {
    "temperature": "softmax", "selective": "softmax", "clipped": "softmax", "affine": "softmax", "lucid": "softmax",
    "sigmoid_normalised": "scores", "elu_normalised": "scores", "softplus": "scores", "softpick": "scores",
    "identity": "scores", "elu_kernel": "scores", "mlp_kernel": "scores",
}  # fmt: skip
"""Forms by name: a softmax that is changed, or scores over their sum."""


def draw(study: Study, ds: xr.Dataset, effect: xr.DataArray) -> None:
    """Share of the first token and the effect, by form."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.8), layout="constrained")
    for ax, values, title in (
        (left, ds["first"].drop_sel(edit="baseline"), "share of the first token"),
        (right, effect, effect.attrs["long_name"]),
    ):
        table = with_intervals(values).assign_coords(edit=[name.replace("_", " ") for name in FORMS])
        shown = sk.plot.described(table["difference"].assign_attrs(long_name=title, units=effect.attrs["units"]), ds)
        sk.plot.effect_bars(shown, interval=(table["low"], table["high"]), title=title, ax=ax)
    left.axvline(float(ds["first"].sel(edit="baseline").mean()), color="black", linestyle=":", linewidth=1)
    left.set_xlabel("share of the rows on the first token")
    says = "another form of attention in all layers of a trained model; dotted: softmax; 95 % intervals over prompts"
    study.figure(figure, "attention_forms", source=ds, says=says)


def judge(study: Study, model: sk.Model) -> None:
    """Swap, compare, draw."""
    prompts, names = texts(study, 8), ["baseline", *FORMS]
    parts = [
        study.reading(name, lambda n=name: measure(model, prompts, [sk.SwapNormaliser(n)] if n in FORMS else []))
        for name in names
    ]
    ds = xr.concat(parts, xr.Variable("edit", names), join="exact", compat="override", coords="minimal",
                   combine_attrs="override")  # fmt: skip
    effect, plain = change(ds), ds["first"].sel(edit="baseline", drop=True)
    draw(study, ds, effect)
    for kind, words in (("softmax", "A softmax that is changed keeps"), ("scores", "Scores over their sum keep")):
        own = [name for name in FORMS if FORMS[name] == kind]
        share = ds["first"].sel(edit=own) / plain
        kept = Estimate.mean(share.mean("edit"), ".0%")
        pairs = {name: (float(share.sel(edit=name).mean()), float(effect.sel(edit=name).mean())) for name in own}
        told = "; ".join(f"{name.replace('_', ' ')} {left:.0%}, {cost:+.2f}" for name, (left, cost) in pairs.items())
        study.claim(
            "section 7", f"{words} half of the first token's share, put in after training", paper="", number=kept,
            found=f"of its share under softmax ({float(plain.mean()):.3f}), mean over forms; by form, with the "
            f"{effect.attrs['long_name']}: {told}", agrees=kept.above(0.5),
        )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="gu2025", model=LANGUAGE_MODELS) as study:
        study.for_each(judge)
