"""Which visual tokens to keep: the slope of the usual score, and what is kept by VisionDrop's and VFlowOpt's.

Papers: attention debiasing (Zhao et al. 2025, arXiv 2508.17807), the mean curve with its fit and table VIII; VisionDrop
(arXiv 2506.22283) and VFlowOpt (arXiv 2508.05211), their importance. Claims: the attention of the last row favours late
tokens, keeping the best ones sharpens that, dividing by the trend of other pictures takes it away and helps; attention
among visual tokens, or the tower's times the entropy of a patch, keeps more. Cost: six rankings and seven passes over
64 questions, half a minute. Different here: one-word answers about made pictures; three of four tokens are
left out, from the first layer on; no fitted schedule, no merging. Control: as many random tokens.

    python analyses/zhao2025/pruning.py --model zoo:vlm-shapes
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope import metrics
from sinkscope.analysis import Estimate, Study, change_bars, compare_arms, join_arms
from sinkscope.methods.compression import left_out, visual_scores
from sinkscope.tasks.examples import answer_score
from sinkscope.tasks.scene_questions import SceneQuestions, scene_questions

SHARE = 0.75
"""Part of the visual tokens that is left out."""
NAMES = {
    "last row": "reader", "VisionDrop": "visual", "VFlowOpt": "flow", "tower": "tower", "random": "random",
}  # fmt: skip
DEBIASED = "last row, debiased"


def flat(scores: xr.DataArray) -> np.ndarray:
    """Scores of the visual tokens alone: (prompt, token) in raster order."""
    return np.stack([row[np.isfinite(row)] for row in scores.values])


def ranked(model: sk.Model, asked: SceneQuestions, other: SceneQuestions) -> dict[str, xr.DataArray]:
    """Scores of each visual token (prompt key) by each ranking; the trend is that of other pictures."""
    scores = {name: visual_scores(model, asked.prompts, by) for name, by in NAMES.items()}
    trend = metrics.positional_trend(flat(visual_scores(model, other.prompts, "reader")).mean(0))
    even = scores["last row"].copy()
    for row in even.values:
        row[np.isfinite(row)] = metrics.debias(row[np.isfinite(row)], trend)
    return {"last row": scores.pop("last row"), DEBIASED: even} | scores


def slopes(scores: dict[str, xr.DataArray], draws: int) -> xr.Dataset:
    """sigma_attn and sigma_freq with bootstrap draws over pictures: (ranking draw), draw 0 is of all of them."""
    rng = np.random.default_rng(0)
    data = {"sigma_attn": [], "sigma_freq": []}
    for one in scores.values():
        rows = flat(one)
        keep = round((1 - SHARE) * rows.shape[1])
        picked = [np.arange(len(rows)), *(rng.integers(0, len(rows), len(rows)) for _ in range(draws))]
        data["sigma_attn"].append([metrics.positional_trend(rows[at].mean(0)).sigma for at in picked])
        often = [metrics.keep_frequency(rows[at], keep) for at in picked]
        data["sigma_freq"].append([metrics.positional_trend(one).sigma for one in often])
    coords = {"ranking": list(scores), "draw": range(draws + 1)}
    return xr.Dataset({name: (("ranking", "draw"), np.asarray(rows)) for name, rows in data.items()}, coords=coords)


def slope(found: xr.DataArray, n: int) -> Estimate:
    """One slope with its interval over pictures."""
    low, high = np.quantile(found.values[1:], [0.025, 0.975])
    return Estimate(float(found.values[0]), float(low), float(high), n, "", "+.2f")


def kept(model: sk.Model, asked: SceneQuestions, scores: dict[str, xr.DataArray]) -> xr.Dataset:
    """Answers where the lowest tokens are left out (arm prompt), and which part of the object's tokens is kept."""
    reading = sk.run(model, asked.prompts, [sk.KeyMass("image"), sk.Logits()])
    on = (asked.covered(reading, "about") > 0.5).values
    arms, part = {"plain": answer_score(model, asked.examples)}, {"plain": np.ones(len(on))}
    for name, one in scores.items():
        gone = left_out(one, SHARE)
        arms[name] = answer_score(model, asked.examples, [sk.MaskKeys(gone)])
        count = on.sum(1)
        part[name] = np.where(count > 0, (on & ~gone.values).sum(1) / np.maximum(count, 1), np.nan)
    found = join_arms(arms).assign(object_kept=(("arm", "prompt"), np.stack(list(part.values()))))
    return found.assign_attrs(reading.attrs)


