"""Attention to the picture made larger: is it made larger at the right patches, and does that help?

Papers: GIFT (arXiv 2510.22067), maps of gaze shifts beside maps of attention, their score (11.92 against 5.40) and the
tables; PAINT (Arif et al. 2025, arXiv 2501.12206), whose patches come from the vision tower. Claims: where attention
rises from word to word lies on the object more than attention itself does; amplifying it helps. Cost: a pass for each
of 80 prompts, eight over 64, half a minute on the zoo model. Different here: one-word answers about made pictures; all
words of the question count; the layer and alpha come from 16 other questions; the score, mean in the object over mean
of the map, is ours, both maps cut and scaled alike. Controls: maps of other pictures; the same numbers shuffled.

    python analyses/gift2026/amplified.py --model zoo:vlm-shapes
"""

from __future__ import annotations

import dataclasses
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope import metrics
from sinkscope.analysis import Estimate, Study, change_bars, compare_arms, join_arms, with_intervals
from sinkscope.methods.amplify import gaze_saliency, paint
from sinkscope.plot.theme import SEQUENTIAL
from sinkscope.roles import ROLE_INDEX
from sinkscope.tasks.examples import answer_score
from sinkscope.tasks.scene_questions import SceneQuestions, scene_questions

ABOUT = ("colour", "shape", "place")
"""Families whose questions name one object."""
ALPHAS = (1.0, 2.0, 5.0)


def static(model: sk.Model, prompts: sk.Prompts, layer: int) -> xr.DataArray:
    """Attention of the question's words in a layer, scaled as the map of shifts is: (prompt key)."""
    mass = sk.run(model, prompts, [sk.KeyMass("image", queries="after_image")])["key_mass"].sel(layer=layer)
    mean = mass.mean("head").fillna(0.0).reset_coords(drop=True)
    for which, roles in enumerate(prompts.roles):
        image = np.flatnonzero(np.asarray(roles) == ROLE_INDEX["image"])
        # A rise from nothing to the map itself: the same cut and scale.
        rows = np.stack([np.zeros(len(image)), mean.values[which, image]])[None, None]
        mean.values[which, image] = metrics.gaze_shift(rows)
    return mean


def inside(maps: xr.DataArray, on: xr.DataArray) -> xr.DataArray:
    """Mean of each map in the object over its mean: (prompt), 1 for an even map."""
    image = on.notnull()
    held = maps.where(image & (on > 0.5)).mean("key")
    return held / maps.where(image).mean("key")


def shuffled(values: np.ndarray, prompts: sk.Prompts) -> np.ndarray:
    """The same numbers on other visual tokens of the same picture."""
    rng, moved = np.random.default_rng(0), values.copy()
    for which, roles in enumerate(prompts.roles):
        image = np.flatnonzero(np.asarray(roles) == ROLE_INDEX["image"])
        moved[which, image] = rng.permutation(values[which, image])
    return moved


def compared(asked: SceneQuestions, maps: dict[str, xr.DataArray], reading: xr.Dataset) -> xr.Dataset:
    """Scores (map prompt), the other pictures' maps as the control, and the maps themselves."""
    on = asked.covered(reading, "about").reset_coords(drop=True)
    held = (on > 0.5).any("key").values
    # Questions about one object only, and no map is compared with its own picture in the control.
    other = {f"{name}, other picture": one.copy(data=np.roll(one.values, len(ABOUT), 0)) for name, one in maps.items()}
    scores = xr.concat([inside(one, on) for one in (maps | other).values()], "map")
    scores = scores.assign_coords(map=list(maps | other)).isel(prompt=held)
    return xr.Dataset({"score": scores}, attrs=reading.attrs)


