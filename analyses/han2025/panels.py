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
from sinkscope.plot.naming import drop_names

GAMMAS = (0.1, 0.4, 1.0, 2.5, 6.0)
PANELS = ("sst2", "boolq", "logiqa")
LARGE = 20_000_000
"""Parameters from which on a model is asked less: one task, fewer questions."""


def amount(study: Study, model: sk.Model, *panels: str) -> tuple[tuple[str, ...], int]:
    """Tasks that suit a model, and how many questions of each it is asked."""
    names = tasks.suited(model, *panels)
    if study.quick:
        return names[-1:], 8
    large = model.model.num_parameters() > LARGE
    return (names[-1:], 24) if large else (names[-3:], 80)


def evaluated(model: sk.Model, name: str, n: int, grid: EditGrid) -> xr.Dataset:
    """Scores of a task's calibration questions under a grid: nothing is chosen here, so the test part is left alone."""
    questions = tasks.Questions.of(tasks.load(name, calibration=n, test=1).calibration, model)
    return tasks.evaluate(model, questions, grid, batch_size=8)


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
    names, n = amount(study, study.model, *PANELS)
    figure, axes = plt.subplots(1, len(names), figsize=(max(4.4 * len(names), 6), 4), squeeze=False, sharey=True)
    sizes, ds, (dim, arm) = [], xr.Dataset(), banded
    for panel, name in zip(axes[0], names, strict=True):
        ds = study.reading(f"{stem}_{name}", lambda name=name: measure(name, n))
        share = tasks.rate(ds["exact"])
        curve = share["value"].rename("accuracy").assign_attrs(long_name="exact match")
        band = (share["low"].where(share[dim] == arm), share["high"].where(share[dim] == arm))
        sk.plot.sweep_curve(curve, interval=band, title=name, ax=panel)
        if panel is not axes[0][-1]:
            drop_names(panel)
        change = abs(ds["log_probability"] - ds["log_probability"].sel(gamma=1.0)).drop_sel(gamma=1.0)
        sizes.append(change.mean("gamma").assign_coords(prompt=np.arange(ds.sizes["prompt"]) + 1000 * len(sizes)))
    return figure, ds, xr.concat(sizes, "prompt"), tuple(names)
