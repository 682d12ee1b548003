"""How far does the region that a model looks at overlap with what is asked about?

Paper: Zhang et al. 2025 (arXiv 2502.17422, ViCrop), that models know where to look, scored by the intersection over
union that localisation papers use. Claim: the box found by attention over that under a neutral question (rel-att), or
by attention times gradient (grad-att), overlaps with the true one. Cost: two passes and one with gradients for each of
96 pictures and each layer, a minute on the zoo model. Different here: the intersection over union is not in the paper;
one shape in a sixteenth of a plain picture; the layer is chosen on one half of the pictures, the other half is judged.
Controls: a box of the same size anywhere in the picture; the box found in another picture.

    python analyses/zhang2025/overlap.py --model zoo:vlm-shapes
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
from sinkscope.analysis import Estimate, Study, with_intervals
from sinkscope.methods.zoom import contrast_maps, question_maps

WIDE, DRAWS = 4 * SIDE, 50
"""Side of a picture in pixels; random boxes for each picture."""


def anywhere(box: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A box of the same size anywhere in the picture."""
    size = box[2:] - box[:2]
    corner = rng.uniform(0, WIDE - size)
    return np.concatenate([corner, corner + size])


def measured(model: sk.Model, n: int) -> xr.Dataset:
    """Overlap of found and control boxes (way box prompt), of the kept region (way prompt), and the boxes."""
    items, _, true = pictures(2 * n, seed=3)
    truth, rng = np.asarray(true, float), np.random.default_rng(0)
    prompts = sk.Prompts.from_chat(items, model)
    ways: dict[str, Any] = {
        "rel-att": lambda layer: contrast_maps(model, items, [layer]),
        "grad-att": lambda layer: question_maps(model, prompts, [layer], by="gradient"),
    }
    depth = int(model.config.get_text_config().num_hidden_layers)
    overlap, boxes, region, chosen = [], [], [], {}
    for name, maps_of in ways.items():
        maps = {layer: maps_of(layer) for layer in range(depth)}
        found = {at: np.array([metrics.best_crop(m, (WIDE, WIDE), SIDE) for m in own]) for at, own in maps.items()}
        chosen[name] = max(found, key=lambda layer: float(np.nanmean(metrics.box_iou(found[layer][:n], truth[:n]))))
        own, test = found[chosen[name]][n:], truth[n:]
        random = [metrics.box_iou([anywhere(box, rng) for box in own], test) for _ in range(DRAWS)]
        overlap.append([metrics.box_iou(own, test), np.mean(random, 0), metrics.box_iou(np.roll(own, 1, 0), test)])
        boxes.append(own)
        region.append([iou_of(m, box) for m, box in zip(maps[chosen[name]][n:], test, strict=True)])
    data = {"overlap": (("way", "box", "prompt"), np.asarray(overlap)), "found": (("way", "prompt", "edge"), boxes),
            "region": (("way", "prompt"), np.asarray(region)), "true": (("prompt", "edge"), truth[n:])}  # fmt: skip
    coords = {"way": list(ways), "box": ["found", "anywhere", "another picture's"], "prompt": range(n)}
    attrs = sk.run(model, prompts.subset([0]), [sk.Logits()]).attrs | {"n_prompts": n}
    return xr.Dataset(data, coords, attrs | {f"layer_{name}": layer for name, layer in chosen.items()})


def iou_of(values: np.ndarray, box: np.ndarray) -> float:
    """Overlap of the true box with as large a share of the patches, those with the highest values; NaN without any."""
    if not (values > 0).any():  # no positive gradient in any patch
        return float("nan")
    scale = values.shape[0] / WIDE
    left, top, right, bottom = (round(float(edge) * scale) for edge in box)
    truth = np.zeros(values.shape, dtype=bool)
    truth[top:bottom, left:right] = True
    return float(metrics.mask_iou(metrics.kept_region(values, truth.mean(), components=10**6), truth))


def main() -> None:
    """Measure, draw, and state what was found."""
    with Study(__doc__, paper="zhang2025", model="zoo:vlm-shapes") as study:
        n = 4 if study.quick else 48
        ds = study.reading("overlap", lambda: measured(study.model, n))
        figure, (left, axes) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", width_ratios=[1, 1.8])
        left.imshow(pictures(2 * n, seed=3)[0][n]["image"])
        first = ds.isel(prompt=0)
        sides = {"true": first["true"].values} | {
            name: first["found"].sel(way=name).values for name in ds["way"].values
        }
        for colour, (name, box) in zip(("black", "C0", "C1"), sides.items(), strict=True):
            size = box[2] - box[0], box[3] - box[1]
            left.add_patch(Rectangle(box[:2], *size, fill=False, edgecolor=colour, linewidth=2, label=name))
        left.set_axis_off()
        left.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3)
        rows = with_intervals(ds["overlap"].transpose("box", "way", "prompt"))
        sk.plot.interval_dots(rows, reference=None, title="Overlap with the true box", ax=axes)
        axes.set(xlim=(-0.03, 1.03), xlabel="intersection over union")
        study.figure(figure, "overlap", source=ds, says="one box a picture; 95 % bootstrap intervals")
        for name in ds["way"].values.tolist():
            one = ds["overlap"].sel(way=name, drop=True)
            hits = Estimate.mean((one.sel(box="found") >= 0.5).astype(float), ".2f")
            for control, paper in (("anywhere", "they know where"), ("another picture's", "")):
                gap = Estimate.paired(one.sel(box="found", drop=True), one.sel(box=control, drop=True), "+.3f")
                means = f"{float(one.sel(box='found').mean()):.2f} against {float(one.sel(box=control).mean()):.2f}"
                study.claim(
                    "title", f"The box found by {name} overlaps more than "
                    + ("one anywhere" if control == "anywhere" else "another picture's box"), paper=paper, number=gap,
                    agrees=gap.above(0.0), found=f"layer {ds.attrs[f'layer_{name}']}: "
                    f"{means}; at least half in {hits}; highest patches {float(ds['region'].sel(way=name).mean()):.2f}",
                )  # fmt: skip


if __name__ == "__main__":
    main()
