"""What a test could have found: the smallest effect that its number of prompts allows."""

# What xarray leaves untyped is not counted against this file.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Hashable, Iterable

import numpy as np
import xarray as xr
from scipy import optimize, stats

from sinkscope.metrics.base import dims_over, metric


@metric()
def smallest_effect(
    difference: xr.DataArray,
    *,
    over: str | Iterable[Hashable] = "prompt",
    tests: int | None = None,
    level: float = 0.05,
    power: float = 0.8,
) -> xr.DataArray:
    """Smallest mean paired difference that a two-sided test finds with probability ``power``; dims but ``over``.

    ``difference`` holds the paired differences whose mean is tested. With a correction for many tests the first to pass
    needs ``level / tests``: ``tests`` is their number, all cells of the result if left out. Of a t test with the cell's
    own standard deviation, by the noncentral t distribution; a rank or permutation test needs about as much. NaN below
    three pairs. Units: those of the difference.

    Raises:
        MetricError: an unknown dim.
    """
    pooled = dims_over(difference, over, "smallest_effect")
    values = difference.astype("float64")
    n = values.notnull().sum(pooled)
    spread = values.std(pooled, ddof=1)
    count = max(1, int((n > 2).sum())) if tests is None else tests
    pairs: list[int] = n.values.ravel().tolist()
    sizes = {size: _standardised(size, level / count, power) for size in set(pairs) if size > 2}
    factor = np.array([sizes.get(size, np.nan) for size in pairs]).reshape(spread.shape)
    found = spread * spread.copy(data=factor)
    attrs = {"units": str(difference.attrs.get("units", "")), "tests": count, "level": level, "power": power}
    return found.rename("smallest_effect").assign_attrs(attrs)


def _standardised(n: int, level: float, power: float) -> float:
    """Effect in standard deviations that a two-sided t test of ``n`` pairs finds with probability ``power``."""
    bound = stats.t.isf(level / 2, n - 1)

    def lacking(effect: float) -> float:
        return float(stats.nct.sf(bound, n - 1, effect * np.sqrt(n))) - power

    return float(optimize.root_scalar(lacking, bracket=(0.0, 100.0)).root)
