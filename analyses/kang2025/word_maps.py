"""Attention of each word to the picture: are the same patches lit whatever the word?

Paper: Kang et al. 2025 (arXiv 2503.03321), figure 1. Claims: the maps of different words light the same few patches,
and those show nothing relevant. The figure shows words that the model generates; here the words of the question, mean
over all heads of the deeper half of the layers. Control: the likeness of the maps of different pictures.
Cost: one pass over 48 short prompts with maps.

    python analyses/kang2025/word_maps.py --model zoo:vlm-smol
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import VISION_LANGUAGE_MODELS, Study, describe_difference, has_sign, is_large, spread_layers
from sinkscope.plot.labels import token_label
from sinkscope.tasks.scene_questions import scene_questions

SHOWN = 6


def likeness(maps: np.ndarray, others: np.ndarray) -> float:
    """Mean correlation of each row of ``maps`` with each row of ``others``, (row, patch) both; not with itself."""
    table = np.corrcoef(maps, others)[: len(maps), len(maps) :]
    same = np.eye(*table.shape, dtype=bool) if maps is others else np.zeros(table.shape, dtype=bool)
    return float(table[~same].mean())


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw, and state what was found on one model."""
    shapes = scene_questions(model, 12 if study.quick else 32 if is_large(model) else 48, ("colour", "shape", "place"))
    layers = spread_layers(model)
    deep, heads = layers[len(layers) // 2 :], range(int(model.config.get_text_config().num_attention_heads))
    probe = sk.AttentionMap(layers=deep, heads=heads)
    ds = study.reading("maps", lambda: sk.run(model, shapes.prompts, [probe]))
    roles, about = ds["token_role"].values, shapes.covered(ds, "about").values
    mean = ds["attention"].mean(["layer", "head"]).transpose("prompt", "query", "key")
    rows, patches = [], []
    for i in range(len(shapes.scenes)):
        visual = np.flatnonzero(roles[i] == "image")
        words = [q for q in range(visual[-1] + 1, len(roles[i])) if roles[i, q] == "text"]
        rows.append(words)
        patches.append(mean.values[i][np.ix_(words, visual)])
    count = len(patches)
    own = xr.DataArray([likeness(maps, maps) for maps in patches], dims="prompt")
    other = xr.DataArray([likeness(maps, patches[(i + 1) % count]) for i, maps in enumerate(patches)], dims="prompt")
    said, found = describe_difference(own, other, digits=2)
    study.claim(
        "Fig. 1", "The maps of different words light the same patches", paper="yes, by eye",
        found=f"correlation of two words' maps {float(own.mean()):.2f}, of maps of different pictures "
        f"{float(other.mean()):.2f}; difference {said}",
        agrees=has_sign(found) if float(own.mean()) > 0.5 else False,
    )  # fmt: skip
    covered = [about[i][roles[i] == "image"] for i in range(count)]
    on = xr.DataArray([(m.sum(0) @ c) / m.sum() for m, c in zip(patches, covered, strict=True)], dims="prompt")
    chance = xr.DataArray([c.mean() for c in covered], dims="prompt")
    said, found = describe_difference(on, chance)
    claim = "What is lit shows nothing relevant: no more on the object asked about than evenly spread"
    found_words = f"{float(on.mean()):.3f} of the attention against {float(chance.mean()):.3f}, {said}"
    agrees = not float(found["low"]) > 0
    study.claim("Fig. 1", claim, paper="yes, by eye", found=found_words, agrees=agrees)
    image = np.asarray(shapes.scenes[0].image(shapes.scale))
    chosen = rows[0][-SHOWN:]
    top = float(mean.isel(prompt=0, query=chosen).where(ds["token_role"].isel(prompt=0) == "image").max())
    figure, axes = plt.subplots(1, len(chosen), figsize=(2.6 * len(chosen), 3.0), squeeze=False)
    for axis, query in zip(axes[0], chosen, strict=True):
        line = mean.isel(prompt=0, query=query).assign_attrs(long_name="attention weight")
        name = token_label(str(ds["token"].values[0, query]))
        sk.plot.patch_overlay(image, line, limits=(0.0, top), title=name, ax=axis)
    says = f"attention of the last {len(chosen)} words, mean over heads of layers {deep}: {shapes.questions[0].text}"
    study.figure(figure, "word_maps", source=ds, says=says)


if __name__ == "__main__":
    with Study(__doc__, paper="kang2025", model=VISION_LANGUAGE_MODELS) as study:
        study.for_each(judge)
