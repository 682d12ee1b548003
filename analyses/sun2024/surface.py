"""The whole surface: every entry of the residual stream, by token and dimension.

Paper: Sun et al. 2024, figure 1 (LLaMA2-7B, layer 2, "Summer is warm. Winter is cold."). Claim: a handful of entries
stand out, all others are flat beside them. Cost: one pass over a prompt of a line, seconds. Different here: at the
block output where the largest entry is largest against the median; the claim counts entries above a tenth of the
largest. One prompt, the paper's.

    python analyses/sun2024/surface.py --model smollm2-135m
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np

import sinkscope as sk
from sinkscope.analysis import Study
from sinkscope.methods.residual import residual_stream

TEXT = "Summer is warm. Winter is cold.\n"
HANDFUL = 10
"""Most entries that are still a handful."""


def judge(study: Study, model: sk.Model) -> None:
    """Draw the surface and count."""
    prompts = sk.Prompts.from_texts([TEXT], model)
    ds = study.run(prompts, [sk.MassiveActivations()])
    states = {name: abs(state) for name, state in residual_stream(model, prompts, 0).items() if name.endswith("post")}
    site = max(states, key=lambda name: states[name].max() / np.median(states[name]))
    sizes = states[site]
    figure = plt.figure(figsize=(8, 5))
    axes = figure.add_subplot(projection="3d")
    tokens, dims = np.meshgrid(np.arange(sizes.shape[0]), np.arange(sizes.shape[1]), indexing="ij")
    axes.plot_wireframe(tokens, dims, sizes, color="royalblue", linewidth=0.6, rstride=1, cstride=0)
    axes.set_xticks(range(sizes.shape[0]), list(prompts.tokens[0]), fontsize=7)
    axes.set(ylabel="dimension", zlabel="magnitude", title=f"{model.id}, {site}")
    study.figure(figure, "surface", source=ds, says=f"magnitude of every entry at {site}, one line a token")
    token, dim = np.unravel_index(int(sizes.argmax()), sizes.shape)
    count, largest = int((sizes > sizes.max() / 10).sum()), float(sizes.max())
    study.claim(
        "Fig. 1", "A handful of entries stand out of the whole surface", paper="two dimensions of 4096, 2400 high",
        found=f"{count} of {sizes.size} entries are above a tenth of the largest, {largest:.0f} at token {token} "
        f"({prompts.tokens[0][token]}), dimension {dim}, {largest / np.median(sizes):.0f} times the median (n = 1)",
        agrees=count <= HANDFUL,
    )  # fmt: skip


with Study(__doc__, paper="sun2024", model=("smollm2-135m", "gemma3-270m", "zoo:lm-python")) as study:
    study.for_each(judge)
