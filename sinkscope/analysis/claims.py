"""What a script says: an estimate with interval and n, and a claim of a paper beside what was found."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from sinkscope.errors import SinkscopeWarning
from sinkscope.metrics.comparison import compare

Verdict = bool | str | None
"""True: agrees; False: differs; a text: why it cannot be seen here. None is an unseen claim whose reason is what was
found."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 per cent interval and the count behind it.

    Format it with the specification of a float: ``f"{estimate:+.2f}"`` is ``"+0.51 [+0.49, +0.52]"``; without one its
    own ``spec`` is taken, without an interval the brackets are left out.

    Attributes:
        value: the estimate.
        low, high: ends of the interval; NaN where there is none.
        n: how many units (prompts, seeds, heads) it rests on.
        unit: said after the number, such as ``"nat"``.
        spec: how it is written.
        units: what ``n`` counts, where that is not plain, such as ``"seeds"``.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    unit: str = ""
    spec: str = ".3g"
    units: str = ""

    @classmethod
    def of(cls, row: xr.Dataset, spec: str = ".3g", unit: str = "", **at: Any) -> Estimate:
        """Take one cell of what :func:`sinkscope.metrics.compare` or :func:`sinkscope.tasks.rate` gave.

        Args:
            row: their result.
            spec: how the number is written.
            unit: said after the number.
            at: labels that select the cell; none for a result without dims.
        """
        cell = row.sel(at) if at else row
        middle = cell["difference"] if "difference" in cell else cell["value"]
        return cls(float(middle), float(cell["low"]), float(cell["high"]), int(cell["n"]), unit, spec)

    @classmethod
    def mean(cls, values: xr.DataArray, spec: str = ".3g", unit: str = "") -> Estimate:
        """Return the mean over every dim of ``values``, with a bootstrap interval over them."""
        return cls.paired(values, xr.zeros_like(values), spec, unit)

    @classmethod
    def paired(cls, values: xr.DataArray, to: xr.DataArray, spec: str = "+.3g", unit: str = "") -> Estimate:
        """Mean paired difference ``values - to`` over every dim, with a bootstrap interval over the pairs."""
        return cls.of(with_intervals(values.reset_coords(drop=True), to, over=values.dims), spec, unit)

    @classmethod
    def times(cls, ratios: xr.DataArray, spec: str = ".3g", unit: str = "") -> Estimate:
        """Geometric mean of ratios over every dim, with a bootstrap interval of the mean logarithm over them."""
        row = cls.mean(xr.apply_ufunc(np.log, ratios, keep_attrs=True))
        return cls(math.exp(row.value), math.exp(row.low), math.exp(row.high), row.n, unit, spec)

    @classmethod
    def resampled(
        cls, statistic: Callable[[np.ndarray], float], n: int, spec: str = ".3g", unit: str = "", draws: int = 1000
    ) -> Estimate:
        """Any statistic of ``n`` units, with the 95 per cent percentile interval of drawing them anew with replacement.

        Args:
            statistic: takes the indices of the units drawn, each from 0 to ``n - 1``; a draw whose statistic is not
                finite is left out.
            n: how many units there are; below two there is no interval.
            spec: how the number is written.
            unit: said after the number.
            draws: how often.
        """
        value, rng = float(statistic(np.arange(n))), np.random.default_rng(0)
        if n < 2:
            return cls(value, n=n, unit=unit, spec=spec)
        # scipy.stats.bootstrap gives no interval where one draw in a thousand gives no number.
        made = np.array([statistic(rng.integers(0, n, n)) for _ in range(draws)], dtype=float)
        low, high = np.nanquantile(made, [0.025, 0.975]) if np.isfinite(made).any() else (math.nan, math.nan)
        return cls(value, float(low), float(high), n, unit, spec)

    @property
    def counted(self) -> str:
        """The number in words, with n."""
        of = f" {self.units.removesuffix('s') if self.n == 1 else self.units}" if self.units else ""
        return f"{self}{f' (n = {self.n}{of})' if self.n else ''}"

    def above(self, bound: float) -> bool | str:
        """Return whether it lies above ``bound`` beyond doubt, below it beyond doubt, or why that cannot be said."""
        if not math.isfinite(self.low + self.high):
            return f"no interval: n = {self.n}"
        if self.low > bound or self.high < bound or self.low == self.high:
            return self.low > bound
        return f"the interval [{self.low:.3g}, {self.high:.3g}] holds {bound:g} (n = {self.n})"

    def below(self, bound: float) -> bool | str:
        """As :meth:`above`, the other way round."""
        found = self.above(bound)
        return found if isinstance(found, str) else self.high < bound

    def __format__(self, spec: str) -> str:
        """The number and its interval, each by ``spec``, and the unit."""
        spec = spec or self.spec
        ends = f" [{self.low:{spec}}, {self.high:{spec}}]" if math.isfinite(self.low + self.high) else ""
        return f"{self.value:{spec}}{ends}{f' {self.unit}' if self.unit else ''}"


@dataclass(frozen=True)
class Claim:
    """One claim of a paper beside what was found on one model.

    Attributes:
        figure: the paper's figure, table or section.
        claim: what the paper says.
        paper: the paper's number or picture; empty for a finding of this project's own.
        found: what was found here, in words.
        agrees: None where the model cannot show it.
        model: the model it was looked for in.
        number: the estimate in words, with n.
        reason: why the model cannot show it.
    """

    figure: str
    claim: str
    paper: str
    found: str
    agrees: bool | None
    model: str = ""
    number: str = ""
    reason: str = ""

    @property
    def verdict(self) -> str:
        """``agrees``, ``differs`` or ``can't be seen here``."""
        return "can't be seen here" if self.agrees is None else "agrees" if self.agrees else "differs"


def judged(agrees: Verdict, found: str) -> tuple[bool | None, str]:
    """Split a verdict into whether it agrees and, where it cannot be seen, the reason."""
    if isinstance(agrees, str):
        return None, agrees
    return (None, found) if agrees is None else (bool(agrees), "")


def with_intervals(
    values: xr.DataArray, to: xr.DataArray | None = None, over: str | Iterable[Hashable] = "prompt"
) -> xr.Dataset:
    """Return the mean over prompts with a bootstrap interval, in the form of :func:`sinkscope.metrics.compare`.

    Args:
        values: anything with the dim ``over``.
        to: subtracted pair by pair; nothing if left out.
        over: the units.
    """
    with warnings.catch_warnings():
        # The warning is on q-values of few pairs; here only the intervals are used.
        warnings.simplefilter("ignore", SinkscopeWarning)
        return compare(values, to=xr.zeros_like(values) if to is None else to.reset_coords(drop=True), over=over)
