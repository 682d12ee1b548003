"""What the scripts on scaling share: one panel of exact match against gamma per task, and the size of the effects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import sinkscope as sk
from sinkscope import tasks
from sinkscope.analysis import DRAWS, Estimate, Study, add_random_bands, random_tokens
from sinkscope.edits import Edit
from sinkscope.plot.naming import drop_names

GAMMAS = (0.1, 0.4, 1.0, 2.5, 6.0)
PANELS = ("sst2", "boolq", "logiqa")
RANDOM = "random token"
LARGE = 20_000_000
"""Parameters from which on a model is asked less: one task, fewer questions."""


def amount(study: Study, model: sk.Model, *panels: str) -> tuple[tuple[str, ...], int]:
    """Tasks that suit a model, and how many questions of each it is asked."""
    names = tasks.suited(model, *panels)
    if study.quick:
        return names[-1:], 8
    large = model.model.num_parameters() > LARGE
    return (names[-1:], 24) if large else (names[-3:], 80)


def evaluated(study: Study, name: str, n: int, arms: Mapping[str, Mapping[str, Any]]) -> xr.Dataset:
    """Scores (gamma arm prompt) of a task's calibration questions: nothing is chosen here, so the test part is left.

    Args:
        study: the script's run; scripts that ask the same share what they measured.
        name: the task.
        n: questions.
        arms: what of the attention is scaled, by name: arguments of ``ScaleKeys`` but gamma. Random tokens in all
            layers come after them, as ``random token 0`` and so on.
    """
    questions = tasks.Questions.of(tasks.load(name, calibration=n, test=1).calibration, study.model)
    draws = random_tokens(questions.prompts, 1 if study.quick else DRAWS)
    every = {**arms, **{f"{RANDOM} {draw}": {"keys": keys} for draw, keys in enumerate(draws)}}
    edits: dict[str, list[Edit]] = {
        f"{arm}|{gamma:g}": [sk.ScaleKeys(gamma, **given)]
        for arm, given in every.items() for gamma in GAMMAS if gamma != 1
    }  # fmt: skip
    found = tasks.scores(study.run(questions.prompts, [questions.probe], edits, batch_size=8), questions)
    labels = [["baseline" if gamma == 1 else f"{arm}|{gamma:g}" for arm in every] for gamma in GAMMAS]
    at = xr.DataArray(labels, dims=("gamma", "arm"), coords={"gamma": list(GAMMAS), "arm": list(every)})
    return found.sel(edit=at).drop_vars("edit")


def random_arms(values: xr.DataArray, dim: str) -> xr.DataArray:
    """The arms of random tokens, one per draw."""
    return values.sel({dim: [name for name in values[dim].values if name.startswith(RANDOM)]}).rename({dim: "draw"})


def draw(
    study: Study, stem: str, measure: Callable[[str, int], xr.Dataset], banded: tuple[str, str]
) -> tuple[Figure, xr.Dataset, xr.DataArray, tuple[str, ...]]:
    """Draw the tasks that suit the model, one below the other, with a grey band of random tokens.

    Args:
        study: the script's run.
        stem: name of its readings.
        measure: scores (gamma arm prompt) of a task by its name and the number of questions.
        banded: what the arms are called, and the one that gets an interval.

    Returns:
        The figure; the last reading; the mean change of the log probability over gamma, by arm and prompt of all
        tasks, random arms among them; the tasks.
    """
    names, n = amount(study, study.model, *PANELS)
    figure, axes = plt.subplots(len(names), 1, figsize=(6.6, max(4.0, 2.6 * len(names))), squeeze=False, sharex=True)
    sizes: list[xr.DataArray] = []
    ds, (dim, arm) = xr.Dataset(), banded
    for panel, name in zip(axes[:, 0], names, strict=True):
        ds = study.reading(f"{stem}_{name}", lambda name=name: measure(name, n)).rename(arm=dim)
        share = tasks.rate(ds["exact"])
        drawn = random_arms(share["value"], dim)
        fixed = share.drop_sel({dim: drawn["draw"].values})
        band = (fixed["low"].where(fixed[dim] == arm), fixed["high"].where(fixed[dim] == arm))
        curve, band = add_random_bands(fixed["value"].rename("accuracy"), band, {RANDOM: drawn}, dim)
        sk.plot.sweep_curve(curve.assign_attrs(long_name="exact match"), interval=band, title=name, ax=panel)
        panel.label_outer()
        if panel is not axes[0, 0]:
            drop_names(panel)
        change = abs(ds["log_probability"] - ds["log_probability"].sel(gamma=1.0)).drop_sel(gamma=1.0)
        sizes.append(change.mean("gamma").assign_coords(prompt=np.arange(ds.sizes["prompt"]) + 1000 * len(sizes)))
    return figure, ds, xr.concat(sizes, "prompt"), tuple(names)


def claim_control(study: Study, figure: str, one: xr.DataArray, sizes: xr.DataArray, dim: str) -> None:
    """State whether the first token in all layers moves answers more than a random token of the same question."""
    draws = random_arms(sizes, dim)
    more = Estimate.paired(one, draws.mean("draw"), "+.3f", "nat")
    each = draws.mean("prompt")
    study.claim(
        figure, "Scaling the first token changes answers more than scaling a random one", paper="", number=more,
        found=f"log probability of the right option, all layers; first token {float(one.mean()):.3f}, less "
        f"{float(each.mean()):.3f}, the mean of {each.size} draws of a token of each question ({float(each.min()):.3f} "
        f"to {float(each.max()):.3f})", agrees=more.above(0.0),
    )  # fmt: skip
