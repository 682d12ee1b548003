"""Sinks in the middle of a prompt: do they point along the first token, and which sublayer makes the first one?

Paper: Anand et al. 2026 (arXiv 2510.22603), the curve of the cosine to the first token by layer, and the origin of the
massive activation. Claims: besides the first token some tokens with little content (delimiters) are sinks; their state
points along the first token's from the third layer on (cosine above .98), that of other tokens does not (up to .31);
the MLP of one early block writes the massive activation, no attention does.
Cost: two passes over 8 prompts, half a minute per language model.
Different here: no speech model is at hand; a sink in the middle is made by putting the model's own first token there
once more, which some models take for one and others do not. A token is a sink by the mean attention it gets over heads
and layers from the fourth on, above .1. Intervals are over prompts.
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study, need, with_intervals
from sinkscope.analysis.texts import specials
from sinkscope.methods.residual import residual_stream

AT, FROM, SINK = 24, 3, 0.1
"""Where the model's first token stands once more; first layer that counts, and the mean attention of a sink."""


def prompts_with(study: Study, model: sk.Model) -> sk.Prompts:
    """Texts with the model's own first token in front and once more in the middle."""
    own = specials(model)[0]
    token = own[-1] if own else getattr(model.tokenizer, "bos_token_id", None)
    need(model, token is not None, "a token of its own that begins a text")
    rows = [row.tolist() for row in study.texts("prose", n=8).ids]
    front = [[*own, *row[len(own) :]] if own else [token, *row[:-1]] for row in rows]
    return sk.Prompts.from_ids([[*row[:AT], token, *row[AT:-1]] for row in front], model)


def writes(model: sk.Model, prompts: sk.Prompts) -> xr.Dataset:
    """Largest entry that attention and MLP of each block add at the first token: dims (prompt part layer)."""
    found = []
    for index in range(len(prompts)):
        streams = {site: state[:1] for site, state in residual_stream(model, prompts, index).items()}
        found.append(sk.metrics.sublayer_peak(streams))
    parts = ["attention", "mlp"]
    data = np.array([[one[part] for part in parts] for one in found])
    coords = {"prompt": np.arange(len(prompts)), "part": parts, "layer": np.arange(data.shape[2])}
    return xr.Dataset({"peak": (("prompt", "part", "layer"), data)}, coords)


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw and judge one model."""
    prompts = prompts_with(study, model)
    ds = study.run(prompts, [sk.KeyMass(), sk.BosCosine()])
    peak = study.reading("writes", lambda: writes(model, prompts).assign_attrs(ds.attrs))["peak"]
    mass = ds["key_mass"].isel(layer=slice(FROM, None)).mean(["layer", "head"]).reset_coords(drop=True)
    cosine = ds["bos_cosine"].isel(site=slice(None, -1)).reset_coords(drop=True)
    place = xr.DataArray(np.arange(mass.sizes["key"]), dims="key")
    groups = xr.Variable("group", ["the first token again", "other tokens"])
    pair = xr.concat(
        [cosine.isel(key=AT, drop=True), cosine.where((place > 0) & (place != AT)).mean("key")], dim=groups
    )
    table = with_intervals(pair)

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4), layout="constrained")
    sk.plot.layer_profile(
        table["difference"].transpose("group", "site"), band=(table["low"], table["high"]), title="Likeness",
        ylabel="cosine to the first token", ax=left,
    )  # fmt: skip
    sk.plot.layer_profile(
        peak.mean("prompt").assign_coords(part=["attention", "MLP"]), log=True, title="Who writes the massive entry",
        ylabel="largest entry written at the first token", ax=right,
    )  # fmt: skip
    study.figure(
        figure, "sinks_along_bos", source=ds,
        says=f"the model's own first token stands once more at position {AT}; residual stream by site, bands: 95 % "
        "intervals over prompts; largest entry that each sublayer adds at the first token, mean over prompts",
    )  # fmt: skip

    largest = peak.max("layer")
    ratio = Estimate.mean(largest.sel(part="mlp", drop=True) / largest.sel(part="attention", drop=True), ".3g")
    block = int(peak.sel(part="mlp").mean("prompt").argmax("layer"))
    study.claim(
        "origin", "An MLP writes the massive activation, no attention does", paper="MLP of layer 2, Llama-3.2-3B",
        number=ratio, found=f"times what any attention writes; MLP {block} of {peak.sizes['layer']} writes "
        f"{float(largest.sel(part='mlp').mean()):,.0f}, attention at most "
        f"{float(largest.sel(part='attention').mean()):,.0f}", agrees=ratio.above(10.0),
    )  # fmt: skip
    again, most = Estimate.mean(mass.isel(key=AT, drop=True), ".3f"), mass.where((place > 0) & (place != AT)).max("key")
    is_sink = again.above(SINK)
    inside = pair.isel(site=slice(2 * (block + 1), None)).mean("site")
    own, rest = (Estimate.mean(inside.isel(group=index, drop=True), ".2f") for index in (0, 1))
    told = f"mean attention {again} there, at most {float(most.mean()):.3f} on any other token behind the first"
    study.claim(
        "cosine by layer", "A sink in the middle points along the first token", paper="above .98 from layer 3 on",
        number=own, found=f"cosine behind block {block}; {told}",
        agrees=own.above(0.9) if is_sink is True else f"the first token again is no sink there: mean attention {again}",
    )  # fmt: skip
    study.claim(
        "cosine by layer", "Other tokens do not", paper="-.05 to .31", number=rest,
        found=f"cosine behind block {block}, all tokens but those two", agrees=rest.below(0.5),
    )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="anand2026", model=LANGUAGE_MODELS) as study:
        study.for_each(judge)
