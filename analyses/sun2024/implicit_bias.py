"""Massive activations as implicit biases: what the carrier adds to every query is nearly the same.

Paper: Sun et al. 2024, equation 2 and the figures of value updates (LLaMA2-7B, layers 3, 15, 30). The output of
attention at a query is split into what the carriers C give, sum over C of p v, and the rest. Claim: the first part is
almost identical for all queries, as a bias would be.
Cost: one pass that keeps maps and values, seconds.
Different here: the paper shows pictures. The statistic is the mean over queries of |u - mean u| / |mean u|, heads
joined and before W_O; C is the first token, the controls are the tokens at positions 1 to 7, one at a time; queries
from 8 on. The share of the output's size says how much of the output that part is. Intervals are over prompts.
"""

import numpy as np
import torch
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study, with_intervals
from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.engine.run import find_tower
from sinkscope.models.backends.base import Instruments

FIRST = 8
"""First query that counts; the tokens before it are the carriers that are compared."""


def updates(model: sk.Model, prompts: sk.Prompts) -> xr.Dataset:
    """Spread of the update of each early token, and its share of the whole output: dims (prompt, layer, carrier)."""
    tower = find_tower(model, None)
    heads = range(max(site.heads for site in tower.attention))
    ds = sk.run(model, prompts, [sk.AttentionMap(range(len(tower.attention)), heads)])
    maps = ds["attention"].transpose("prompt", "layer", "head", "query", "key").values
    shape = (len(prompts), len(tower.attention), FIRST)
    spread, share = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    for index in range(len(prompts)):

        def watch(layer: int, call: Call, index: int = index) -> CallEdits:
            values = call.value[0].repeat_interleave(call.query.shape[1] // call.value.shape[1], 0).float()
            weights = torch.from_numpy(np.nan_to_num(maps[index, layer]))[: len(values), FIRST : values.shape[1]]
            whole = torch.einsum("hqk,hkd->qhd", weights[..., : values.shape[1]], values).flatten(1).norm(dim=-1)
            for carrier in range(FIRST):
                update = (weights[..., carrier].T[..., None] * values[:, carrier][None]).flatten(1)
                mean = update.mean(0)
                spread[index, layer, carrier] = float(((update - mean).norm(dim=-1) / mean.norm()).mean())
                share[index, layer, carrier] = float((update.norm(dim=-1) / whole).mean())
            return CallEdits()

        with torch.no_grad(), model.evaluating():
            model.backend.forward(prompts.batch([index]).inputs, tower, Instruments(edits=watch))
    dims = ("prompt", "layer", "carrier")
    return ds.drop_vars("attention").assign(spread=(dims, spread), share=(dims, share))


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw and judge one model."""
    prompts = study.texts("prose", n=24)
    ds = study.reading("updates", lambda: updates(model, prompts))
    strength = study.run(prompts, [sk.KeyMass()])["key_mass"].isel(key=0).mean(["prompt", "head"])
    layer = int(strength["layer"][int(strength.values.argmax())])
    groups = xr.Variable("group", ["sink", "others"])
    both = {
        name: xr.concat([ds[name].isel(carrier=0), ds[name].isel(carrier=slice(1, None)).mean("carrier")], dim=groups)
        for name in ("spread", "share")
    }
    table = with_intervals(both["spread"])
    axes = sk.plot.layer_profile(
        table["difference"].transpose("group", "layer"), band=(table["low"], table["high"]),
        ylabel="spread of the update over queries", title="What a token adds to every query",
    )  # fmt: skip
    study.figure(
        axes, "implicit_bias", source=ds,
        says="mean over queries of |u - mean u| / |mean u|, u = weight times value, heads joined; first token (sink) "
        "and mean of positions 1 to 7 (others); bands: 95 % intervals over prompts",
    )  # fmt: skip

    sink, others = (both["spread"].sel(layer=layer, group=group, drop=True) for group in ("sink", "others"))
    own, less = Estimate.mean(sink, ".2f"), Estimate.paired(sink, others, "+.2f")
    study.claim(
        "Eq. 2", "What the carrier adds is almost identical for all queries", paper="pictures, layers 3, 15, 30",
        number=own, agrees=own.above(0.5) is False and less.below(0.0),
        found=f"spread over the mean update in layer {layer}, where the sink is strongest; less that of the tokens "
        f"beside it {less}; {float(both['share'].sel(layer=layer, group='sink').mean()):.0%} of the output's size",
    )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="sun2024", model=LANGUAGE_MODELS) as study:
        study.for_each(judge)