def draw(study: Study, scores: dict[str, xr.DataArray], found: xr.Dataset, ds: xr.Dataset) -> None:
    """The mean curve with its fit, slopes of scores and of what is kept, and the part of the object that is kept."""
    figure, panels = plt.subplot_mosaic([["trend"] * 2, ["slopes", "kept"]], figsize=(9.2, 7), layout="constrained")
    left, middle, right = panels.values()
    for colour, name in enumerate(("last row", DEBIASED)):
        curve = flat(scores[name]).mean(0)
        trend, place = metrics.positional_trend(curve), np.arange(len(curve)) / len(curve)
        left.plot(place, curve / curve.mean(), ".", color=f"C{colour}", markersize=4)
        fit = trend.mu * np.exp(trend.sigma * place) / curve.mean()
        left.plot(place, fit, color=f"C{colour}", label=f"{name}, fit explains {trend.r2:.0%}")
    left.set(xlabel="place in the raster", ylabel="mean score over its mean", title="Trend of the score")
    left.legend()
    names = ("sigma_attn", "sigma_freq")
    each = [[slope(one, 0) for one in found[name]] for name in names]
    labels = {"slope": list(names), "ranking": found["ranking"].values}
    value, low, high = (
        xr.DataArray([[getattr(e, end) for e in row] for row in each], dims=("slope", "ranking"), coords=labels).T
        for end in ("value", "low", "high")
    )
    sk.plot.interval_dots(value, interval=(low, high), title="Scores and what is kept", ax=middle)
    middle.set_xlabel("slope (late tokens over early)")
    part = ds["object_kept"].drop_sel(arm="plain")
    right.barh(range(part.sizes["arm"]), part.mean("prompt"), color="C2")
    right.axvline(1 - SHARE, linestyle=":", color="0.5")
    right.set_yticks(range(part.sizes["arm"]), part["arm"].values.tolist())
    right.set(xlabel="part of the object's tokens kept", ylim=(part.sizes["arm"] - 0.5, -0.5))
    right.set_title(f"{1 - SHARE:.0%} of the tokens kept")
    study.figure(figure, "pruning", source=ds, says="slopes with 95 % bootstrap intervals over pictures")


def judge_slopes(study: Study, found: xr.Dataset, n: int) -> None:
    """State the claims on the trend."""
    one, freq = (slope(found[name].sel(ranking="last row"), n) for name in ("sigma_attn", "sigma_freq"))
    after = slope(found["sigma_freq"].sel(ranking=DEBIASED), n)
    both = found.sel(ranking="last row")
    gap = slope(both["sigma_freq"] - both["sigma_attn"], n)
    study.claim(
        "Table VIII", "The last row's attention favours late visual tokens", paper="sigma_attn 0.70 to 1.52",
        number=one, agrees=one.above(0.0),
    )  # fmt: skip
    study.claim(
        "Table VIII", "Keeping the best tokens sharpens the trend", paper="0.91 to 2.56 (FastV)", number=gap,
        found=f"sigma_freq less sigma_attn; sigma_freq {freq}",
        agrees=gap.above(0.0) if one.value > 0 else "late tokens are not favoured",
    )  # fmt: skip
    fall = slope(abs(found["sigma_freq"].sel(ranking=DEBIASED)) - abs(both["sigma_freq"]), n)
    study.claim(
        "Table VIII", "Dividing by the trend of other pictures flattens what is kept", paper="near 0 after",
        number=fall, found=f"change of the size of sigma_freq, to {after}", agrees=fall.below(0.0),
    )  # fmt: skip


def main() -> None:
    """Measure, draw, and state what was found."""
    with Study(__doc__, paper="zhao2025", model="zoo:vlm-shapes") as study:
        model, n = study.model, 6 if study.quick else 64
        asked, other = (scene_questions(model, n, ("colour", "shape", "place"), seed=seed) for seed in (41, 43))
        ranking = ranked(model, asked, other)
        found = slopes(ranking, 20 if study.quick else 500)
        ds = study.reading("kept", lambda: kept(model, asked, ranking))
        draw(study, ranking, found, ds)
        judge_slopes(study, found, n)
        value = change_bars(study, ds, "answers", f"{SHARE:.0%} of the visual tokens left out")
        for figure, claim, one, against, paper in (
            ("Table V", "Debiasing helps", DEBIASED, "last row", "FastV 59.6 to 62.5"),
            ("VisionDrop", "Attention among visual tokens keeps more", "VisionDrop", "last row", "yes"),
            ("VisionDrop", "It keeps more than chance", "VisionDrop", "random", ""),
            ("VFlowOpt", "Entropy of the patches beside attention keeps more", "VFlowOpt", "tower", "yes"),
            ("VFlowOpt", "It keeps more than chance", "VFlowOpt", "random", ""),
        ):
            words, agrees = compare_arms(value, one, against, 1)
            part = ds["object_kept"].mean("prompt")
            shares = " and ".join(f"{float(part.sel(arm=name)):.0%}" for name in (one, against))
            study.claim(figure, claim, paper=paper, found=f"{words}; of the object {shares} are kept", agrees=agrees)


if __name__ == "__main__":
    main()
