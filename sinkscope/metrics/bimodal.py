"""Is a distribution two-humped, and where is the valley: tested, never assumed.

diptest and scikit-learn do the statistics; this module is the rule that combines them.
"""

# What xarray and scikit-learn leave untyped is not counted against this file.
# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, cast

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from sinkscope.definitions import Definition, define
from sinkscope.metrics.base import coords_within, dims_over, metric, require

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture

GRID = 2001


@dataclass(frozen=True)
class Bimodality:
    """All that is known of one sample; ``bimodal`` is the verdict. NaN where it could not be computed."""

    n: int
    bimodal: bool = False
    valley: float = math.nan
    interior: bool = False
    ashman_d: float = math.nan
    bic_gain: float = math.nan
    dip: float = math.nan
    dip_p: float = math.nan
    coefficient: float = math.nan
    low_mean: float = math.nan
    low_std: float = math.nan
    low_weight: float = math.nan
    high_mean: float = math.nan
    high_std: float = math.nan
    high_weight: float = math.nan


@metric(
    Definition(
        "bimodality",
        "combined",
        "interior valley of a two-component Gaussian mixture, and dip test (BIC gain for few values), and Ashman's D",
        "1",
        (("alpha", 0.05), ("bic_gain", 10.0), ("ashman_d", 2.0), ("small", 30.0)),
        "kan2025",
    ),
)
def bimodality(values: xr.DataArray | xr.Dataset | ArrayLike, *, over: str | Iterable[str] | None = None) -> xr.Dataset:
    """Test a distribution for two humps; a Dataset with one variable per statistic.

    ``values`` is any array, or a reading: then its ``max_attention``, mean over queries, as Kan et al. take it. NaN is
    ignored. ``over`` names the dims that are pooled (None: all), the rest stay, so
    ``over=("prompt", "head")`` gives one verdict per layer. Fewer than four values, or fewer than two different ones,
    are never bimodal.

    ``bimodal`` is true when the valley (least density of a two-component Gaussian mixture between its means, on 2001
    points) is interior, Ashman's D > 2, and the dip test has p < 0.05 (n >= 30) or the BIC gain of two components over
    one is > 10 (n < 30). Each test alone errs: D calls a single hump two, the dip has no power at n = 10, and the
    bimodality coefficient misses clear cases. ``valley`` is given either way: use ``valley_threshold`` to get one only
    where it means something. Attribute ``verdict``: ``bimodal``, ``unimodal`` or ``mixed`` over the cells.
    Source: Kan et al. (kan2025) take the valley; the combined rule is this package's.

    Raises:
        MetricError: a dim of ``over`` is not there, or a reading without ``max_attention``.
    """
    if isinstance(values, xr.Dataset):
        require(values, "bimodality", "max_attention")
        values = values["max_attention"].mean("query")
    array = values if isinstance(values, xr.DataArray) else xr.DataArray(np.asarray(values, dtype=np.float64))
    pooled = list(array.dims) if over is None else dims_over(array, over, "bimodality")
    kept = [dim for dim in array.dims if dim not in pooled]
    data = array.transpose(*kept, *pooled).values.astype(np.float64)
    shape = data.shape[: len(kept)]
    cells = [judge(data[at].ravel()) for at in np.ndindex(*shape)]
    result = xr.Dataset(
        {
            field.name: (kept, np.array([asdict(cell)[field.name] for cell in cells]).reshape(shape))
            for field in fields(Bimodality)
        },
        coords=coords_within(array, kept),
    )
    verdicts = {cell.bimodal for cell in cells}
    definition = define("bimodality", "combined")
    result.attrs = {
        "metric": "bimodality", "definition": definition.name, "meaning": definition.meaning, "units": "1",
        "reference": definition.reference, "n": int(result["n"].sum()),
        "verdict": "mixed" if len(verdicts) > 1 else ("bimodal" if verdicts == {True} else "unimodal"),
    }  # fmt: skip
    units = str(array.attrs.get("units", ""))
    for name in ("valley", "low_mean", "low_std", "high_mean", "high_std"):
        result[name].attrs["units"] = units
    return result


