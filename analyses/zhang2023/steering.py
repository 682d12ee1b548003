"""Steering attention to a part of the prompt: how strongly, in how many heads, and how much of it is the sink?

Paper: Zhang et al. 2023 (PASTA), accuracy over alpha and over the number of steered heads (curves recalled, not seen).
Claims: the result is the same over a broad range of alpha; steering all heads is worse than steering the best ones.
Cost: one head profile and 24 passes per question, half a minute on the zoo model.
Different here: copying a list that was said before, with the list as the part to turn to, made of held-out source code
(BoolQ for models that are not of the zoo, where the network is allowed). Heads are ranked on calibration questions, the
curves are of others. PASTA scales the first token down with everything else outside the part: so beside it PASTA with
the first token kept, and the first token alone scaled, which tell steering from removing a sink.
"""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope import metrics, tasks
from sinkscope.analysis import Study
from sinkscope.methods.zerotuning_heads import helpful_heads, profile

ALPHAS = (0.0001, 0.001, 0.01, 0.1, 0.5, 1.0)


def measure(model: sk.Model, name: str, quick: bool) -> xr.Dataset:
    """Scores (edit prompt) of all arms on the test questions."""
    task = tasks.load(name, calibration=6 if quick else 40, test=8 if quick else 120)
    questions, asked = (tasks.Questions.of(part, model) for part in (task.calibration, task.test))
    found = profile(model, questions, sk.SteerKeys(0.01, keys=questions.focus(model)), by="loss", batch_size=16)
    focus, total = asked.focus(model), int((found["head_class"] != "").sum())
    heads = metrics.head_list(helpful_heads(found, max(1, total // 4)))
    ranks = xr.zeros_like(found["gain"], dtype=int)
    ranks.values.flat[np.argsort(-found["gain"].values, axis=None)] = range(ranks.size)
    variants: dict[str, list[sk.edits.Edit]] = {}
    for alpha in ALPHAS:
        edit = sk.SteerKeys(alpha, keys=focus, heads=heads)
        variants[f"steered|{alpha:g}"] = [edit]
        variants[f"steered, first token kept|{alpha:g}"] = [replace(edit, protect_sink=True)]
        variants[f"first token alone|{alpha:g}"] = [sk.ScaleKeys(alpha, heads=heads)]
    for count in sorted({1, 2, 4, total // 4, total // 2, total}):
        variants[f"heads|{count}"] = [sk.SteerKeys(0.01, keys=focus, heads=metrics.head_list(ranks < count))]
    return tasks.evaluate(model, asked, variants, batch_size=16).assign_attrs(focus_holds_first=int(holds_first(focus)))


def holds_first(focus: xr.DataArray) -> bool:
    """Whether the focus of every prompt holds its first token: then keeping that token is no control."""
    return bool(focus.isel(key=0).all())


def told(a: xr.DataArray, b: xr.DataArray) -> tuple[str, bool | None]:
    """A difference in points with its interval, and whether it is above 0 beyond doubt."""
    found = metrics.compare(a.reset_coords(drop=True), to=b.reset_coords(drop=True))
    low, mid, high = (100 * float(found[k]) for k in ("low", "difference", "high"))
    return f"{mid:+.1f} [{low:+.1f}, {high:+.1f}] points", True if low > 0 else False if high < 0 else None


def main() -> None:
    """Steer, draw accuracy over alpha and over the number of heads, compare the arms."""
    with Study(__doc__, paper="zhang2023") as study:
        name = tasks.suited(study.model, "logiqa", "boolq")[-1]
        ds = study.reading(f"steering_{name}", lambda: measure(study.model, name, study.quick))
        labels = [label.split("|") for label in ds["edit"].values.tolist()]
        arms = list(dict.fromkeys(arm for arm, _ in labels if arm != "heads"))
        cells = [
            ds["exact"].sel(edit=[f"{arm}|{a:g}" for a in ALPHAS]).assign_coords(edit=list(ALPHAS)) for arm in arms
        ]
        curve = xr.concat(cells, xr.Variable("arm", arms)).rename(edit="alpha")
        counts = [int(text) for arm, text in labels if arm == "heads"]
        wide = ds["exact"].sel(edit=[f"heads|{n}" for n in counts]).assign_coords(edit=counts).rename(edit="heads")

        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2))
        for values, x, at, ax in ((curve, "alpha", 1.0, left), (wide, "heads", None, right)):
            share = tasks.rate(values)
            drawn = share["value"].rename("accuracy").assign_attrs(long_name="exact match")
            sk.plot.sweep_curve(drawn, x=x, interval=(share["low"], share["high"]), reference=at, ax=ax)
        left.set_xscale("log")
        right.axhline(float(curve.sel(alpha=1.0, arm="steered").mean()), color="black", linestyle=":")
        says = f"exact match on {name}; left: a quarter of the heads, right: alpha 0.01; dotted: none; bands: Wilson"
        study.figure(figure, "steering", source=ds, says=says)

        steered, n = curve.sel(arm="steered"), ds.sizes["prompt"]
        none = steered.sel(alpha=1.0)
        gain, helps = told(steered.sel(alpha=0.01), none)
        flat = [float(steered.sel(alpha=a).mean()) for a in ALPHAS[:4]]
        same = ", ".join(f"{share:.0%} at {a:g}" for share, a in zip(flat, ALPHAS, strict=False))
        loss, worse = told(none, wide.sel(heads=counts[-1]))
        more, sink = told(steered.sel(alpha=0.01), curve.sel(arm="steered, first token kept", alpha=0.01))
        if ds.attrs["focus_holds_first"]:
            sink = "the part to turn to holds the first token, so keeping it changes nothing"
        alone, _ = told(curve.sel(arm="first token alone", alpha=0.01), none)
        for which, claim, paper, found, agrees in (
            ("gain", "Steering to the part that matters helps", "LLaMA-7B: about +22 points on average",
             f"{gain} at alpha 0.01", helps),
            ("alpha", "The result is the same over a broad range of alpha", "flat from 0.001 to 0.1", same,
             max(flat) - min(flat) < 0.1),
            ("heads", "Steering all heads is worse than no steering", "worse",
             f"no steering is {loss} above all {counts[-1]} heads", worse),
            ("control", "Part of the gain is the first token scaled down", "",
             f"steering is {more} above steering with the first token kept; that token alone: {alone}", sink),
        ):  # fmt: skip
            study.claim(which, claim, paper=paper, found=f"{found}; n = {n} questions of {name}", agrees=agrees)


if __name__ == "__main__":
    main()
