"""Is it different, by how much, and how sure: paired comparison of readings. scipy does the statistics."""

# What xarray leaves untyped is not counted against this file.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy import stats

from sinkscope.arguments import check_fields, is_truth
from sinkscope.definitions import Definition, define
from sinkscope.errors import MetricError, SinkscopeWarning
from sinkscope.metrics.base import coords_within, dims_over, is_labels, metric, real_numbers

SIGNIFICANT = 0.05
"""Level below which a q-value is usually called significant; only the warning on too few pairs uses it."""

SMALLEST_N = 6
"""Pairs from which a sign-flip or signed-rank test can reach that level: 2 / 2^6 is .031, 2 / 2^5 is .063."""

BASELINE = "_baseline"
"""Ending of the variables in which the sweep of a grid keeps the run without edits."""

BATCH = 2_000_000
"""Numbers that one batch of resamples may hold."""


@dataclass(frozen=True)
class Resampling:
    """How ``compare`` resamples: how often, from which seed, and the level of its interval."""

    resamples: int = 9999
    seed: int = 0
    level: float = 0.95

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            MetricError: fewer than two resamples, or a level outside 0 to 1.
        """
        check_fields(self, MetricError)
        if self.resamples < 2 or self.seed < 0 or not 0 < self.level < 1:
            raise MetricError(f"{self}: resample at least twice, from a seed of 0 or more, at a level between 0 and 1.")


class _Test(NamedTuple):
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray


@metric(
    Definition("compare", "paired", "mean paired difference, bootstrap interval, test, false-discovery control", ""),
)
def compare(  # noqa: PLR0913 - one call is the whole interface
    readings: xr.Dataset | xr.DataArray,
    *,
    to: str | Mapping[str, Any] | xr.Dataset | xr.DataArray,
    over: str | Iterable[Hashable] = "prompt",
    variable: str | None = None,
    sel: Mapping[Hashable, Any] | None = None,
    test: str = "permutation",
    resampling: Resampling | None = None,
) -> xr.Dataset:
    """Mean paired difference ``readings - to`` along ``over``, with interval, p-value and false-discovery control.

    ``to`` is a label of the dim ``edit`` (every other label is compared with it), or a second reading or DataArray
    with the same labels. The sweep of a grid has no dim ``edit``: give its Dataset, and ``to="baseline"`` takes the run
    that ``sweep(baseline=True)`` added, and ``to={"gamma": 1.0}`` a label of a dim of the grid: it stays in the result,
    so that a curve passes through it, but is not tested against itself. ``variable`` names the
    variable of a Dataset that holds several. The pairs are the labels of ``over``; all other dims stay, so a head map
    gives one test per head. Average over tokens first: tokens of one prompt are not independent.

    The q-values correct for every test of the result, so say what you ask before the tests are made: ``sel`` selects
    labels, or positions along a dim without labels, in both sides (``sel={"key": 0}``). Selecting afterwards leaves
    the correction for all the rest in.

    Returns a Dataset: ``difference``; ``low``, ``high`` (bootstrap interval, bias-corrected and accelerated);
    ``p_value`` (``test``: ``"permutation"`` flips signs, exact when 2^n is within the resamples; ``"wilcoxon"`` signed
    rank, much faster for many heads); ``q_value`` (Benjamini-Hochberg over every test of the result); ``n`` pairs.
    Pairs with a NaN are left out; below two pairs there is no interval and no p, below one no difference: NaN.

    Attributes: ``family`` says which tests were corrected together, ``tests`` how many; ``smallest_p`` is the least
    p-value that ``n`` pairs can give, ``smallest_q`` the q-value when every test gives it, ``smallest_q_alone`` when
    only one does.

    Raises:
        MetricError: no such label or variable, labels that differ, or an unknown test or dim.

    Warns:
        SinkscopeWarning: with so few pairs no q-value can be as small as .05.
    """
    how = resampling or Resampling()
    if test not in ("permutation", "wilcoxon"):
        raise MetricError(f"compare(test={test!r}): tests are 'permutation' and 'wilcoxon'.")
    values = _pick(readings, variable)
    values, reference = _pair(values, _baseline(readings, values, to), variable)
    same, chosen = _itself(values, to), dict(sel or {})
    values = _select(values, chosen)
    same, reference = (
        _select(array, {dim: wanted for dim, wanted in chosen.items() if dim in array.dims})
        for array in (same, reference)
    )
    difference = real_numbers(values, "compare") - real_numbers(reference, "compare")
    pooled = dims_over(difference, over, "compare")
    if set(pooled) & set(same.dims):
        raise MetricError(f"compare(to={to}, over={over!r}): the pairs lie along {pooled}; compare along another dim.")
    result = _test_differences(difference, pooled, test, how, same)
    result.attrs = _captioned(result, readings, values, pooled) | {"test": test, "to": _said(to)}
    result.attrs |= {"over": ", ".join(map(str, pooled)), **vars(how), **_power(result, test, how)}
    return result


def _captioned(result: xr.Dataset, readings: Any, values: xr.DataArray, pooled: list[Hashable]) -> dict[str, Any]:
    """Give each variable what a figure of it says, and return what was compared, for the attributes of the result."""
    count, units = int(result["n"].values.max(initial=0)), str(values.attrs.get("units", ""))
    caption: dict[str, Any] = {"model_id": str(readings.attrs["model_id"])} if readings.attrs.get("model_id") else {}
    if pooled == ["prompt"]:
        caption["n_prompts"] = count
    for name in ("difference", "low", "high"):
        result[name].attrs |= {"units": units, **caption}
    return {
        "metric": "compare", "definition": "paired", "meaning": define("compare", "paired").meaning, "reference": "",
        "units": units, "variable": str(values.name or ""), "n": count,
    }  # fmt: skip


def _test_differences(
    difference: xr.DataArray, pooled: Sequence[Hashable], test: str, how: Resampling, itself: xr.DataArray
) -> xr.Dataset:
    """Mean, interval, p, q and number of pairs of every cell, the pairs lying along the dims ``pooled``.

    Cells that are compared with themselves (``itself``) are no tests: no p, and no part in the correction.
    """
    kept = [dim for dim in difference.dims if dim not in pooled]
    difference = difference.transpose(*kept, *pooled)
    shape = difference.shape[: len(kept)]
    cells = difference.values.reshape(int(np.prod(shape)), -1)
    count = np.isfinite(cells).sum(1)
    with np.errstate(invalid="ignore"):
        mean = np.where(count > 0, np.nansum(cells, axis=1) / np.maximum(count, 1), np.nan)
    low, high, p = _test_cells(cells, test, how)
    p[itself.broadcast_like(difference.isel(dict.fromkeys(pooled, 0))).transpose(*kept).values.ravel()] = np.nan
    columns = {"difference": mean, "low": low, "high": high, "p_value": p, "q_value": _q_values(p), "n": count}
    return xr.Dataset(
        {name: (kept, column.reshape(shape)) for name, column in columns.items()},
        coords=coords_within(difference, kept),
    )


def _itself(values: xr.DataArray, to: object) -> xr.DataArray:
    """Return where the values are those that ``to`` names, a label of a dim of theirs; nowhere, else."""
    found = xr.DataArray(is_labels(to))
    for dim, label in to.items() if is_labels(to) else ():
        found = found & (values[dim] == label)
    return found


def _said(to: object) -> str:
    """Say what was compared with, for the attributes of the result."""
    if is_labels(to):
        return ", ".join(f"{dim} = {label}" for dim, label in to.items())
    return to if isinstance(to, str) else "reading"


def _select(array: xr.DataArray, sel: Mapping[Hashable, Any]) -> xr.DataArray:
    """Select labels where a dim has them, positions where it has none; what the array lacks is an error."""
    absent = [dim for dim in sel if dim not in array.dims]
    if absent:
        raise MetricError(f"compare(sel={dict(sel)}): {absent} are not dims; there are {list(array.dims)}.")
    for dim, wanted in sel.items():
        try:
            array = array.sel({dim: wanted}) if dim in array.coords else array.isel({dim: wanted})
        except (KeyError, IndexError):
            labels = array[dim].values.tolist() if dim in array.coords else list(range(array.sizes[dim]))
            raise MetricError(f"compare(sel={dict(sel)}): {dim} has no {wanted!r}; there are {labels[:12]}.") from None
    return array.reset_coords(drop=True)


def _power(result: xr.Dataset, test: str, how: Resampling) -> dict[str, Any]:
    """Say what was corrected together and how small a p- and q-value this many pairs allow; warn where none can do."""
    tested = result["p_value"].notnull()
    tests, pairs = int(tested.sum()), int(result["n"].max()) if result["n"].size else 0
    sizes = ", ".join(f"{size} {dim}" for dim, size in result["p_value"].sizes.items())
    family = f"{tests} test{'' if tests == 1 else 's'}" + (f" ({sizes})" if sizes else "")
    # Flipping all signs is as extreme as flipping none, so two of the 2^n sign patterns give the least p-value.
    least = 2.0 / 2**pairs if pairs >= 2 else float("nan")
    if test == "permutation" and pairs >= 2 and 2**pairs > how.resamples:
        least = 2.0 / (how.resamples + 1)
    alone = min(1.0, least * tests) if tests else float("nan")
    if tests and least > SIGNIFICANT:
        warnings.warn(
            f"compare: with n = {pairs} pairs no p- or q-value can be below {least:.3g}, so nothing can come out "
            f"significant at {SIGNIFICANT:g}. Give at least {SMALLEST_N} pairs (prompts).",
            SinkscopeWarning,
            stacklevel=4,
        )
    return {"family": family, "tests": tests, "smallest_p": least, "smallest_q": least, "smallest_q_alone": alone}


def _pick(readings: object, variable: str | None) -> xr.DataArray:
    if isinstance(readings, xr.DataArray):
        return readings
    if not isinstance(readings, xr.Dataset):
        raise MetricError(f"compare: expected a Dataset or DataArray, got {type(readings).__name__}.")
    held = sorted(map(str, readings.data_vars))
    names = [name for name in held if name.removesuffix(BASELINE) not in held or not name.endswith(BASELINE)]
    if variable is None and len(names) == 1:
        return readings[names[0]]
    if variable not in names:
        raise MetricError(f"compare(variable={variable!r}): this dataset holds {names}. Name one of them.")
    return readings[variable]


def _baseline(
    readings: object, values: xr.DataArray, to: str | Mapping[str, Any] | xr.Dataset | xr.DataArray
) -> str | Mapping[str, Any] | xr.Dataset | xr.DataArray:
    """Return the run without edits where the sweep of a grid holds it as a variable of its own, else ``to``."""
    if not isinstance(to, str) or to != "baseline" or "edit" in values.dims:
        return to
    plain = f"{values.name}{BASELINE}"
    if isinstance(readings, xr.Dataset) and plain in readings:
        return readings[plain]
    raise MetricError(
        f"compare(to='baseline'): the sweep of a grid keeps the run without edits as a variable, here {plain!r}, which "
        "a DataArray does not hold. Give the Dataset of sweep(..., baseline=True): "
        f"compare(swept.mean('query'), to='baseline', variable={str(values.name)!r})."
    )


def _check_prompts(values: xr.DataArray, other: xr.DataArray) -> None:
    """Refuse to pair numbers of different prompts: place 3 of one list and place 3 of another are no pair."""
    if any("prompt_hash" not in array.coords or "prompt" not in array.dims for array in (values, other)):
        return
    first, second = (array["prompt_hash"].values for array in (values, other))
    if first.shape == second.shape and (first != second).any():
        which = int(np.flatnonzero(first != second)[0])
        raise MetricError(
            f"compare: prompt {which} of the readings is not prompt {which} of 'to' ({int((first != second).sum())} of "
            f"{len(first)} differ in tokens, roles or images), so they are no pairs. Read the same prompts in both; "
            "where the pairs are meant (two tokenizers, a changed word), drop the coordinate: "
            "values.drop_vars('prompt_hash')."
        )


def _pair(
    values: xr.DataArray, to: str | Mapping[str, Any] | xr.Dataset | xr.DataArray, variable: str | None
) -> tuple[xr.DataArray, xr.DataArray]:
    """Give the values and what they are compared with, without coordinates that are not dims."""
    plain = values.reset_coords(drop=True)
    if is_labels(to):
        return plain, _labelled(plain, to)
    if not isinstance(to, str):
        other = _pick(to, variable)
        _check_prompts(values, other)
        other = other.reset_coords(drop=True)
        extra = [dim for dim in other.dims if dim not in plain.dims]
        if extra:
            raise MetricError(f"compare: 'to' has the dims {extra}, which the readings lack. Select one label of them.")
        return plain, other
    labels: list[str] = plain["edit"].values.tolist() if "edit" in plain.dims else []
    if to not in labels:
        raise MetricError(
            f"compare(to={to!r}): the labels of the dim 'edit' are {labels}. Name one, or pass a reading as 'to'."
        )
    return plain.drop_sel(edit=to), plain.sel(edit=to, drop=True)


def _labelled(values: xr.DataArray, to: Mapping[str, Any]) -> xr.DataArray:
    """Return the values at one label of some dims, which stay no dims.

    Raises:
        MetricError: no label was given, or no such dim or label.
    """
    absent = [dim for dim in to if dim not in values.dims or dim not in values.coords]
    if absent or not to:
        there = [str(dim) for dim in values.dims if dim in values.coords]
        raise MetricError(f"compare(to={dict(to)}): name one label of some of the labelled dims {there}.")
    for dim, label in to.items():
        labels = values[dim].values.tolist()
        if is_truth(label) or not np.isscalar(label) or label not in labels:
            raise MetricError(f"compare(to={dict(to)}): {dim} has no {label!r}; there are {labels[:12]}.")
    return values.sel(dict(to), drop=True)


def _test_cells(cells: np.ndarray, test: str, how: Resampling) -> _Test:
    """Interval and p of each row of ``(cell, pair)``; rows with the same gaps are resampled together."""
    low, high, p = (np.full(len(cells), np.nan) for _ in range(3))
    patterns, group = np.unique(np.isfinite(cells), axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        if pattern.sum() < 2:
            continue
        at = np.nonzero(group.ravel() == number)[0]
        data = cells[at][:, pattern]
        constant = (data == data[:, :1]).all(1)
        low[at[constant]] = high[at[constant]] = data[constant, 0]
        if not constant.all():
            low[at[~constant]], high[at[~constant]] = _interval(data[~constant], how)
        p[at] = _p_values(data, test, how)
    return _Test(low, high, p)


def _interval(data: np.ndarray, how: Resampling) -> tuple[np.ndarray, np.ndarray]:
    with warnings.catch_warnings():
        # A degenerate interval comes back as NaN and is replaced by the percentile interval below.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (data,), np.mean, axis=-1, vectorized=True, n_resamples=how.resamples, batch=_batch(data, how),
            confidence_level=how.level, rng=np.random.default_rng(how.seed),
        )  # fmt: skip
    ends = (np.asarray(found.confidence_interval.low), np.asarray(found.confidence_interval.high))
    tails = ((1 - how.level) / 2, (1 + how.level) / 2)
    plain = [np.quantile(found.bootstrap_distribution, tail, axis=-1) for tail in tails]
    low, high = (np.where(np.isnan(end), percentile, end) for end, percentile in zip(ends, plain, strict=True))
    # At levels near 0 the two ends are one quantile, and rounding may put them in the wrong order.
    return np.minimum(low, high), np.maximum(low, high)


def _p_values(data: np.ndarray, test: str, how: Resampling) -> np.ndarray:
    p = np.ones(len(data))
    moved = (data != 0).any(1)
    if not moved.any():
        return p
    if test == "wilcoxon":
        p[moved] = np.asarray(stats.wilcoxon(data[moved], axis=-1)[1])
    else:
        found = stats.permutation_test(
            (data[moved],), np.mean, permutation_type="samples", axis=-1, vectorized=True, n_resamples=how.resamples,
            batch=_batch(data, how), rng=np.random.default_rng(how.seed),
        )  # fmt: skip
        p[moved] = found.pvalue
    return p


def _batch(data: np.ndarray, how: Resampling) -> int:
    return int(min(how.resamples, max(1, BATCH // max(data.size, 1))))


def _q_values(p: np.ndarray) -> np.ndarray:
    q = np.full_like(p, np.nan)
    tested = np.isfinite(p)
    if tested.any():
        q[tested] = stats.false_discovery_control(p[tested], method="bh")
    return q


@metric(
    Definition("rank_correlation", "spearman", "Spearman's rank correlation", "1"),
    Definition("rank_correlation", "kendall", "Kendall's tau", "1"),
)
def rank_correlation(
    a: xr.DataArray, b: xr.DataArray, *, over: str | Iterable[Hashable] | None = None, method: str = "spearman"
) -> xr.Dataset:
    """Rank correlation of two arrays with the same labels: ``correlation``, ``p_value``, ``n``.

    ``over`` names the dims that are pooled (None: all); the rest stay. Pairs with a NaN are left out; NaN below three
    pairs or where one side is constant. ``method``: ``"spearman"`` or ``"kendall"``.

    Raises:
        MetricError: labels or dims differ, or an unknown method.
    """
    functions: dict[str, Callable[..., Any]] = {"spearman": stats.spearmanr, "kendall": stats.kendalltau}
    definition = define("rank_correlation", method)
    if set(a.dims) != set(b.dims):
        raise MetricError(
            f"rank_correlation: dims differ, {list(a.dims)} and {list(b.dims)}. Reduce one of them first."
        )
    first, second = xr.align(a.reset_coords(drop=True), b.reset_coords(drop=True), join="exact")
    pooled = list(first.dims) if over is None else dims_over(first, over, "rank_correlation")
    kept = [dim for dim in first.dims if dim not in pooled]
    x, y = (array.transpose(*kept, *pooled).values.astype(np.float64) for array in (first, second))
    shape = x.shape[: len(kept)]
    rows = []
    for at in np.ndindex(*shape):
        u, v = x[at].ravel(), y[at].ravel()
        good = np.isfinite(u) & np.isfinite(v)
        u, v = u[good], v[good]
        usable = u.size >= 3 and np.ptp(u) > 0 and np.ptp(v) > 0
        pair = functions[method](u, v) if usable else (np.nan, np.nan)
        rows.append((float(pair[0]), float(pair[1]), int(good.sum())))
    columns = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    coords = {dim: first[dim] for dim in kept if dim in first.coords}
    names = ("correlation", "p_value", "n")
    data = {name: (kept, column.reshape(shape)) for name, column in zip(names, columns, strict=True)}
    result = xr.Dataset(data, coords=coords)
    result["n"] = result["n"].astype("int64")
    result.attrs = {
        "metric": "rank_correlation", "definition": definition.name, "meaning": definition.meaning,
        "units": "1", "reference": "", "n": int(result["n"].sum()),
    }  # fmt: skip
    return result
