"""Steering attention to a part of the prompt: how strongly, in how many heads, and how much of it is the sink?

Paper: Zhang et al. 2023 (PASTA), accuracy over alpha and over the number of steered heads (curves recalled, not seen).
Claims: the result is the same over a broad range of alpha; steering all heads is worse than steering the best ones.
Cost: one head profile and 14 passes per question, two minutes on the zoo model.
Different here: copying a list that was said before, with the list as the part to turn to, made of held-out source code
(any task with a focus for others). Heads are ranked on calibration questions, the curves are of others. PASTA scales
the first token down with everything else outside the part, so beside it stand PASTA with the first token kept, and the
first token alone scaled: the arms that tell steering from removing a sink.
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope import metrics, tasks
from sinkscope.analysis import Study
from sinkscope.methods.zerotuning_heads import helpful_heads, profile

ALPHAS = (0.0001, 0.001, 0.01, 0.1, 0.5, 1.0)


def best(found: xr.Dataset, count: int) -> dict[int, list[int]]:
    """The ``count`` heads in which steering gains most."""
    gain = found["gain"]
    order = np.argsort(-gain.values, axis=None)[:count]
    return metrics.head_list(gain.copy(data=np.isin(np.arange(gain.size), order).reshape(gain.shape)))


def measure(model: sk.Model, name: str, quick: bool) -> xr.Dataset:
    """Scores (edit prompt) of all arms on the test questions."""
    task = tasks.load(name, calibration=6 if quick else 48, test=8 if quick else 120)
    questions = tasks.Questions.of(task.calibration, model)
    found = profile(model, questions, sk.SteerKeys(0.01, keys=questions.focus(model)), by="loss", batch_size=16)
    asked = tasks.Questions.of(task.test, model)
    focus, total = asked.focus(model), int((found["head_class"] != "").sum())
    heads = metrics.head_list(helpful_heads(found, max(1, total // 4)))
    variants = {}
    for alpha in ALPHAS:
        variants[f"steered|{alpha:g}"] = [sk.SteerKeys(alpha, keys=focus, heads=heads)]
        kept = sk.SteerKeys(alpha, keys=focus, heads=heads, protect_sink=True)
        variants[f"steered, first token kept|{alpha:g}"] = [kept]
        variants[f"first token alone|{alpha:g}"] = [sk.ScaleKeys(alpha, heads=heads)]
    for count in sorted({1, 2, 4, total // 4, total // 2, total}):
        variants[f"heads|{count}"] = [sk.SteerKeys(0.01, keys=focus, heads=best(found, count))]
    return tasks.evaluate(model, asked, variants, batch_size=16)


def told(a: xr.DataArray, b: xr.DataArray) -> tuple[str, bool | None]:
    """A difference in points with its interval, and whether it is above 0 beyond doubt."""
    found = metrics.compare(a.reset_coords(drop=True), to=b.reset_coords(drop=True))
    low, mid, high = (100 * float(found[k]) for k in ("low", "difference", "high"))
    return f"{mid:+.1f} [{low:+.1f}, {high:+.1f}] points", True if low > 0 else False if high < 0 else None


def main() -> None:
    """Steer, draw accuracy over alpha and over the number of heads, compare the arms."""
    with Study(__doc__, paper="zhang2023") as study:
        name = "copy" if study.model.id.startswith("zoo:") else "boolq"
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
        words, sure = told(steered.sel(alpha=0.01), none)
        study.claim(
            "gain", "Steering to the part that matters helps", paper="LLaMA-7B: about +22 points on average",
            found=f"{words} at alpha 0.01, n = {n} questions of {name}", agrees=sure,
        )  # fmt: skip
        flat = [float(steered.sel(alpha=a).mean()) for a in ALPHAS[:4]]
        said = ", ".join(f"{share:.0%} at {a:g}" for share, a in zip(flat, ALPHAS, strict=False))
        study.claim(
            "alpha", "The result is the same over a broad range of alpha", paper="flat from 0.001 to 0.1",
            found=f"{said}, n = {n}", agrees=max(flat) - min(flat) < 0.1,
        )  # fmt: skip
        words, sure = told(none, wide.sel(heads=counts[-1]))
        study.claim(
            "heads", "Steering all heads is worse than no steering", paper="worse",
            found=f"no steering is {words} above all {counts[-1]} heads, n = {n}", agrees=sure,
        )  # fmt: skip
        words, sure = told(steered.sel(alpha=0.01), curve.sel(arm="steered, first token kept", alpha=0.01))
        alone, _ = told(curve.sel(arm="first token alone", alpha=0.01), none)
        study.claim(
            "control", "Part of the gain is the first token scaled down", paper="no control reported",
            found=f"steering is {words} above steering with the first token kept; that token alone: {alone}",
            agrees=sure,
        )  # fmt: skip


if __name__ == "__main__":
    main()
