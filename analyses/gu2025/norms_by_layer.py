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
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study, need


def two_groups(norm: xr.DataArray, dim: str) -> xr.DataArray:
    """Mean norm of the first token and of the others: dims (group, dim)."""
    rest = [d for d in norm.dims if d not in (dim, "key")]
    first, others = norm.isel(key=0).mean(rest), norm.isel(key=slice(1, None)).mean([*rest, "key"])
    return xr.concat([first, others], dim=xr.Variable("group", ["sink", "others"]), coords="minimal", compat="override")


def draw(study: Study, ds: xr.Dataset, residual: xr.DataArray) -> None:
    """Map of the sink heads, and norms by layer."""
    figure, axes = plt.subplots(2, 2, figsize=(9.2, 6.8))
    share = ds["key_mass"].isel(key=0).mean("prompt").reset_coords(drop=True)
    sk.plot.sink_map(share, title="Attention on the first token", ax=axes[0, 0])
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


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw and judge one model."""
    probes = [sk.KeyMass(), sk.KeyNorm(), sk.ValueNorm(), sk.ResidualNorm()]
    ds = study.run(study.texts("prose"), probes)
    residual = ds["residual_norm"].sel(site=[s for s in ds["site"].values if s == "embed" or s.endswith("post")])
    draw(study, ds, residual)

    over = (ds["key_mass"].isel(key=0) > 0.3).reset_coords(drop=True)
    heads = over.mean("prompt") > 0.5
    early, later = (over.isel(layer=part).mean(["layer", "head"]) for part in (slice(0, 1), slice(1, None)))
    share, rest = Estimate.mean(early, ".0%"), Estimate.mean(later, ".0%")
    need(model, bool(heads.any()), "heads with a mean attention to the first token above 0.3; it has none")
    study.claim(
        "Head-wise map", "No sinks in the first block, many later", paper="absent in the first one or two blocks",
        number=rest, found=f"of {heads.isel(layer=slice(1, None)).size} heads in later layers, {share} of "
        f"{ds.sizes['head']} in layer 0", agrees=share.value < 0.05 and rest.value > 0.2,
    )  # fmt: skip
    start = int(ds["layer"].values[heads.any("head").values][0])
    kept = ds.sel(layer=slice(start, None))
    outputs = residual.sel(site=[f"{layer}.post" for layer in kept["layer"].values])
    wanted = (
        ("hidden state", outputs, "far larger", 2.0), ("key", kept["key_norm"], "smaller", 1.0),
        ("value", kept["value_norm"], "far smaller", 0.5),
    )  # fmt: skip
    for name, norm, verdict, bound in wanted:
        ratio = np.log((norm.isel(key=0) / norm.isel(key=slice(1, None)).median("key")).reset_coords(drop=True))
        row = Estimate.mean(ratio.mean([d for d in ratio.dims if d != "prompt"]))
        times = Estimate(*(float(np.exp(x)) for x in (row.value, row.low, row.high)), row.n, "", ".2f")
        study.claim(
            "Fig. 2", f"The first token's {name} is {verdict} than the others'", paper="picture, LLaMA3-8B",
            number=times, found=f"times the median of the others (geometric mean over layers {start} up)",
            agrees=times.above(bound) if bound > 1 else times.below(bound),
        )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="gu2025", model=LANGUAGE_MODELS) as study:
        study.for_each(judge)
