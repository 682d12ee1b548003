"""Where the gradient of the loss gathers: through the values of each layer, and in the stream behind it.

Papers: Chen and Yao 2026 (arXiv 2603.17771) on gradient sinks, by its abstract; Qiu et al. 2026 (arXiv 2601.22966) on
residual sinks. Claims: the token with the attention sink gets most of the gradient that attention sends back; a massive
state takes it away again, as RMSNorm divides by its size; a few dimensions stand out at most tokens.
Cost: a pass with autograd for each of 8 prompts, seconds per model.
Different here: trained models as they are, so whether massive states come from the gradient is not asked; the papers'
tensors and bounds were not found. Control: the fourth token, and an even spread. Intervals are over prompts.
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study, need, with_intervals
from sinkscope.methods.gradient_sinks import gradient_shares
from sinkscope.methods.residual import residual_stream
from sinkscope.plot.naming import drop_names

TOKENS = {"first token": 0, "fourth token": 3}
BOUND = 0.5
"""Share of the tokens from which on a dimension counts as a residual sink: most of them."""


def measured(study: Study, model: sk.Model) -> xr.Dataset:
    """Shares of gradient and attention of two tokens by layer, and how many dimensions stand out at most tokens."""
    prompts = study.texts("code" if model.id.startswith("zoo:lm-") else "prose", n=8)
    mass = sk.run(model, prompts, [sk.KeyMass()])
    found = gradient_shares(model, prompts)
    sites = found["site"].values
    streams = [residual_stream(model, prompts, index) for index in range(len(prompts))]
    share = np.stack([[sk.metrics.residual_sinks(stream[name]) for name in sites] for stream in streams])
    pick = {"key": list(TOKENS.values())}
    data = {
        "attention": mass["key_mass"].mean("head").isel(pick).drop_vars("key", errors="ignore").rename("attention"),
        "through values": found["value_gradient_share"].isel(pick), "in the stream": found["gradient_share"].isel(pick),
    }  # fmt: skip
    named = {name: each.reset_coords(drop=True).rename(key="token") for name, each in data.items()}
    dims = xr.DataArray((share > BOUND).sum(-1), dims=("prompt", "site"))
    out = xr.Dataset({"mass": named.pop("attention"), **named, "residual sinks": dims}, {"token": list(TOKENS)})
    return out.assign_attrs(mass.attrs, even=float(np.mean([1 / n for n in prompts.lengths])))


def draw(study: Study, ds: xr.Dataset) -> None:
    """Shares of the first token by layer beside its attention, and of a control."""
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.8), layout="constrained", sharey=True)
    for ax, name, title in zip(
        axes, ("mass", "through values", "in the stream"),
        ("Attention on it", "Gradient, values", "Gradient, stream"), strict=True,
    ):  # fmt: skip
        table = with_intervals(ds[name])
        depth = "site" if "site" in ds[name].dims else "layer"
        sk.plot.layer_profile(
            table["difference"].transpose("token", depth), band=(table["low"], table["high"]),
            ylabel="share" if ax is axes[0] else " ", title=title, ax=ax,
        )  # fmt: skip
        ax.axhline(ds.attrs["even"], color="black", linestyle=":", linewidth=1)
        ax.set_ylim(0, 1)
        if ax is not axes[-1]:
            drop_names(ax)  # the last panel says them
    study.figure(
        figure, "gradient_sinks", source=ds,
        says="shares of all tokens of a prompt; dotted: evenly spread; 95 % intervals over prompts",
    )  # fmt: skip


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw and judge one model."""
    need(model, model.is_causal, "a decoder, whose loss per token it reads")
    ds = study.reading("gradients", lambda: measured(study, model))
    draw(study, ds)
    sent = ds["through values"].mean("layer")
    first, fourth = (sent.sel(token=name, drop=True) for name in TOKENS)
    gap = Estimate.paired(first, fourth, "+.3f")
    heavy = ds["mass"].mean(["prompt"]).sel(token="first token", drop=True)
    by_layer = ds["through values"].mean("prompt").sel(token="first token", drop=True)
    alike = float(np.corrcoef(heavy.values, by_layer.values)[0, 1])
    study.claim(
        "abstract", "The token with the attention sink gets more gradient through the values", paper="pronounced",
        number=gap, found=f"share of the first token less that of the fourth, mean over layers; the "
        f"first {Estimate.mean(first)}, evenly {ds.attrs['even']:.3f}; correlation with its attention over layers "
        f"{alike:.2f}",
        agrees=gap.above(0.0),
    )  # fmt: skip
    stream = ds["in the stream"].isel(site=slice(1, None)).mean("site")
    lost, other = (stream.sel(token=name, drop=True) - sent.sel(token=name, drop=True) for name in TOKENS)
    less = Estimate.paired(lost, other, "+.3f")
    study.claim(
        "abstract", "A massive state takes the gradient away", paper="adaptive response", number=less,
        found="share in the stream behind the blocks less that through the values, first token less fourth; in the "
        f"stream the first has {Estimate.mean(stream.sel(token='first token', drop=True))}", agrees=less.below(0.0),
    )  # fmt: skip
    count = ds["residual sinks"].isel(site=slice(1, None))
    middle = Estimate.mean(count.mean("site"), ".1f")
    study.claim(
        "residual sinks", "A few dimensions stand out at most tokens", paper="a few fixed dimensions", number=middle,
        found=f"dimensions over 10 medians at more than half of the tokens, mean over blocks; most {int(count.max())}",
        agrees=middle.above(0.0) if middle.value else False,
    )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="chen2026", model=LANGUAGE_MODELS) as study:
        study.for_each(judge)
