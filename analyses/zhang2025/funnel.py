"""One crop or three, from detail to surroundings: does the funnel help where the detail alone is enough?

Paper: Visual Funnel (arXiv 2512.10362), of which the abstract was at hand: several crops from detail to context, sized
by the entropy of attention, do better than one, and than as many crops without that order. Cost: 130 passes with
autograd and an answer in each of five ways for 48 pictures, a minute on the zoo model. Different here: one small shape
on a plain picture, so that the crop holds all that is asked; the map is attention times gradient, in the layer that
looks at the true box most on 12 other pictures (the map was chosen, over relative attention, on pictures that are not
used here). Controls: the closest crop three times, as many pictures without
surroundings; three crops around another place.

    python analyses/zhang2025/funnel.py --model zoo:vlm-shapes
"""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from crops import SIDE, pictures
from matplotlib.patches import Rectangle

import sinkscope as sk
from sinkscope import metrics
from sinkscope.analysis import Study, describe_difference, has_sign
from sinkscope.methods.zoom import Box, beside, question_maps
from sinkscope.tasks import scenes


def maps_of(model: sk.Model, items: list[dict[str, Any]], layer: int) -> list[np.ndarray]:
    """Attention times gradient over each picture: (row, column)."""
    return question_maps(model, sk.Prompts.from_chat(items, model), [layer], by="gradient")


def looks(maps: list[np.ndarray], boxes: list[tuple[int, int, int, int]]) -> list[float]:
    """How much more each map looks at its true box than at others of that size."""
    found = []
    for one, box in zip(maps, boxes, strict=True):
        scale = one.shape[0] / (4 * SIDE)
        left, top, right, bottom = (round(edge * scale) for edge in box)
        found.append(metrics.attention_ratio(one, (left, top, right, bottom)))
    return found


def measured(model: sk.Model, n: int) -> xr.Dataset:
    """Whether each answer is right (way prompt), and the funnel's boxes (prompt crop edge)."""
    other, _, known = pictures(max(3, n // 4), seed=1)
    depth = int(model.config.get_text_config().num_hidden_layers)
    layer = max(range(depth), key=lambda one: float(np.mean(looks(maps_of(model, other, one), known))))
    items, answers, _ = pictures(n, seed=5)
    prompts = sk.Prompts.from_chat(items, model)
    boxes = [metrics.funnel_crops(one, (4 * SIDE, 4 * SIDE), SIDE) for one in maps_of(model, items, layer)]
    # Another place: the funnel of the same picture seen in a mirror.
    away = [[(4 * SIDE - right, top, 4 * SIDE - left, bottom) for left, top, right, bottom in own] for own in boxes]
    ways: dict[str, list[list[Box]]] = {
        "closest crop": [own[:1] for own in boxes], "funnel": boxes,
        "closest crop three times": [own[:1] * 3 for own in boxes], "funnel, mirrored place": away,
    }  # fmt: skip
    shown = {"whole": prompts} | {name: beside(prompts, each, model) for name, each in ways.items()}
    right = []
    for own in shown.values():
        written = sk.generate(model, own, max_new_tokens=1)
        words = [model.tokenizer.decode(ids[-1:]).strip() for ids in written.ids]  # type: ignore[union-attr]
        right.append([float(word == answer) for word, answer in zip(words, answers, strict=True)])
    data = {"right": (("way", "prompt"), np.asarray(right)), "boxes": (("prompt", "crop", "edge"), np.asarray(boxes))}
    attrs = sk.run(model, prompts, [sk.Logits()]).attrs | {"layer": layer}
    return xr.Dataset(data, coords={"way": list(shown), "prompt": range(n)}, attrs=attrs)


def main() -> None:
    """Measure, draw, and state what was found."""
    with Study(__doc__, paper="visionfunnel2025", model="zoo:vlm-shapes") as study:
        n = 6 if study.quick else 48
        ds = study.reading("funnel", lambda: measured(study.model, n))
        figure, (left, axes) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", width_ratios=[1, 1.8])
        left.imshow(pictures(1, seed=5)[0][0]["image"])
        for colour, (x, y, right, bottom) in enumerate(ds["boxes"].values[0]):
            left.add_patch(Rectangle((x, y), right - x, bottom - y, fill=False, edgecolor=f"C{colour}", linewidth=2))
        left.set(title="Crops of the funnel", xlim=(-0.5, 4 * SIDE - 0.5), ylim=(4 * SIDE - 0.5, -0.5))
        left.set_axis_off()
        share = sk.tasks.rate(ds["right"])
        names, value = ds["way"].values.tolist(), share["value"].values
        sk.plot.interval_dots(share, reference=1 / len(scenes.SHAPES), ax=axes)
        axes.set(xlim=(-0.03, 1.03), xlabel="share of right answers")
        says = "crops stand beside the whole picture; dotted: chance; 95 % Wilson intervals"
        study.figure(figure, "funnel", source=ds, says=says)
        for claim, one, against, paper in (
            ("Three crops from detail to surroundings raise accuracy", "funnel", "whole", "yes"),
            ("They do better than the closest one", "funnel", "closest crop", "yes"),
            ("They do better than as many without surroundings", "funnel", "closest crop three times", "yes"),
            ("They do better than three around another place", "funnel", "funnel, mirrored place", ""),
        ):
            words, found = describe_difference(ds["right"].sel(way=one), ds["right"].sel(way=against))
            verdict = has_sign(found)
            means = ", ".join(f"{name} {part:.2f}" for name, part in zip(names, value, strict=True))
            study.claim(
                "abstract", claim, paper=paper, found=f"{words}; layer {ds.attrs['layer']}: {means}",
                agrees=verdict if verdict is not None else "the interval holds 0",
            )  # fmt: skip


if __name__ == "__main__":
    main()
