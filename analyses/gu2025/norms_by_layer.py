"""Where the sink heads are, and norms of the first token's hidden state, keys and values beside the other tokens'.

Paper: Gu et al. 2025, figures 2 (top) and the head-wise heat map. Claims: no sinks in the first block or two, many
later; the first token's hidden state is far larger than the others', its values are far smaller, its keys are smaller.
Cost: one pass, seconds.
Different here: ratios are taken head by head and prompt by prompt, first token over the median of the others, in the
layers from the first one with a sink head on; intervals are over prompts; keys are after rotary positions, as there.
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import Study


def two_groups(norm: xr.DataArray, dim: str) -> xr.DataArray:
    """Mean norm of the first token and of the others: dims (group, dim)."""
    rest = [d for d in norm.dims if d not in (dim, "key")]
    first, others = norm.isel(key=0).mean(rest), norm.isel(key=slice(1, None)).mean([*rest, "key"])
    return xr.concat([first, others], dim=xr.Variable("group", ["sink", "others"]), coords="minimal", compat="override")


with Study(__doc__, paper="gu2025") as study:
    prompts = study.texts("prose", n=32, tokens=64)
    probes = [sk.KeyMass(), sk.KeyNorm(), sk.ValueNorm(), sk.ResidualNorm()]
    ds = study.reading("norms", lambda: sk.run(study.model, prompts, probes, batch_size=8))
    mass = ds["key_mass"].isel(key=0)
    heads = sk.metrics.sink_rate(ds, over="prompt") > 0.5
    with_sink = [int(layer) for layer in ds["layer"].values[heads.any("head").values]]
    start = with_sink[0] if with_sink else 0

    figure, axes = plt.subplots(2, 2, figsize=(9.2, 6.8))
    share = mass.mean("prompt").reset_coords(drop=True)
    sk.plot.sink_map(share, title="Attention on the first token", ax=axes[0, 0])
    residual = ds["residual_norm"].sel(site=[s for s in ds["site"].values if s == "embed" or s.endswith("post")])
    panels = (
        ("hidden state", residual, "site"),
        ("key", ds["key_norm"], "layer"),
        ("value", ds["value_norm"], "layer"),
    )
    for ax, (name, norm, dim) in zip(axes.ravel()[1:], panels, strict=True):
        sk.plot.norm_profile(two_groups(norm, dim), log=name == "hidden state", title=f"Norm of the {name}", ax=ax)
    study.figure(
        figure, "norms_by_layer", source=ds,
        says="mean attention to the first token by head; l2 norms of the first token (sink) and mean of the others",
    )  # fmt: skip

    n = ds.sizes["prompt"]
    early = heads.isel(layer=slice(0, 1)).mean()
    later = heads.isel(layer=slice(1, None)).mean()
    study.claim(
        "Head-wise map", "No sinks in the first block, many later", paper="absent in the first one or two blocks",
        found=f"heads over 0.3 in most prompts: {float(early):.0%} of {ds.sizes['head']} in layer 0, "
        f"{float(later):.0%} of {heads.isel(layer=slice(1, None)).size} in later layers (n = {n} prompts)",
        agrees=float(early) == 0 and float(later) > 0,
    )  # fmt: skip
    kept = ds.sel(layer=slice(start, None))
    outputs = residual.sel(site=[f"{layer}.post" for layer in kept["layer"].values])
    wanted = (
        ("hidden state", outputs, "site", "far larger", 2.0),
        ("key", kept["key_norm"], "layer", "smaller", 1.0),
        ("value", kept["value_norm"], "layer", "far smaller", 0.5),
    )
    for name, norm, _, verdict, bound in wanted:
        ratio = norm.isel(key=0) / norm.isel(key=slice(1, None)).median("key")
        ratio = np.log(ratio.mean([d for d in ratio.dims if d != "prompt"]))
        row = sk.metrics.compare(ratio, to=ratio * 0)
        low, mid, high = (float(np.exp(row[k])) for k in ("low", "difference", "high"))
        agrees = low > bound if bound > 1 else high < bound
        study.claim(
            "Fig. 2", f"The first token's {name} is {verdict} than the others'", paper="picture, LLaMA3-8B",
            found=f"{mid:.2f} times the median of the others [{low:.2f}, {high:.2f}], layers {start} up (n = {n})",
            agrees=agrees if with_sink else None,
        )  # fmt: skip
