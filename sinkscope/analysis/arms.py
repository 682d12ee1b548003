"""Arms of an experiment side by side: joined scores, bars of their change, and right answers beside wrong ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from sinkscope import metrics, plot
from sinkscope.analysis.claims import Estimate, Verdict
from sinkscope.analysis.common import describe_difference, has_sign

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sinkscope.analysis.study import Study

SCORES = ("log_probability", "correct")
"""What is kept of the scores of an arm, where it is there."""


def join_arms(arms: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Join scores of the same questions under several edits: dims (arm, prompt), attributes of the first arm.

    Args:
        arms: by name, what :func:`sinkscope.tasks.examples.answer_score` gave.
    """
    first = next(iter(arms.values()))
    kept = [name for name in SCORES if all(name in each for each in arms.values())]
    parts = [each[kept].reset_coords(drop=True) for each in arms.values()]
    joined = xr.concat(parts, "arm", combine_attrs="override").transpose("arm", "prompt")
    return joined.assign_coords(arm=list(arms), prompt=first["prompt"].values).assign_attrs(first.attrs)


def change_bars(study: Study, ds: xr.Dataset, name: str, title: str, says: str = "") -> xr.DataArray:
    """Draw the change of the log probability in each arm against the arm ``"plain"``; return the log probabilities.

    Args:
        study: keeps the figure.
        ds: joined arms.
        name: of the figure's file.
        title: of the figure.
        says: what is added to the caption.
    """
    value = ds["log_probability"]
    change = (value - value.sel(arm="plain", drop=True)).drop_sel(arm="plain")
    spread = metrics.compare(change, to=xr.zeros_like(change))
    bars = spread["difference"].rename("change").assign_attrs(units="nat", long_name="change of log probability")
    says = f"change of the log probability of the right answer{says}; 95 % bootstrap intervals"
    drawn = plot.described(bars, ds, says)
    axes = plot.effect_bars(drawn, interval=(spread["low"], spread["high"]), title=title)
    study.figure(axes, name, source=ds, says=says)
    return value


def compare_arms(values: xr.DataArray, one: str, other: str, sign: int = -1) -> tuple[str, Verdict]:
    """Say in words how far arm ``one`` is from ``other``, in nats, and whether the difference has the sign claimed."""
    words, found = describe_difference(values.sel(arm=one, drop=True), values.sel(arm=other, drop=True), digits=4)
    verdict = has_sign(found, sign)
    return f"{one} less {other}: {words}, nat", verdict if verdict is not None else "the interval holds 0"


def right_and_wrong(
    values: NDArray[Any] | xr.DataArray, right: NDArray[np.bool_], spec: str = ".2f"
) -> tuple[str, Verdict]:
    """Compare a number at right answers with that at wrong ones.

    Args:
        values: one per answer.
        right: which answers are right.
        spec: how the numbers are written.

    Returns:
        Both means with n and the difference with a bootstrap interval, in words; whether it is above 0, or why that
        cannot be said.
    """
    array = np.asarray(values, dtype=float)
    one, other = array[right], array[~right]
    if min(len(one), len(other)) < 2:
        return f"{right.mean():.0%} of {len(right)} answers are right", "answers are all right or all wrong"
    found = stats.bootstrap(
        (one, other), lambda a, b, axis: a.mean(axis) - b.mean(axis), method="percentile",
        rng=np.random.default_rng(0), n_resamples=2000, vectorized=True,
    ).confidence_interval  # fmt: skip
    gap = Estimate(float(one.mean() - other.mean()), float(found.low), float(found.high), len(array))
    words = (
        f"{one.mean():{spec}} right (n = {len(one)}), {other.mean():{spec}} wrong (n = {len(other)}): difference "
        f"{gap:+{spec}}"
    )
    return words, "the interval holds 0" if gap.low <= 0 <= gap.high else gap.value > 0


def draw_right_and_wrong(values: NDArray[Any] | xr.DataArray, right: NDArray[np.bool_], xlabel: str, ax: Axes) -> Axes:
    """Draw two histograms of equal area, one of right and one of wrong answers."""
    array = np.asarray(values, dtype=float)
    edges = np.linspace(array.min(), array.max(), 21)
    for name, chosen in (("right", right), ("wrong", ~right)):
        if chosen.any():
            ax.hist(array[chosen], list(edges), density=True, alpha=0.6, label=f"{name} (n = {int(chosen.sum())})")
    ax.set(xlabel=xlabel, ylabel="density", title="Right and wrong answers")
    ax.legend()
    return ax
