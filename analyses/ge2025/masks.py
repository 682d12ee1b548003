"""Pictures masked by contrastive attention: how much has to stay, and what does masking do to right and wrong answers?

Paper: Ge et al. 2025 (CARVE, arXiv 2509.06461), figures 1 and 7. Claims: with most of a picture masked the right answer
is more probable against the wrong one than with the whole, until too little is left; accuracy is best where the top .2
to .6 of the pixels are kept, in 2 or 3 components. Cost: four passes in each of seven ways over 64 questions, and an
answer in 27 ways over 48, two minutes on the zoo model. Different here: made pictures, and mosaics with a
shape too small for the whole picture; the first generated word's map, deep layers; kept pixels are those of the
contrast, the rest black. Controls: the mask of another picture; the whole picture shown twice.

    python analyses/ge2025/masks.py --model zoo:vlm-shapes
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from scipy.special import log_softmax

import sinkscope as sk
from sinkscope import metrics
from sinkscope.analysis import Estimate, Study, describe_difference, has_sign, with_intervals
from sinkscope.engine.generation import written_texts
from sinkscope.methods.zoom import contrast_layers, contrast_maps, masked
from sinkscope.metrics.looking import upsampled
from sinkscope.tasks import scenes
from sinkscope.tasks.scene_questions import SceneQuestions, first_tokens, scene_questions

KEPT = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Shares of the pixels that stay, figure 1."""
SHARES, COMPONENTS = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0), (1, 2, 3, 5)
"""The grid of figure 7."""


def contrasts(model: sk.Model, items: Sequence[Any]) -> list[np.ndarray]:
    """The contrast over the pixels of each picture."""
    maps = contrast_maps(model, items, contrast_layers(model))
    sizes = [np.asarray(item["image"]).shape[1::-1] for item in items]
    return [upsampled(found, (int(w), int(h))) for found, (w, h) in zip(maps, sizes, strict=True)]


def probabilities(model: sk.Model, asked: SceneQuestions) -> xr.Dataset:
    """Log probability of the right answer and of the likeliest wrong one (answer mask kept prompt)."""
    items: list[dict[str, Any]] = [dict(item) for item in asked.prompts.made_of]
    found = contrasts(model, items)
    tokens = [first_tokens(model, ["What?"] * len(own), own) for own in (scenes.FAMILIES[f] for f in asked.families)]
    rows = {}
    for share in KEPT:
        regions = [metrics.kept_region(one, share, components=10**6) for one in found]
        for name, own in (("own", regions), ("another picture's", [*regions[1:], regions[0]])):
            shown = [item | {"image": masked(item["image"], region, crop=False)}
                     for item, region in zip(items, own, strict=True)]  # fmt: skip
            logits = sk.run(model, sk.Prompts.from_chat(shown, model), [sk.Logits()])["logits"].isel(position=-1)
            values = log_softmax(logits.values.astype(float), -1)
            right = values[np.arange(len(items)), list(asked.examples.answers)]
            wrong = [max(values[i, t] for t in own if t != asked.examples.answers[i]) for i, own in enumerate(tokens)]
            rows[name, share] = np.stack([right, wrong])
    masks = ["own", "another picture's"]
    data = np.stack([np.stack([rows[mask, share] for share in KEPT], 1) for mask in masks], 1)
    coords = {"answer": ["right", "wrong"], "mask": masks, "kept": list(KEPT), "prompt": range(len(items))}
    attrs = sk.run(model, asked.prompts.subset([0]), [sk.Logits()]).attrs | {"n_prompts": len(items)}
    return xr.Dataset({"log_probability": (("answer", "mask", "kept", "prompt"), data)}, coords, attrs)


def grid(model: sk.Model, n: int, quick: bool) -> xr.Dataset:
    """Whether each answer is right with the masked crop beside the picture (share components prompt), and without."""
    drawn = [scenes.mosaic(np.random.default_rng([11, which])) for which in range(n)]
    items = [{"image": pixels, "text": asked.text} for pixels, asked, _ in drawn]
    answers = [asked.answer for _, asked, _ in drawn]
    found = contrasts(model, items)
    shares, components = (SHARES[::5], COMPONENTS[::3]) if quick else (SHARES, COMPONENTS)

    def right(pictures: Sequence[Sequence[Any]]) -> list[float]:
        shown = [item | {"image": list(own)} for item, own in zip(items, pictures, strict=True)]
        written = sk.generate(model, sk.Prompts.from_chat(shown, model), max_new_tokens=1)
        return [float(text == a) for text, a in zip(written_texts(model, written), answers, strict=True)]

    whole = [item["image"] for item in items]
    cells = []
    for share in shares:
        for count in components:
            regions = [metrics.kept_region(one, share, count) for one in found]
            cells.append(right([(p, masked(p, r)) for p, r in zip(whole, regions, strict=True)]))
    usual = [metrics.kept_region(one, 0.2, 2) for one in found]
    others = {
        "whole": right([(p,) for p in whole]), "whole twice": right([(p, p) for p in whole]),
        "another picture's": right([(p, masked(p, r)) for p, r in zip(whole, [*usual[1:], usual[0]], strict=True)]),
        "usual": right([(p, masked(p, r)) for p, r in zip(whole, usual, strict=True)]),
    }  # fmt: skip
    data = {"right": (("share", "components", "prompt"), np.reshape(cells, (len(shares), len(components), n))),
            "other": (("way", "prompt"), list(others.values()))}  # fmt: skip
    coords = {"share": list(shares), "components": list(components), "way": list(others), "prompt": range(n)}
    reading = sk.run(model, sk.Prompts.from_chat(items[:1], model), [sk.Logits()])
    return xr.Dataset(data, coords, reading.attrs | {"n_prompts": n})