@metric()
def valley_threshold(values: xr.DataArray | ArrayLike, *, over: str | Iterable[str] | None = None) -> xr.DataArray:
    """Return the valley between the two humps, NaN where the distribution is not bimodal; dims as ``bimodality``.

    Source: Kan et al. (kan2025).
    """
    tested = bimodality(values, over=over)
    result = tested["valley"].where(tested["bimodal"]).rename("valley_threshold")
    result.attrs = {**tested.attrs, "units": tested["valley"].attrs["units"]}
    return result


def judge(sample: np.ndarray) -> Bimodality:
    """Apply the combined rule to one sample ``(n,)``; NaN is ignored."""
    import diptest  # here, as in _mixtures: the rest of the metrics should not wait for it

    x = sample[np.isfinite(sample)]
    if x.size < 4 or np.unique(x).size < 2:
        return Bimodality(n=int(x.size))
    rule = define("bimodality", "combined")
    two, gain = _mixtures(x[:, None])
    order = np.argsort(np.asarray(two.means_)[:, 0])
    mean: NDArray[np.float64] = np.asarray(two.means_)[order, 0]
    std, weight = np.sqrt(np.asarray(two.covariances_)[order, 0, 0]), np.asarray(two.weights_)[order]
    grid: NDArray[np.float64] = np.linspace(float(mean[0]), float(mean[1]), GRID, dtype=np.float64)
    least = int(np.argmin(cast(NDArray[np.float64], two.score_samples(grid[:, None]))))
    interior = 0 < least < GRID - 1
    separation = float(math.sqrt(2) * (mean[1] - mean[0]) / math.hypot(*std))
    dip, p = (float(v) for v in diptest.diptest(_thinned(x))[:2])  # type: ignore[index]
    tested = p < rule.default("alpha") if x.size >= rule.default("small") else gain > rule.default("bic_gain")
    return Bimodality(
        n=int(x.size),
        bimodal=bool(interior and tested and separation > rule.default("ashman_d")),
        valley=float(grid[least]), interior=interior, ashman_d=separation, bic_gain=gain, dip=dip, dip_p=p,
        coefficient=_coefficient(x),
        low_mean=float(mean[0]), low_std=float(std[0]), low_weight=float(weight[0]),
        high_mean=float(mean[1]), high_std=float(std[1]), high_weight=float(weight[1]),
    )  # fmt: skip


LARGEST_DIP = 72_000
"""Largest sample of the table that diptest's p-values come from."""


def _thinned(x: np.ndarray) -> np.ndarray:
    """Return a sample that the dip test has a table for: of a larger one its quantiles, evenly spaced.

    They have the same shape, and stand for fewer numbers than there are, so the p-value errs towards one hump.
    """
    if x.size <= LARGEST_DIP:
        return x
    return np.sort(x)[np.linspace(0, x.size - 1, LARGEST_DIP).round().astype(int)]


def _mixtures(column: np.ndarray) -> tuple[GaussianMixture, float]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    with warnings.catch_warnings():
        # Ties can leave EM without convergence; the dip test and the valley then decide alone.
        warnings.simplefilter("ignore", ConvergenceWarning)
        one, two = (GaussianMixture(k, n_init=5, random_state=0).fit(column) for k in (1, 2))
    return two, float(one.bic(column) - two.bic(column))


def _coefficient(x: np.ndarray) -> float:
    """Bimodality coefficient with sample-size corrections; 5/9 is that of a uniform distribution."""
    n = x.size
    correction = 3 * (n - 1) ** 2 / ((n - 2) * (n - 3))
    return float((stats.skew(x, bias=False) ** 2 + 1) / (stats.kurtosis(x, bias=False) + correction))
