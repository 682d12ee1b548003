"""Sums that can be joined: exact totals, moments and histograms of cells, whatever the order of what went in.

Numbers are added as integers of fixed place value, so that the sum of the same numbers is the same to the last bit
however they are grouped, and shards of a survey can be joined in any order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sinkscope.errors import ProbeError

PLACES = (64, 32, 0, -32, -64)
"""Exponents of the place values of a sum: what is below 2**-64 of one addend is cut off, always in the same way."""
LARGEST = 2.0**94
"""Magnitude that one addend may have."""

Cells = NDArray[np.float64]
Index = tuple[Any, ...]
"""Cells by place: whole numbers and slices, or an array of places for each axis, no cell twice."""


class ExactSum:
    """Sums of float64 numbers, cell by cell, as integers; joining sums is exact, so that order does not matter.

    ``limbs`` has the shape (place, *cells) and holds 2**31 addends without overflow.
    """

    def __init__(self, limbs: NDArray[np.int64]) -> None:
        self.limbs = limbs

    @classmethod
    def zeros(cls, shape: Sequence[int]) -> ExactSum:
        """Return sums of nothing."""
        return cls(np.zeros((len(PLACES), *shape), dtype=np.int64))

    def add(self, values: Cells, at: Index = ()) -> None:
        """Add one number to each of the cells at ``at``.

        Raises:
            ProbeError: a number is not finite, or beyond ``LARGEST``.
        """
        if not bool((np.abs(values) < LARGEST).all()):
            raise ProbeError("survey: a statistic is infinite or too large to be summed. Use a wider dtype (float32).")
        rest = np.array(values, dtype=np.float64)
        for index, place in enumerate(PLACES):
            weight = 2.0**place
            whole = np.trunc(rest / weight)
            self.limbs[(index, *at)] += whole.astype(np.int64)
            rest -= whole * weight

    def integers(self) -> NDArray[np.object_]:
        """Return the sums as Python integers, in units of 2**-64."""
        units = [limb.astype(object) * 2 ** (place + 64) for limb, place in zip(self.limbs, PLACES, strict=True)]
        return np.asarray(sum(units[1:], units[0]), dtype=object)


class Moments:
    """Count, sum, sum of squares, smallest and largest of the numbers of each cell."""

    def __init__(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        self.count = np.asarray(arrays["count"], dtype=np.int64)
        self.sum = ExactSum(np.asarray(arrays["sum"], dtype=np.int64))
        self.squares = ExactSum(np.asarray(arrays["squares"], dtype=np.int64))
        self.smallest = np.asarray(arrays["smallest"], dtype=np.float64)
        self.largest = np.asarray(arrays["largest"], dtype=np.float64)

    @classmethod
    def zeros(cls, shape: Sequence[int]) -> Moments:
        """Return the moments of nothing."""
        sums = np.zeros((len(PLACES), *shape), dtype=np.int64)
        return cls({
            "count": np.zeros(shape, dtype=np.int64), "sum": sums, "squares": sums.copy(),
            "smallest": np.full(shape, np.inf), "largest": np.full(shape, -np.inf),
        })  # fmt: skip

    def add(self, parts: Mapping[str, Cells], at: Index = ()) -> None:
        """Add what one batch gave: ``count``, ``sum``, ``squares``, ``smallest`` and ``largest`` of some cells."""
        self.count[at] += parts["count"].astype(np.int64)
        self.sum.add(parts["sum"], at)
        self.squares.add(parts["squares"], at)
        self.smallest[at] = np.minimum(self.smallest[at], parts["smallest"])
        self.largest[at] = np.maximum(self.largest[at], parts["largest"])

    def join(self, other: Moments) -> None:
        """Add the moments of other numbers."""
        self.count += other.count
        self.sum.limbs += other.sum.limbs
        self.squares.limbs += other.squares.limbs
        self.smallest = np.minimum(self.smallest, other.smallest)
        self.largest = np.maximum(self.largest, other.largest)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the content, to be stored."""
        return {
            "count": self.count, "sum": self.sum.limbs, "squares": self.squares.limbs,
            "smallest": self.smallest, "largest": self.largest,
        }  # fmt: skip

    def finished(self) -> dict[str, Cells]:
        """Return count, mean, standard deviation (of the population), smallest and largest; NaN where nothing was."""
        sums, squares = self.sum.integers(), self.squares.integers()
        flat = zip(self.count.ravel().tolist(), sums.ravel().tolist(), squares.ravel().tolist(), strict=True)
        rows = np.array([_mean_and_deviation(*row) for row in flat], dtype=np.float64).reshape(-1, 2)
        empty = self.count == 0
        return {
            "count": self.count.astype(np.float64),
            "mean": rows[:, 0].reshape(self.count.shape), "std": rows[:, 1].reshape(self.count.shape),
            "min": np.where(empty, np.nan, self.smallest), "max": np.where(empty, np.nan, self.largest),
        }  # fmt: skip


def _mean_and_deviation(count: int, total: int, squares: int) -> tuple[float, float]:
    """In integers, so that the difference of two close numbers keeps all its digits."""
    if count == 0:
        return math.nan, math.nan
    variance = ((count * squares << 64) - total * total) / (count * count << 128)
    return total / (count << 64), math.sqrt(max(0.0, variance))


class Histogram:
    """How many numbers fall into each of some fixed bins, cell by cell; a bin holds its upper edge, not its lower."""

    def __init__(self, counts: NDArray[np.int64], edges: NDArray[np.float32]) -> None:
        self.counts, self.edges = counts, edges

    @classmethod
    def zeros(cls, shape: Sequence[int], edges: NDArray[np.float32]) -> Histogram:
        """Return empty bins between ``edges``; what is beyond them is counted in the first and the last one."""
        return cls(np.zeros((*shape, len(edges) - 1), dtype=np.int64), edges)

    def add(self, values: NDArray[np.float32], cells: NDArray[np.int64], at: Index = ()) -> None:
        """Count ``values``, each in the cell of that number among the cells at ``at``."""
        bins = self.counts.shape[-1]
        place = np.searchsorted(self.edges, values, side="left").clip(1, bins) - 1
        part = self.counts[at]
        part += np.bincount(cells * bins + place, minlength=part.size).reshape(part.shape)

    def join(self, other: Histogram) -> None:
        """Add the counts of other numbers."""
        self.counts += other.counts

    def quantiles(self, wanted: Sequence[float]) -> Cells:
        """Return quantiles, (quantile, *cells), as the middle of the bin that holds each; NaN where nothing was."""
        total = self.counts.sum(-1)
        below = self.counts.cumsum(-1)
        middle = (self.edges[1:].astype(np.float64) + self.edges[:-1]) / 2
        found = [middle[(below < np.ceil(q * total)[..., None]).sum(-1).clip(max=len(middle) - 1)] for q in wanted]
        return np.where(total == 0, np.nan, np.stack(found))
