"""Is attention more scattered where a picture is more complex, does that go with wrong answers, and does a crop help?

Paper: Ge et al. 2025 (CARVE, arXiv 2509.06461), figures 4, 5a and 5b and its method. Claims: the entropy of attention
over the picture rises with texture and colour; answers are wrong more often where it is high; it falls with depth; a
crop around the components with most contrast raises accuracy. Cost: a pass over 120 questions and four answers for
32 of them, a minute on the zoo model. Different here: made pictures of one to five shapes on plain, shaded or patterned
ground; the row that answers in the place of the generated words; entropies are means of heads. Controls: the whole
picture shown twice; the same box in another picture's place.

    python analyses/ge2025/complexity.py --model zoo:vlm-shapes
"""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from scipy import stats

import sinkscope as sk
from sinkscope import metrics
from sinkscope.analysis import (
    Estimate,
    Study,
    describe_difference,
    draw_right_and_wrong,
    has_sign,
    right_and_wrong,
    with_intervals,
)
from sinkscope.methods.zoom import ZoomSettings, zoom
from sinkscope.tasks.examples import score_answers
from sinkscope.tasks.scene_questions import SceneQuestions, scene_questions

COMPLEXITY = {"texture": metrics.texture_complexity, "colour": metrics.colour_complexity}


def measured(model: sk.Model, asked: SceneQuestions) -> xr.Dataset:
    """Entropy of the map (layer prompt), complexity of the picture (kind prompt), and whether the answer is right."""
    reading = sk.run(model, asked.prompts, [sk.KeyMass("image", queries="last"), sk.Logits()])
    mass = reading["key_mass"].mean("head").transpose("layer", "prompt", "key").values
    entropy = [[metrics.map_entropy(row[np.isfinite(row)]) for row in layer] for layer in mass]
    complexity = [[of(np.asarray(s.image(asked.scale))) for s in asked.scenes] for of in COMPLEXITY.values()]
    right = score_answers(reading, asked.examples)["correct"].values
    data = {"entropy": (("layer", "prompt"), np.asarray(entropy)), "right": ("prompt", right),
            "complexity": (("kind", "prompt"), np.asarray(complexity))}  # fmt: skip
    coords = {"layer": reading["layer"].values, "prompt": reading["prompt"].values, "kind": list(COMPLEXITY)}
    return xr.Dataset(data, coords=coords, attrs=reading.attrs)


def cropped(model: sk.Model, asked: SceneQuestions) -> xr.Dataset:
    """Whether each answer is right with the crop, and with the controls (way prompt)."""
    items: list[dict[str, Any]] = [dict(item) for item in asked.prompts.made_of]
    found = zoom(model, items, ZoomSettings(rule="components", max_new_tokens=1))
    size = asked.scenes[0].image(asked.scale).size
    shown = {
        "whole twice": asked.prompts.crop([(0, 0, *size)] * len(items), model),
        "another picture's box": asked.prompts.crop([*found.boxes[1:], found.boxes[0]], model),
    }
    assert model.tokenizer is not None
    said = {"whole": list(found.before), "crop": list(found.after)}
    for name, prompts in shown.items():
        written = sk.generate(model, prompts, max_new_tokens=1)
        said[name] = [str(model.tokenizer.decode(ids[-1:])).strip() for ids in written.ids]
    wanted = [str(model.tokenizer.decode([answer])).strip() for answer in asked.examples.answers]
    right = [[float(word == answer) for word, answer in zip(words, wanted, strict=True)] for words in said.values()]
    coords = {"way": list(said), "prompt": range(len(items))}
    attrs = sk.run(model, asked.prompts, [sk.Logits()]).attrs
    return xr.Dataset({"right": (("way", "prompt"), np.asarray(right))}, coords=coords, attrs=attrs)


def correlation(one: np.ndarray, other: np.ndarray, draws: int) -> Estimate:
    """Rank correlation with a bootstrap interval over pictures."""
    rng, n = np.random.default_rng(0), len(one)
    picked = (rng.integers(0, n, n) for _ in range(draws))
    found = [float(stats.spearmanr(one[at], other[at]).statistic) for at in picked]
    low, high = np.nanquantile(found, [0.025, 0.975])
    return Estimate(float(stats.spearmanr(one, other).statistic), float(low), float(high), n, "", "+.2f")


