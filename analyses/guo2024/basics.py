"""The three extreme-token phenomena on one sentence: attention, value norms, residual norms.

Paper: Guo et al. 2024, figure F8 (Llama-3.1-8B, layer 24, four heads, "Summer is warm. Winter is cold."). Claims: heads
attend to the first token, its value is drained, its residual norm is far above the others'. Cost: one pass over a line,
seconds. Different here: the layer whose heads attend most to the first token; all its heads are counted and the four
that attend most are drawn. One prompt, the paper's; claims over many are those of ``gu2025/norms_by_layer.py``.

    python analyses/guo2024/basics.py --model smollm2-135m
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np

import sinkscope as sk
from sinkscope.analysis import LANGUAGE_MODELS, Study

TEXT = "Summer is warm. Winter is cold."


def judge(study: Study, model: sk.Model) -> None:
    """Draw the three panels and read them."""
    prompts = sk.Prompts.from_texts([TEXT], model)
    probes = [sk.KeyMass(), sk.ValueNorm(), sk.ResidualNorm()]
    ds = study.run(prompts, probes)
    mass = ds["key_mass"].isel(prompt=0, key=0)
    layer = int(mass["layer"].values[int(mass.mean("head").values.argmax())])
    heads = np.argsort(-mass.sel(layer=layer).values, kind="stable")[:4].tolist()
    maps = study.run(prompts, [sk.AttentionMap([layer], heads)])["attention"].isel(prompt=0, layer=0)
    values = ds["value_norm"].isel(prompt=0).sel(layer=layer).mean("kv_head").values
    norms = ds["residual_norm"].isel(prompt=0)
    norms = norms.sel(site=[site for site in ds["site"].values if site.endswith("post")]).values
    figure, axes = plt.subplots(2, 4, figsize=(11, 5.4), layout="constrained")
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
    right.plot(norms[:, 0], marker="o", markersize=3, label=f"first token {words[0]}")
    right.plot(norms[:, 1:].max(1), marker="o", markersize=3, label="largest of the others")
    right.set(title="Residual norms", xlabel="block", ylabel="norm")
    right.legend()
    study.figure(
        figure, "basics", source=ds, says=f"the paper's sentence; the four heads of layer {layer} that attend most"
    )

    share = mass.sel(layer=layer).values
    study.claim(
        "F8", "Heads of a late layer attend to the first token", paper="near 1 (maps)",
        found=f"layer {layer}: {int((share > 0.5).sum())} of {len(share)} heads above one half, mean "
        f"{share.mean():.2f} (n = 1)", agrees=bool((share > 0.5).mean() > 0.5),
    )  # fmt: skip
    others = float(np.median(values[1:]))
    study.claim(
        "F8", "Its value is drained there", paper="far below the others (bars)",
        found=f"norm {values[0]:.2f} against {others:.2f}, the median of the others (n = 1)",
        agrees=bool(values[0] < others / 2),
    )  # fmt: skip
    ratio = norms[:, 0] / norms[:, 1:].max(1)
    study.claim(
        "F8", "Its residual norm is far above the others'", paper="about 500 against 37",
        found=f"{ratio.max():.1f} times the largest of the others, behind block {int(ratio.argmax())} (n = 1)",
        agrees=bool(ratio.max() > 3),
    )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="guo2024", model=LANGUAGE_MODELS) as study:
        study.for_each(judge)
