"""What the scripts on scaling share: one panel of exact match against gamma per task, and the size of the effects."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import sinkscope as sk
from sinkscope import tasks
from sinkscope.analysis import Study
from sinkscope.engine.sweep import EditGrid

GAMMAS = (0.1, 0.3, 0.6, 1.0, 2.0, 6.0)
PANELS = ("sst2", "boolq", "logiqa")


def evaluated(model: sk.Model, name: str, n: int, grid: EditGrid) -> xr.Dataset:
    """Scores of a task's calibration questions under a grid: nothing is chosen here, so the test part is left alone."""
    questions = tasks.Questions.of(tasks.load(name, calibration=n, test=1).calibration, model)
    return tasks.evaluate(model, questions, grid, batch_size=16)


def draw(
    study: Study, stem: str, measure: Callable[[str, int], xr.Dataset], banded: tuple[str, str]
) -> tuple[Figure, xr.Dataset, xr.DataArray, tuple[str, ...]]:
    """Draw the tasks that suit the model, side by side.

    Args:
        study: the script's run.
        stem: name of its readings.
        measure: scores (gamma arm prompt) of a task by its name and the number of questions.
        banded: dimension and label of the arm that gets an interval.

    Returns:
        The figure; the last reading; the mean change of the log probability over gamma, by arm and prompt of all
        tasks; the tasks.
    """
    names = tasks.suited(study.model, *PANELS)
    names = ("copy",) if study.quick else names[-3:]
    figure, axes = plt.subplots(1, len(names), figsize=(4.4 * len(names), 4), squeeze=False, sharey=True)
    sizes, ds, (dim, arm) = [], xr.Dataset(), banded
    for panel, name in zip(axes[0], names, strict=True):
        n = 8 if study.quick else 80
        ds = study.reading(f"{stem}_{name}", lambda name=name, n=n: measure(name, n))
        share = tasks.rate(ds["exact"])
        curve = share["value"].rename("accuracy").assign_attrs(long_name="exact match")
        band = (share["low"].where(share[dim] == arm), share["high"].where(share[dim] == arm))
        sk.plot.sweep_curve(curve, interval=band, title=name, ax=panel)
        if panel is not axes[0][-1]:
            panel.get_legend().remove()
        panel.set_xscale("log")
        panel.set_xticks(GAMMAS, [f"{gamma:g}" for gamma in GAMMAS])
        panel.minorticks_off()
        change = abs(ds["log_probability"] - ds["log_probability"].sel(gamma=1.0)).drop_sel(gamma=1.0)
        sizes.append(change.mean("gamma").assign_coords(prompt=np.arange(ds.sizes["prompt"]) + 1000 * len(sizes)))
    return figure, ds, xr.concat(sizes, "prompt"), tuple(names)
