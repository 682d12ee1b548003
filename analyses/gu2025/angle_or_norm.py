"""Angle or norm: what makes queries choose the first key?

Paper: Gu et al. 2025, figure 2 (bottom). A logit is |q| |k| cos(q, k) / sqrt(d). Claim: the first key is small, yet its
cosine with almost all queries is large: the angle makes the sink, not the size.
Cost: one pass that keeps queries and keys, seconds.
Different here: all heads, those with a sink against the rest (the control); the maps are of the strongest sink head.
Intervals are over prompts. Queries and keys are those that attention sees, after rotary positions.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study, need, with_intervals
from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.engine.run import find_tower
from sinkscope.models.backends.base import Instruments


def geometry(model: sk.Model, prompts: sk.Prompts) -> xr.Dataset:
    """Cosine and product of norms of every query and key: dims (prompt layer head query key), with the key mass."""
    base, tower = sk.run(model, prompts, [sk.KeyMass()]), find_tower(model, None)
    shape = (*base["key_mass"].shape[:3], *2 * base["key_mass"].shape[3:])
    cosine, size = (np.full(shape, np.nan, np.float32) for _ in range(2))
    for index in range(len(prompts)):

        def watch(layer: int, call: Call, index: int = index) -> CallEdits:
            keys = call.key[0].repeat_interleave(call.query.shape[1] // call.key.shape[1], 0).float()
            norms = call.query[0].float().norm(dim=-1)[..., None] * keys.norm(dim=-1)[:, None]
            dots = call.query[0].float() @ keys.transpose(1, 2)
            hidden = ~torch.ones(dots.shape[1:], dtype=torch.bool).tril() if tower.causal else dots[0] > torch.inf
            for store, found in ((cosine, dots / norms), (size, norms)):
                store[index, layer, :, : len(hidden), : len(hidden)] = found.masked_fill(hidden, torch.nan)
            return CallEdits()

        with torch.no_grad(), model.evaluating():
            model.backend.forward(prompts.batch([index]).inputs, tower, Instruments(edits=watch))
    dims = ("prompt", "layer", "head", "query", "key")
    return base.assign(cosine=(dims, cosine), norm_product=(dims, size))


def split(values: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """The first key, and the mean of the other keys that a query sees, its own left out."""
    own = xr.DataArray(np.eye(values.sizes["query"], dtype=bool), dims=("query", "key"))
    others = values.where(~own).isel(key=slice(1, None), query=slice(2, None)).mean("key")
    return values.isel(key=0, query=slice(2, None)), others


def compared(ds: xr.Dataset, sinks: xr.DataArray) -> dict[str, xr.Dataset]:
    """First key against the others in sink heads and other heads: difference of cosines, log ratio of sizes."""
    near, size = split(ds["cosine"]), split(ds["norm_product"])
    angle, ratio = (near[0] - near[1]).mean("query"), np.log((size[0] / size[1]).mean("query"))
    rows, names = {}, xr.Variable("heads", ["sink heads", "other heads"])
    for name, values in (("cosine", angle), ("log size", ratio)):
        cells = [values.where(mask).mean(["layer", "head"]) for mask in (sinks, ~sinks)]
        cell = xr.concat(cells, dim=names, compat="override", coords="minimal")
        rows[name] = with_intervals(cell)
    return rows


def draw(study: Study, ds: xr.Dataset, strongest: tuple[int, int], rows: dict[str, xr.Dataset]) -> None:
    """Maps of the strongest sink head, and both groups of heads."""
    layer, head = strongest
    one = ds.isel(prompt=0, layer=layer, head=head, query=slice(0, 20), key=slice(0, 20))
    figure, panels = plt.subplot_mosaic([["cosine", "norms"], ["all"] * 2], figsize=(6.6, 7.6), height_ratios=(1.2, 1))
    axes = list(panels.values())
    title = f"Layer {layer}, head {head}"
    sk.plot.pair_map(one["cosine"], signed=True, limit=1.0, label="cosine", title=title, ax=axes[0])
    sk.plot.pair_map(one["norm_product"], label="norm of query times key", title="The same head", ax=axes[1])
    both = xr.concat(rows.values(), dim=xr.Variable("part", ["cosine, difference", "log of size, ratio"]))
    sk.plot.grouped_bars(
        both["difference"], interval=(both["low"], both["high"]), ylabel="first key against other keys",
        title="All heads", ax=axes[2],
    )  # fmt: skip
    study.figure(
        figure, "angle_or_norm", source=ds,
        says="cosine and product of norms of queries and keys; heads with mean attention to the first token above 0.3 "
        "against the rest, 95 % intervals over prompts",
    )  # fmt: skip


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw and judge one model."""
    prompts = study.texts("prose", n=16, tokens=40)
    ds = study.reading("geometry", lambda: geometry(model, prompts))
    mass = ds["key_mass"].isel(key=0).mean("prompt").drop_vars(["token", "token_role"], errors="ignore")
    sinks = mass > 0.3
    need(model, bool(sinks.any()), "heads with a mean attention to the first token above 0.3; it has none")
    rows = compared(ds, sinks)
    draw(study, ds, tuple(int(i) for i in np.unravel_index(int(mass.values.argmax()), mass.shape)), rows)

    count = int(sinks.sum())
    angle, size = (Estimate.of(rows[name], "+.2f", heads="sink heads") for name in ("cosine", "log size"))
    control = Estimate.of(rows["cosine"], "+.2f", heads="other heads")
    study.claim(
        "Fig. 2", "The first key's cosine with queries is above the other keys'", paper="picture, LLaMA3-8B",
        number=angle, found=f"in {count} sink heads, {control} in the others",
        agrees=angle.above(max(0.0, control.high if np.isfinite(control.high) else 0.0)),
    )  # fmt: skip
    study.claim(
        "Fig. 2", "Not the size of the key: the first key is small", paper="picture, LLaMA3-8B", number=size,
        found=f"log ratio of |k| to the other keys' in {count} sink heads", agrees=size.below(0.0),
    )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="gu2025", model=LANGUAGE_MODELS) as study:
        study.for_each(judge)
