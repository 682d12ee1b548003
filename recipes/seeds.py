"""Several seeds of one recipe: their mean, its interval, and how a page says it. The seed is the unit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Interval = tuple[float, float]


def mean_and_interval(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, Interval | None]:
    """Mean over the seeds and its 95 % interval (Student); no interval below three seeds or without any spread."""
    numbers = np.asarray(values, dtype=float)
    if len(numbers) < 3 or np.ptp(numbers) == 0:
        return float(numbers.mean()), None
    found = stats.ttest_1samp(numbers, 0).confidence_interval(0.95)
    return float(numbers.mean()), (float(found.low), float(found.high))


def text(values: Sequence[float] | NDArray[np.float64], scale: float = 1, spec: str = ".3g") -> str:
    """The mean and its interval as ``0.84 [0.69, 0.99]``, the numbers in the format ``spec``."""
    mean, ends = mean_and_interval(values)
    inside = "" if ends is None else f" [{ends[0] * scale:{spec}}, {ends[1] * scale:{spec}}]"
    return f"{mean * scale:{spec}}{inside}"