def amplified(
    model: sk.Model, asked: SceneQuestions, other: SceneQuestions, saliency: list[xr.DataArray]
) -> xr.Dataset:
    """Answers under each edit (arm prompt); alpha is the best on other questions."""
    depth = int(model.config.get_text_config().num_hidden_layers)
    layers = range(depth // 3, 2 * depth // 3 + 1)
    tried = {
        alpha: float(answer_score(model, other.examples, [sk.AmplifyGaze(saliency[0], alpha=alpha, layers=layers)])
                     ["log_probability"].mean())
        for alpha in ALPHAS
    }  # fmt: skip
    alpha = max(tried, key=lambda one: tried[one])
    moved = shuffled(saliency[1].values, asked.prompts)
    painted = paint(model, asked.prompts)
    random = [
        dataclasses.replace(edit, keys=edit.keys.array().copy(data=shuffled(edit.keys.array().values, asked.prompts)))
        for edit in painted
    ]
    edits = {
        "plain": [], "GIFT": [sk.AmplifyGaze(saliency[1], alpha=alpha, layers=layers)],
        "GIFT shuffled": [sk.AmplifyGaze(moved, alpha=alpha, layers=layers)],
        "PAINT": painted, "PAINT shuffled": random,
    }  # fmt: skip
    joined = join_arms({name: answer_score(model, asked.examples, own) for name, own in edits.items()})
    return joined.assign_attrs(alpha=alpha, summary=len(painted) - 1)


def draw_scores(study: Study, ds: xr.Dataset, maps: dict[str, xr.DataArray], asked: SceneQuestions) -> None:
    """One picture with both maps, and the score of each map."""
    figure, axes = plt.subplots(1, 4, figsize=(9.6, 3), layout="constrained", width_ratios=[1, 1, 1, 1.5])
    axes[0].imshow(np.asarray(asked.scenes[0].image(asked.scale)))
    axes[0].set_title(textwrap.fill(asked.questions[0].text, 16))
    grid = asked.prompts.grids[0]
    assert grid is not None
    own = np.isfinite(grid.row)
    for ax, (name, one) in zip(axes[1:3], maps.items(), strict=True):
        ax.imshow(one.values[0, : len(own)][own].reshape(int(grid.row[own].max()) + 1, -1), cmap=SEQUENTIAL)
        ax.set_title(name)
    for ax in axes[:3]:
        ax.set_axis_off()
    sk.plot.interval_dots(with_intervals(ds["score"]), reference=1.0, ax=axes[3])
    axes[3].set_xlabel("object over whole map")
    study.figure(figure, "saliency", source=ds, says="the object that the question names; 95 % bootstrap intervals")


def main() -> None:
    """Measure, draw, and state what was found."""
    with Study(__doc__, paper="gift2026", model="zoo:vlm-shapes") as study:
        model, n = study.model, 6 if study.quick else 64
        other = scene_questions(model, max(6, n // 4), ABOUT, seed=31)
        asked = scene_questions(model, n, ABOUT, seed=33)
        first = gaze_saliency(model, other.prompts)
        layer = first.attrs["layers"][0]
        shifts = gaze_saliency(model, asked.prompts, [layer])
        maps = {"gaze shift": shifts, "attention": static(model, asked.prompts, layer)}
        reading = study.run(asked.prompts, [sk.KeyMass("image", queries="after_image")])
        ds = compared(asked, maps, reading)
        draw_scores(study, ds, maps, asked)
        score = ds["score"]
        for one, to, paper in (
            ("gaze shift", "attention", "11.92 against 5.40"),
            ("gaze shift", "gaze shift, other picture", ""),
        ):
            gap = Estimate.paired(score.sel(map=one, drop=True), score.sel(map=to, drop=True), "+.2f")
            means = f"{float(score.sel(map=one).mean()):.2f} against {float(score.sel(map=to).mean()):.2f}"
            study.claim(
                "saliency score", f"The {one} lies on the object more than {to.replace(one, 'that')}", paper=paper,
                number=gap, found=f"{means}, layer {layer}", agrees=gap.above(0.0),
            )  # fmt: skip
        scores = study.reading("amplified", lambda: amplified(model, asked, other, [first, shifts]))
        value = change_bars(study, scores, "amplified", "Attention to the picture amplified")
        for method, against, paper in (
            ("GIFT", "plain", "POPE accuracy 79.5 to 81.9"), ("GIFT", "GIFT shuffled", ""),
            ("PAINT", "plain", "CHAIR 46.2 to 17.6"), ("PAINT", "PAINT shuffled", ""),
        ):  # fmt: skip
            words, agrees = compare_arms(value, method, against, 1)
            more = "" if against == "plain" else " more than the same on shuffled patches"
            study.claim("tables", f"{method} helps{more}", paper=paper, found=words, agrees=agrees)


if __name__ == "__main__":
    main()