def draw(study: Study, ds: xr.Dataset, cells: xr.Dataset) -> None:
    """Draw both figures."""
    figure, (left, middle, axes) = plt.subplots(1, 3, figsize=(9, 3.3), layout="constrained", width_ratios=[1, 1, 1.2])
    for ax, mask in ((left, "own"), (middle, "another picture's")):
        for answer in ("right", "wrong"):
            found = with_intervals(ds["log_probability"].sel(answer=answer, mask=mask) / np.log(10))
            ax.plot(ds["kept"], found["difference"], marker="o", markersize=3, label=answer)
            ax.fill_between(ds["kept"], found["low"], found["high"], alpha=0.2)
        ax.set(xlabel="share of the pixels kept", title=f"Mask: {mask}", xscale="log")
        ax.set_xticks([0.02, 0.1, 0.4, 1.0], ["0.02", "0.1", "0.4", "1"])
    left.set(ylabel="log10 probability")
    left.legend()
    middle.sharey(left)
    middle.autoscale()
    mean = cells["right"].mean("prompt")
    axes.imshow(mean, cmap="viridis", aspect="auto")
    for (row, column), value in np.ndenumerate(mean.values):
        dark = value < (float(mean.max()) + float(mean.min())) / 2
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if dark else "black", fontsize=9)
    axes.set_xticks(range(cells.sizes["components"]), cells["components"].values)
    axes.set_yticks(range(cells.sizes["share"]), cells["share"].values)
    axes.set(xlabel="components kept", ylabel="share kept", title="Accuracy with the crop beside")
    n = f"n = {ds.sizes['prompt']} (curves), {cells.sizes['prompt']} (accuracy)"
    study.figure(figure, "masks", source=ds, says=f"pixels of most contrast kept, the rest black; 95 % intervals; {n}")


def main() -> None:
    """Measure, draw, and state what was found."""
    with Study(__doc__, paper="ge2025", model="zoo:vlm-shapes") as study:
        model = study.model
        asked = scene_questions(model, 6 if study.quick else 64, ("colour", "shape", "place"), seed=79)
        ds = study.reading("probabilities", lambda: probabilities(model, asked))
        cells = study.reading("grid", lambda: grid(model, 6 if study.quick else 48, study.quick))
        draw(study, ds, cells)
        gap = (ds["log_probability"].sel(answer="right") - ds["log_probability"].sel(answer="wrong")) / np.log(10)
        own, other = gap.sel(mask="own"), gap.sel(mask="another picture's")
        for claim, paper, one, to in (
            ("With .2 of the picture kept the right answer leads by more than with all", "wrong leads above .65 kept",
             own.sel(kept=0.2), own.sel(kept=1.0)),
            ("With .4 of the picture kept it leads by more than with all", "wrong leads above .65 kept",
             own.sel(kept=0.4), own.sel(kept=1.0)),
            ("Too little loses it: .2 kept leads by more than .02", "wrong leads below .02",
             own.sel(kept=0.2), own.sel(kept=0.02)),
            ("It leads by more than under another picture's mask, .2 kept", "", own.sel(kept=0.2), other.sel(kept=0.2)),
        ):  # fmt: skip
            found = Estimate.paired(one, to, "+.2f", "log10")
            study.claim("Fig. 1", claim, paper=paper, number=found, agrees=found.above(0.0),
                        found=f"{float(one.mean()):+.2f} against {float(to.mean()):+.2f}")  # fmt: skip
        usual = cells["other"].sel(way="usual")
        for claim, paper, way in (
            ("The masked crop at .2 and 2 components raises accuracy", "42 to 74 at most", "whole"),
            ("It does more than a second look", "", "whole twice"),
            ("It does more than another picture's mask", "", "another picture's"),
        ):
            words, found = describe_difference(usual, cells["other"].sel(way=way))
            verdict = has_sign(found)
            study.claim("Fig. 7", claim, paper=paper, found=f"{words}; {float(usual.mean()):.2f} right",
                        agrees=verdict if verdict is not None else "the interval holds 0")  # fmt: skip
        best(study, cells)


def best(study: Study, cells: xr.Dataset) -> None:
    """Say which cell is best on one half of the pictures, and how it does on the other."""
    half = cells.sizes["prompt"] // 2
    mean = cells["right"].isel(prompt=slice(half)).mean("prompt")
    share, count = (float(mean[name][int(index)]) for name, index in mean.argmax(["share", "components"]).items())
    test = cells["right"].isel(prompt=slice(half, None))
    all_kept = Estimate.paired(test.sel(share=share, components=count), test.sel(share=1.0).isel(components=0), "+.3f")
    study.claim(
        "Fig. 7", "Keeping part is better than keeping all", paper="best at .2 to .6 and 2 or 3", number=all_kept,
        found=f"share {share:g} and {count:g} components, best on the other half of the pictures",
        agrees=all_kept.above(0.0),
    )  # fmt: skip


if __name__ == "__main__":
    main()
