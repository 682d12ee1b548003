"""The three extreme-token phenomena on one sentence: attention, value norms, residual norms.

Paper: Guo et al. 2024, figure F8 (Llama-3.1-8B, layer 24, four heads, "Summer is warm. Winter is cold."). Claims: heads
attend to the first token, its value is drained, its residual norm is far above the others'. Cost: two passes, over the
paper's line and over 32 texts, seconds.
Different here: the late layer is the one of the second half whose heads attend most to the first token on the paper's
sentence, which is drawn with the four heads that attend most; all heads of that layer are then judged on other texts,
and so is the block where the sentence's first token stands out most. Intervals are over these texts.

    python analyses/guo2024/basics.py --model smollm2-135m
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study
from sinkscope.plot.naming import name_lines

TEXT = "Summer is warm. Winter is cold."
PROBES = (sk.KeyMass(), sk.KeyNorm(), sk.ValueNorm(), sk.ResidualNorm())
"""Those of ``gu2025/norms_by_layer.py``, so that the reading is shared."""


def at_outputs(ds: xr.Dataset) -> xr.DataArray:
    """Residual norms at the outputs of the blocks: dims (prompt, site, key)."""
    outputs = [site for site in ds["site"].values if site.endswith("post")]
    return ds["residual_norm"].sel(site=outputs).transpose("prompt", "site", "key").reset_coords(drop=True)


def judge(study: Study, model: sk.Model) -> None:
    """Draw the three panels for the paper's sentence, and judge what they show on other texts."""
    prompts = sk.Prompts.from_texts([TEXT], model)
    ds = study.run(prompts, PROBES)
    mass = ds["key_mass"].isel(prompt=0, key=0)
    late = mass.isel(layer=slice(mass.sizes["layer"] // 2, None))
    layer = int(late["layer"].values[int(late.mean("head").values.argmax())])
    heads = np.argsort(-mass.sel(layer=layer).values, kind="stable")[:4].tolist()
    maps = study.run(prompts, [sk.AttentionMap([layer], heads)])["attention"].isel(prompt=0, layer=0)
    values = ds["value_norm"].isel(prompt=0).sel(layer=layer).mean("kv_head").values
    norms = at_outputs(ds).isel(prompt=0).values
    figure, axes = plt.subplots(2, 4, figsize=(9.6, 5.4), layout="constrained")
    words = list(prompts.tokens[0])
    for axis, head, weights in zip(axes[0], heads, maps.values, strict=False):
        axis.imshow(weights, cmap="Blues", vmin=0, vmax=1)
        axis.locator_params(integer=True)
        axis.set(title=f"layer {layer}, head {head}", xlabel="key", ylabel="query")
    for axis in axes[1]:
        axis.remove()
    grid = axes[1, 0].get_gridspec()
    left, right = figure.add_subplot(grid[1, :2]), figure.add_subplot(grid[1, 2:])
    left.bar(range(len(values)), values)
    left.set_xticks(range(len(values)), words, rotation=45, ha="right")
    left.set(title=f"Value norms, layer {layer}", ylabel="norm")
    right.plot(norms[:, 0], marker="o", markersize=3)
    right.plot(norms[:, 1:].max(1), marker="o", markersize=3)
    right.set(title="Residual norms", xlabel="block", ylabel="norm")
    name_lines(right, right.lines, ["first token", "largest other"])
    study.figure(
        figure, "basics", source=ds, says=f"the paper's sentence; the four heads of layer {layer} that attend most"
    )

    block = int((norms[:, 0] / norms[:, 1:].max(1)).argmax())
    state(study, study.run(study.texts("prose"), PROBES), layer, block)


def state(study: Study, ds: xr.Dataset, layer: int, block: int) -> None:
    """Judge the three claims over texts, in the layer and behind the block that the sentence showed."""
    mass = ds["key_mass"].isel(key=0).sel(layer=layer).reset_coords(drop=True)
    heads = Estimate.mean((mass > 0.5).mean("head"), ".0%")
    study.claim(
        "F8", "Heads of a late layer attend to the first token", paper="near 1 (maps)", number=heads,
        found=f"of the {mass.sizes['head']} heads of layer {layer} above one half; attention "
        f"{Estimate.mean(mass.mean('head'), '.2f')}", agrees=heads.above(0.5),
    )  # fmt: skip
    value = ds["value_norm"].sel(layer=layer).mean("kv_head").reset_coords(drop=True)
    drained = Estimate.times(value.isel(key=0) / value.isel(key=slice(1, None)).median("key"), ".2f")
    study.claim(
        "F8", "Its value is drained there", paper="far below the others (bars)", number=drained,
        found=f"times the median norm of the other values, layer {layer}", agrees=drained.below(0.5),
    )  # fmt: skip
    norm = at_outputs(ds).isel(site=block)
    above = Estimate.times(norm.isel(key=0) / norm.isel(key=slice(1, None)).max("key"), ".1f")
    study.claim(
        "F8", "Its residual norm is far above the others'", paper="about 500 against 37", number=above,
        found=f"times the largest of the others, behind block {block}", agrees=above.above(3.0),
    )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="guo2024", model=LANGUAGE_MODELS) as study:
        study.for_each(judge)
