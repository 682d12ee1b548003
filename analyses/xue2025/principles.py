"""Attention taken apart: what its maps are like by layer, and what is lost when one principle at a time is removed.

Paper: Xue et al. 2025 (arXiv 2510.11602). Claims: without mixing of tokens a model falls to near chance; the form of
the weights and their dependence on the sequence can be given up in part, above all where every second layer keeps
standard attention.
Cost: one pass that keeps all maps, and fourteen short passes per prompt: a minute or two per language model.
Different here: the paper trains each variant, here it is put into a model trained with softmax, so each costs more than
trained anew; the approximate and the non-approximate form of the paper were not found, a kernel (ELU + 1) and softplus
over its sum stand for them. Measures of maps: concentration, share of the first token, focus on the token itself and
the one before, diversity of the heads; beside them what evenly spread attention gives. Intervals are over prompts.
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study, need, with_intervals
from sinkscope.engine.run import find_tower
from sinkscope.methods.principles import REPLACEMENTS, maps_of, replaced_attention

MEASURES = ("first token", "token itself", "token before", "diversity", "concentration")
WHERE = ("every layer", "every second layer")


def measures(maps: np.ndarray) -> np.ndarray:
    """Numbers of a layer's maps (layer head query key): (measure layer), concentration over its largest value."""
    inner = maps[..., 1:, :]
    return np.stack([
        inner[..., 0].mean((1, 2)), sk.metrics.local_focus(maps, 0).mean(1), sk.metrics.local_focus(maps, 1).mean(1),
        sk.metrics.head_diversity(maps), sk.metrics.concentration(maps).mean(1) / np.sqrt(maps.shape[-1]),
    ])  # fmt: skip


def measured(study: Study, model: sk.Model) -> xr.Dataset:
    """Measures by layer, and the loss under each replacement in all layers and in every second one."""
    prompts = study.texts("code" if model.id.startswith("zoo:lm-") else "prose", n=6, tokens=64)
    depth, n = find_tower(model, None).depth, len(prompts)
    reading = sk.run(model, prompts, [sk.TokenLoss()])
    rows, losses = [], np.zeros((n, len(WHERE), len(REPLACEMENTS)))
    for index in range(n):
        one = prompts.subset([index])
        rows.append(measures(maps_of(model, one)))
        for place, layers in enumerate((None, range(0, depth, 2))):
            edits = replaced_attention(model, prompts, index, (index + 1) % n, layers=layers)
            for number, each in enumerate(edits.values()):
                found = sk.run(model, one, [sk.TokenLoss()], each)["token_loss"]
                losses[index, place, number] = float(found.mean())
    even = np.tril(np.ones((64, 64))) / np.arange(1, 65)[:, None]
    return xr.Dataset(
        {
            "measure": (("prompt", "kind", "layer"), np.array(rows)),
            "plain": ("prompt", reading["token_loss"].mean("query").values),
            "even": ("kind", measures(even[None, None])[:, 0]),
            "loss": (("prompt", "where", "part"), losses),
        },
        {"kind": list(MEASURES), "where": list(WHERE), "part": list(REPLACEMENTS), "prompt": np.arange(n),
         "layer": np.arange(depth)},
        reading.attrs | {"vocabulary": int(model.config.get_text_config().vocab_size)},
    )  # fmt: skip


def told(cost: xr.DataArray) -> str:
    """Mean change of the loss by replacement, in words."""
    return "; ".join(f"{name} {float(cost.sel(part=name).mean()):+.2f}" for name in REPLACEMENTS)


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw and judge one model."""
    need(model, model.is_causal, "a decoder, whose loss per token it reads")
    ds = study.reading("principles", lambda: measured(study, model))
    cost = ds["loss"] - ds["plain"]
    figure, (left, right) = plt.subplots(2, 1, figsize=(8.4, 8), layout="constrained")
    table = with_intervals(ds["measure"])
    shown = table["difference"].transpose("kind", "layer")
    sk.plot.layer_profile(shown, band=(table["low"], table["high"]), ylabel="mean over heads", title="Maps by layer",
                          ax=left)  # fmt: skip
    for line, value in zip(left.lines, ds["even"].values, strict=False):
        left.axhline(value, color=line.get_color(), linestyle=":", linewidth=0.8)
    bars = with_intervals(cost)
    shown = bars["difference"].transpose("part", "where").assign_attrs(long_name="change of the loss", units="nat")
    chance = float(np.log(ds.attrs["vocabulary"]) - ds["plain"].mean())
    sk.plot.grouped_bars(shown, interval=(bars["low"], bars["high"]), reference=chance, title="One principle removed",
                         ax=right)  # fmt: skip
    right.set_xticks(right.get_xticks(), [name.replace(" ", "\n") for name in REPLACEMENTS])
    study.figure(
        figure, "principles", source=ds,
        says="above: concentration is over its largest value, dotted lines are evenly spread attention; below: the "
        "loss with one principle removed less that without, dotted: a uniform guess; 95 % intervals over prompts",
    )  # fmt: skip

    every, half = (cost.sel(where=name, drop=True) for name in WHERE)
    mixing, others = every.sel(part="no mixing", drop=True), every.drop_sel(part="no mixing")
    lost = Estimate.mean(mixing, "+.2f", "nat")
    study.claim(
        "main table", "Without mixing of tokens the model falls to near chance", paper="near-random, trained so",
        number=lost, found=f"{lost.value / chance:.0%} of the way to a uniform guess ({chance:+.2f} nat)",
        agrees=lost.above(0.5 * chance),
    )  # fmt: skip
    worst = Estimate.paired(mixing, others.max("part"), "+.2f", "nat")
    study.claim(
        "main table", "Every other principle costs less than mixing", paper="can be relaxed, trained so", number=worst,
        found=f"no mixing less the dearest of the others; {told(every)}", agrees=worst.above(0.0),
    )  # fmt: skip
    gain = Estimate.paired(half.mean("part"), every.mean("part"), "+.2f", "nat")
    study.claim(
        "hybrids", "With standard attention in every second layer it costs less", paper="robust, trained so",
        number=gain, found=f"every second layer less every layer, mean over replacements; {told(half)}",
        agrees=gain.below(0.0),
    )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="xue2025", model=LANGUAGE_MODELS) as study:
        study.for_each(judge)
