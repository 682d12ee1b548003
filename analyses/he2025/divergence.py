"""Vision-aware heads: which heads change when the picture goes, and whether they do so less where the answer is wrong.

Paper: He et al. 2025 (arXiv 2412.13949), figures 2 and 3. Claims: few heads change much when the picture is taken away;
the divergence summed over heads is lower at hallucinated words. Cost: two passes over 240 prompts, seconds. Different
here: at the token that predicts a one-word answer about a made picture; a wrong answer stands for a hallucinated word;
k = 4 of each layer's heads (the paper gives none), or all where there are fewer.

    python analyses/he2025/divergence.py --model zoo:vlm-shapes
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import Study, draw_right_and_wrong, right_and_wrong
from sinkscope.methods.vhr import divergence, token_divergence
from sinkscope.tasks.examples import answer_score
from sinkscope.tasks.scene_questions import scene_questions


def measured(model: sk.Model, n: int) -> xr.Dataset:
    """Divergence of each head (prompt layer head), and whether the answer is right."""
    asked = scene_questions(model, n, seed=7)
    found = divergence(model, asked.prompts)
    score = answer_score(model, asked.examples)
    return score.assign(divergence=(found["divergence"].dims, found["divergence"].values)).assign_coords(
        layer=found["layer"].values, head=found["head"].values
    )


def main() -> None:
    """Measure, draw, and state what was found."""
    with Study(__doc__, paper="he2025", model="zoo:vlm-shapes") as study:
        ds = study.reading("divergence", lambda: measured(study.model, 16 if study.quick else 480))
        mean = ds["divergence"].mean("prompt")
        summed = token_divergence(ds["divergence"], min(4, ds.sizes["head"]))
        right = ds["correct"].values > 0
        figure, (left, axes) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
        says = "distance of a head's output with and without the picture, at the token that predicts the answer"
        drawn = sk.plot.described(mean.rename("divergence").assign_attrs(units="1"), ds, says)
        sk.plot.sink_map(drawn, vmax=float(mean.max()), title="Divergence by head", label="mean divergence", ax=left)
        draw_right_and_wrong(summed, right, "divergence of the token", axes)
        study.figure(figure, "divergence", source=ds, says=says)

        ranked = np.sort(mean.values.ravel())[::-1]
        tenth = max(1, round(len(ranked) / 10))
        share = float(ranked[:tenth].sum() / ranked.sum())
        study.claim(
            "Fig. 2", "Few heads hold most of the divergence", paper="few bright heads",
            found=f"a tenth of the heads ({tenth} of {len(ranked)}) holds {share:.0%} (n = {len(right)})",
            agrees=share > 0.5,
        )  # fmt: skip
        words, agrees = right_and_wrong(summed, right)
        study.claim(
            "Fig. 3", "The divergence is lower where the answer is wrong", paper="hallucinated words shifted left",
            found=words, agrees=agrees,
        )  # fmt: skip


if __name__ == "__main__":
    main()
