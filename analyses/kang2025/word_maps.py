"""Attention of each word to the picture: are the same patches lit whatever the word?

Paper: Kang et al. 2025 (arXiv 2503.03321), figure 1. Claims: the maps of different words light the same few patches,
and those show nothing relevant. The figure shows words that the model generates; here the words of the question, mean
over all heads of the deeper half of the layers. Control: the likeness of the maps of different pictures.
Cost: one pass over 48 short prompts with maps.

    python analyses/kang2025/word_maps.py --model zoo:vlm-smol
"""

from __future__ import annotations

import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import VISION_LANGUAGE_MODELS, Study, describe_difference, has_sign, is_large, spread_layers
from sinkscope.plot.labels import token_label
from sinkscope.tasks.scene_questions import BOX, SceneQuestions, scene_questions

SHOWN, RINGED = 8, 2
"""Words whose maps are drawn; patches that are ringed, those with the most attention of all of these words."""


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
    patches = []
    for i in range(len(shapes.scenes)):
        visual = np.flatnonzero(roles[i] == "image")
        words = [q for q in range(visual[-1] + 1, len(roles[i])) if roles[i, q] == "text"]
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
    draw(study, shapes, mean.isel(prompt=0), ds)


def draw(study: Study, shapes: SceneQuestions, mean: xr.DataArray, ds: xr.Dataset) -> None:
    """Draw the maps of the last words of the first question as one grid on one scale, the most attended ringed."""
    image = np.asarray(shapes.scenes[0].image(shapes.scale))
    roles, tokens = ds["token_role"].values[0], ds["token"].values[0]
    visual = ds["token_role"].isel(prompt=0) == "image"
    words = [q for q in range(np.flatnonzero(roles == "image")[-1] + 1, len(roles)) if roles[q] == "text"][-SHOWN:]
    lines = mean.isel(query=words).where(visual).assign_attrs(long_name="attention weight")
    names = [token_label(str(tokens[query])) for query in words]
    titles = [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]
    arrays = {title: (image, lines.isel(query=i)) for i, title in enumerate(titles)}
    axes = sk.plot.panels(sk.plot.patch_overlay, arrays, columns=4)
    most = lines.mean("query").fillna(0.0).argsort().values[::-1][:RINGED]
    boxes = np.stack([lines[name].values for name in BOX], -1)[most]
    for index, panel in enumerate(axes):
        sk.plot.mark_patches({"": boxes[:0], "most attended by these words": boxes}, ax=panel, legend=index == 0)
    says = (
        f"n = 1 question, the attention of its last {len(words)} words, mean over the heads of the deeper layers: "
        f"{shapes.questions[0].text}"
    )
    study.figure(axes[0], "word_maps", source=mean.assign_attrs(model_id=ds.attrs["model_id"]), says=says)


if __name__ == "__main__":
    with Study(__doc__, paper="kang2025", model=VISION_LANGUAGE_MODELS) as study:
        study.for_each(judge)