def draw(study: Study, ds: xr.Dataset, crops: xr.Dataset) -> None:
    """Entropy by complexity, by answer and by layer, and answers with a crop."""
    figure, grid = plt.subplots(2, 2, figsize=(9, 6.6), layout="constrained")
    axes = grid.ravel()
    mean = ds["entropy"].mean("layer").values
    for colour, kind in enumerate(COMPLEXITY):
        ranks = stats.rankdata(ds["complexity"].sel(kind=kind)) / ds.sizes["prompt"]
        axes[0].plot(ranks, mean, ".", markersize=4, color=f"C{colour}", label=kind)
    axes[0].set(xlabel="rank of complexity", ylabel="entropy (nat)", title="Entropy and complexity")
    axes[0].set_ylim(top=mean.max() + 0.2 * np.ptp(mean))  # room for the legend
    axes[0].legend(loc="upper right", ncols=2, markerscale=2)
    draw_right_and_wrong(mean, ds["right"].values > 0, "entropy (nat)", axes[1])
    found = with_intervals(ds["entropy"])
    axes[2].plot(ds["layer"], found["difference"], marker="o", markersize=3)
    axes[2].fill_between(ds["layer"], found["low"], found["high"], alpha=0.2)
    axes[2].set(xlabel="layer", ylabel="entropy (nat)", title="Entropy by depth")
    share = sk.tasks.rate(crops["right"])
    sk.plot.interval_dots(share, title="Crop beside it", ax=axes[3])
    axes[3].set(xlim=(-0.03, 1.03), xlabel="share of right answers")
    says = "attention of the row that answers over the picture's tokens, mean of heads; 95 % intervals"
    study.figure(figure, "complexity", source=ds, says=says)


def main() -> None:
    """Measure, draw, and state what was found."""
    with Study(__doc__, paper="ge2025", model="zoo:vlm-shapes") as study:
        model, n = study.model, 12 if study.quick else 120
        asked = scene_questions(model, n, ("colour", "shape", "place"), seed=71)
        ds = study.reading("complexity", lambda: measured(model, asked))
        some = scene_questions(model, 6 if study.quick else 32, ("colour", "place"), seed=73)
        crops = study.reading("crops", lambda: cropped(model, some))
        draw(study, ds, crops)
        mean = ds["entropy"].mean("layer")
        for kind, paper in (("texture", ".38 rising to .67"), ("colour", ".37 rising to .60")):
            found = correlation(ds["complexity"].sel(kind=kind).values, mean.values, 20 if study.quick else 2000)
            study.claim(
                "Fig. 4", f"Entropy rises with the complexity of {kind}", paper=paper, number=found,
                found="rank correlation over pictures", agrees=found.above(0.0),
            )  # fmt: skip
        words, agrees = right_and_wrong(-mean, ds["right"].values > 0, ".3f")
        study.claim(
            "Fig. 5a", "Answers are right where entropy is low", paper="76 % right falling to 65 %",
            found=f"entropy with its sign turned: {words}", agrees=agrees,
        )  # fmt: skip
        thirds = np.array_split(ds["layer"].values, 3)
        early, late = (ds["entropy"].sel(layer=part).mean("layer") for part in (thirds[0], thirds[2]))
        fall = Estimate.paired(late, early, "+.3f", "nat")
        study.claim("Fig. 5b", "Entropy falls with depth", paper="yes", number=fall,
                    found="last third of the layers less the first", agrees=fall.below(0.0))  # fmt: skip
        for against, claim, paper in (
            ("whole", "The crop raises accuracy", "yes"), ("whole twice", "It does more than a second look", ""),
            ("another picture's box", "It does more than another picture's box", ""),
        ):  # fmt: skip
            words, gap = describe_difference(crops["right"].sel(way="crop"), crops["right"].sel(way=against))
            verdict = has_sign(gap)
            study.claim(
                "tables", claim, paper=paper, found=words,
                agrees=verdict if verdict is not None else "the interval holds 0",
            )  # fmt: skip


if __name__ == "__main__":
    main()
