"""Vision-aware heads reinforced in the last layers: does a description name fewer things that are not there?

Paper: He et al. 2025 (arXiv 2412.13949), figure 5 and the ablation of heads. Claims: CHAIR falls as the last layers'
vision-aware heads are doubled, most at 14 of 32, less beyond; heads chosen for one sample do not serve another. Cost:
48 descriptions in each of 14 ways. Different here: coloured shapes; an object is a phrase of colour and shape;
``zoo:vlm-shapes`` names all of clean pictures rightly, so noise lies on them; a large model is asked 12 and measures
all layers at once. Controls: as many other heads of the same layers; another picture's heads; recall and length beside.

    python analyses/he2025/reinforced.py --model zoo:vlm-shapes
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import Estimate, Study, is_large
from sinkscope.engine.generation import written_texts
from sinkscope.methods.vhr import LATE_SHARE, VhrResult, VhrSettings, generate_reinforced, vhr
from sinkscope.plot.naming import share_legend
from sinkscope.tasks.scene_captions import SceneCaptions, scene_captions

GRAIN, NEW = 20.0, 48
"""Noise on the pictures of a small model, 0 to 255; most tokens of a description."""


def told(model: sk.Model, asked: SceneCaptions, chosen: VhrResult | None) -> xr.Dataset:
    """Score the descriptions written with these heads reinforced."""
    if chosen is None:
        parts = [sk.generate(model, asked.prompts, max_new_tokens=NEW)]
    else:
        parts = generate_reinforced(model, asked.prompts, chosen, NEW)
    texts = [text for part in parts for text in written_texts(model, part)]
    return asked.score(texts)[["wrong", "mentions", "found", "objects", "hallucinated", "length"]]


def measured(model: sk.Model, n: int, counts: list[int], best: int) -> xr.Dataset:
    """Count what is named (way layers prompt): heads chosen by divergence, random ones, another picture's at best."""
    asked = scene_captions(model, n, seed=9, grain=0.0 if is_large(model) else GRAIN)
    depth = int(model.config.get_text_config().num_hidden_layers)
    plain = told(model, asked, None)
    rows = {("chosen", 0): plain, ("random", 0): plain}
    for count in counts:
        settings = VhrSettings(layers=range(depth - count, depth), layerwise=not is_large(model))
        chosen = vhr(model, asked.prompts, settings)
        rows["chosen", count] = told(model, asked, chosen)
        if count == best or not is_large(model):
            rows["random", count] = told(model, asked, chosen.random_heads())
        if count == best:
            rolled = chosen.heads.copy(data=np.roll(chosen.heads.values, 1, axis=0))
            rows["another picture's", count] = told(model, asked, chosen.with_heads(rolled))
    ways = list(dict.fromkeys(way for way, _ in rows))
    empty = plain * np.nan
    grid = [xr.concat([rows.get((way, c), empty) for c in (0, *counts)], "layers") for way in ways]
    attrs = sk.run(model, asked.prompts.subset([0]), [sk.Logits()]).attrs | {"n_prompts": n, "depth": depth}
    coords = {"way": ways, "layers": [0, *counts]}
    return xr.concat(grid, "way").assign_coords(coords).drop_attrs().assign_attrs(attrs)


def shares(ds: xr.Dataset, part: str, of: str, to: xr.Dataset | None = None) -> Estimate:
    """A share over descriptions together, or its difference to another's, drawn anew by description."""

    cells = [(each[part].values, each[of].values) for each in (ds, to) if each is not None]

    def of_draw(at: np.ndarray) -> float:
        found = [float(top[at].sum() / max(1.0, low[at].sum())) for top, low in cells]
        return found[0] - sum(found[1:])

    return Estimate.resampled(of_draw, ds.sizes["prompt"], ".3f" if to is None else "+.3f")


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw, and state what was found on one model."""
    depth = int(model.config.get_text_config().num_hidden_layers)
    best = round(LATE_SHARE * depth)
    counts = [best, depth] if is_large(model) or study.quick else sorted({*range(1, depth + 1), best})
    n = 3 if study.quick else 12 if is_large(model) else 48
    ds = study.reading("reinforced", lambda: measured(model, n, counts, best))
    draw(study, ds)
    at = {way: ds.sel(way=way, layers=best) for way in ds["way"].values.tolist()}
    plain, every = (ds.sel(way="chosen", layers=count) for count in (0, depth))
    for figure, claim, paper, one, other in (
        ("Fig. 5", f"Reinforcing the last {best} of {depth} layers lowers CHAIR", "49.7 to 33.3 with layer 1",
         at["chosen"], plain),
        ("Fig. 5", "It does better than reinforcing all layers", "best at 14 of 32", at["chosen"], every),
        ("ablation", "It does better than with heads chosen for another picture", "44.7 against 33.3",
         at["chosen"], at["another picture's"]),
        ("control", "It does better than as many random heads", "", at["chosen"], at["random"]),
    ):  # fmt: skip
        gap = shares(one, "wrong", "mentions", other)
        pairs = [f"{float(a):.2f} against {float(b):.2f}" for a, b in (
            (shares(one, "wrong", "mentions").value, shares(other, "wrong", "mentions").value),
            (shares(one, "found", "objects").value, shares(other, "found", "objects").value),
            (one["length"].mean(), other["length"].mean()),
        )]  # fmt: skip
        study.claim(figure, claim, paper=paper, number=gap, agrees=gap.below(0.0),
                    found=f"CHAIR_I {pairs[0]}; recall {pairs[1]}; words {pairs[2]}")  # fmt: skip


def draw(study: Study, ds: xr.Dataset) -> None:
    """Draw CHAIR, recall and length by the number of layers reinforced."""
    figure, grid = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
    panels = (("wrong", "mentions", "CHAIR_I"), ("found", "objects", "recall"), ("length", "", "words"))
    for ax, (part, of, name) in zip(grid, panels, strict=True):
        for way, marker in zip(ds["way"].values.tolist(), "osD", strict=False):
            line = ds.sel(way=way).dropna("layers", how="all")
            cells = [line.isel(layers=i) for i in range(line.sizes["layers"])]
            found = [shares(c, part, of) if of else Estimate.mean(c[part]) for c in cells]
            value = np.array([each.value for each in found])
            ends = np.clip([value - [e.low for e in found], [e.high for e in found] - value], 0, None)
            ax.errorbar(line["layers"], value, ends, marker=marker, capsize=2, label=f"{way} heads")
        ax.set(xlabel="last layers reinforced", title=name)
    share_legend(figure)
    study.figure(figure, "reinforced", source=ds, says="outputs of the heads doubled; 95 % bootstrap intervals")


if __name__ == "__main__":
    with Study(__doc__, paper="he2025", model="zoo:vlm-shapes") as study:
        study.for_each(judge)
