"""Massive activations: which entries are massive, in which dimensions, over which blocks."""

# What xarray leaves untyped is not counted against this file.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy import stats

from sinkscope.definitions import Definition, define
from sinkscope.errors import MetricError
from sinkscope.metrics.base import attribute, lengths, metric, no_leading, require, stamp

NORMAL_MEDIAN = float(stats.norm.isf(0.25))
"""Median magnitude of a standard normal number."""
STEP = 2.0
"""A stage ends where the magnitude changes by more than this factor from one block to the next."""
_ORDER = ("prompt", "site", "rank")


@metric(
    Definition(
        "massive_activations",
        "sun2024",
        "magnitude above an absolute bound and at least ratio times the median magnitude of its prompt and site",
        "1",
        (("absolute", 100.0), ("ratio", 1000.0)),
        "sun2024",
    ),
    Definition(
        "massive_activations",
        "relative",
        "this project's own: magnitude over the median of its site at least factor, and of its token at least token, "
        "times what the largest of as many normal numbers would show; at least dimension times the median of its "
        "dimension over the tokens; so in a share recurrence of the prompts, at two block outputs in a row",
        "1",
        (("factor", 4.5), ("token", 3.0), ("dimension", 5.0), ("recurrence", 0.5)),
    ),
)
def massive_activations(ds: xr.Dataset, definition: str = "sun2024", **parameters: float) -> xr.Dataset:
    """Say which of the top entries are massive: ``massive`` (bool) and ``ratio``, dims (prompt site rank).

    Needs ``top_value``, ``top_dim``, ``median_abs``. ``ratio`` is magnitude over the median magnitude of its prompt and
    site. Two definitions:

    - ``"sun2024"``: magnitude > ``absolute`` (100) and ratio >= ``ratio`` (1000). Made for 7B models: it misses the
      dimension that carries the sink of a small encoder.
    - ``"relative"`` (this project's own, no absolute number; needs ``top_token_median`` and ``top_dim_median`` too). An
      entry is massive when it stands out three ways: of its site, by ``factor`` (4.5) times the largest ratio to the
      median that as many normal numbers would show (about ``isf(1 / 2n) / isf(1 / 4)``, 5 to 8); of its own token, by
      ``token`` (3) times what ``d_model`` normal numbers would show; and of its own dimension, by ``dimension`` (5)
      times that dimension's median over the tokens, for a dimension that is large at every token is an outlier feature.
      And it must recur: its dimension does so in at least a share ``recurrence`` (0.5) of the prompts at that block
      output and at the one before or after it (where the reading has several). ``docs/decisions.md`` says how the
      constants were chosen. Prompts of fewer than about eight tokens cannot be judged.

    Entries beyond the list's end (``MassiveActivations(top=)``) are not seen.

    Raises:
        MetricError: a variable or ``d_model`` is missing, or an unknown definition or parameter.
    """
    chosen = define("massive_activations", definition)
    known = dict(chosen.defaults)
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise MetricError(f"massive_activations: {definition!r} has no parameters {unknown}; it has {sorted(known)}.")
    bound = {**known, **parameters}
    require(ds, "massive_activations", "top_value", "top_dim", "median_abs")
    size = abs(ds["top_value"].astype("float64"))
    ratio = _over(size, ds["median_abs"])
    if definition == "sun2024":
        massive = (size > bound["absolute"]) & (ratio >= bound["ratio"])
    else:
        massive = _relative(ds, size, ratio, bound)
    count = int(size.notnull().sum())
    flags = stamp(massive, "massive_activations", definition, n=count, **bound)
    result = xr.Dataset({"massive": flags, "ratio": ratio})
    result["ratio"].attrs = {"units": "median magnitudes", "definition": definition}
    result.attrs = dict(flags.attrs)
    return result


def _over(size: xr.DataArray, median: xr.DataArray) -> xr.DataArray:
    """Magnitudes in medians; NaN where the median is zero."""
    median = median.astype("float64")
    return (size / median.where(median > 0)).transpose(*size.dims)


def _relative(ds: xr.Dataset, size: xr.DataArray, ratio: xr.DataArray, bound: dict[str, float]) -> xr.DataArray:
    require(ds, "massive_activations('relative')", "top_token_median", "top_dim_median")
    width = attribute(ds, "massive_activations", "d_model")
    entries = lengths(ds, "massive_activations") * width
    own_token = size >= bound["token"] * normal_extreme(xr.DataArray(width)) * ds["top_token_median"]
    own_dim = size >= bound["dimension"] * ds["top_dim_median"]
    high = (ratio >= bound["factor"] * normal_extreme(entries)) & own_token & own_dim
    return _recurring(high.transpose(*size.dims), ds, bound["recurrence"])


def normal_extreme(entries: xr.DataArray) -> xr.DataArray:
    """Return the ratio to the median magnitude that the largest of ``entries`` normal numbers would show."""
    counts = entries.reset_coords(drop=True).clip(min=1)
    return counts.copy(data=stats.norm.isf(0.5 / counts.values) / NORMAL_MEDIAN)


def _recurring(high: xr.DataArray, ds: xr.Dataset, recurrence: float) -> xr.DataArray:
    """Keep flags whose dimension is flagged in a share of the prompts of its site, and at a neighbouring block."""
    order = [d for d in high.dims if d not in _ORDER]
    flags = high.transpose(*order, "site", "prompt", "rank")
    index = ds["top_dim"].transpose(*flags.dims).fillna(-1).astype("int64").values
    blocks = _blocks([str(site) for site in ds["site"].values])
    kept = np.zeros_like(flags.values)
    for at in np.ndindex(*flags.shape[: len(order)]):
        lasting = [_lasting(flags.values[at][s], index[at][s], recurrence) for s in range(len(blocks))]
        for s, dims in enumerate(_staying(lasting, blocks)):
            kept[at][s] = flags.values[at][s] & np.isin(index[at][s], list(dims))
    return flags.copy(data=kept).transpose(*high.dims)


def _lasting(here: np.ndarray, ids: np.ndarray, recurrence: float) -> set[int]:
    """Dimensions flagged in at least a share of the prompts of one site."""
    pairs = {(p, int(d)) for p, d in zip(*np.nonzero(here)[:1], ids[here], strict=True)}
    found, counts = np.unique([d for _, d in pairs], return_counts=True)
    return {int(d) for d in found[counts >= recurrence * len(here)]}


def _blocks(sites: list[str]) -> list[tuple[int, bool]]:
    """Block of each site (-1: the input of the first) and whether it is the block's output."""
    return [
        (-1 if site == "embed" else int(site.partition(".")[0]), site.endswith(".post")) for site in sites
    ]  # fmt: skip


def _staying(lasting: list[set[int]], blocks: list[tuple[int, bool]]) -> list[set[int]]:
    """Of the lasting dimensions of each site, those that last over two block outputs of the reading in a row."""
    outputs = [(block, dims) for (block, post), dims in zip(blocks, lasting, strict=True) if post]
    if len(outputs) < 2:
        return lasting
    stays: dict[int, set[int]] = {}
    for (before, first), (after, second) in pairwise(outputs):
        for block in (before, after):
            stays.setdefault(block, set()).update(first & second)
    near = [
        stays.get(block, set()) if post else stays.get(block, set()) | stays.get(block - 1, set())
        for block, post in blocks
    ]
    near = [stays.get(0, set()) if block < 0 else dims for dims, (block, _) in zip(near, blocks, strict=True)]
    return [dims & also for dims, also in zip(lasting, near, strict=True)]


@metric()
def massive_dims(ds: xr.Dataset, definition: str = "relative", **parameters: float) -> xr.DataArray:
    """Rank the residual dimensions that hold massive activations: share of (prompt, site), dim ``dim``, descending.

    Labels of ``dim`` are residual dimensions; coordinates give ``magnitude`` (median over its massive entries),
    ``ratio`` (median) and ``at`` (the position it stands at most often). Empty when nothing is massive. Needs what
    ``massive_activations`` needs, and ``top_position``; takes its parameters. Where a dimension has several stages its
    median magnitude is a mixture: see ``massive_stages``.

    Raises:
        MetricError: as ``massive_activations``, or the reading still has an ``edit`` dim.
    """
    flags, table = _entries(ds, "massive_dims", definition, parameters)
    size = flags.shape[0] * flags.shape[1]
    rows: list[tuple[Any, ...]] = []
    for dim in np.unique(table.dim):
        at = table.dim == dim
        position = np.bincount(table.position[at]).argmax()
        share = len(np.unique(table.prompt[at] * flags.shape[1] + table.site[at])) / size
        rows.append((dim, share, np.median(table.magnitude[at]), np.median(table.ratio[at]), position))
    rows.sort(key=lambda row: (-row[1], -row[2]))
    columns = np.array(rows, dtype=float).reshape(-1, 5).T
    result = xr.DataArray(
        columns[1],
        dims="dim",
        coords={
            "dim": columns[0].astype(int), "magnitude": ("dim", columns[2]), "ratio": ("dim", columns[3]),
            "at": ("dim", columns[4].astype(int)),
        },
    )  # fmt: skip
    result = stamp(result, "massive_activations", definition, n=int(size))
    return result.rename("massive_dims").assign_attrs(units="share of (prompt, site)")


class _Table(NamedTuple):
    """Massive entries, one per row."""

    prompt: np.ndarray
    site: np.ndarray
    dim: np.ndarray
    position: np.ndarray
    magnitude: np.ndarray
    ratio: np.ndarray


def _entries(ds: xr.Dataset, metric: str, definition: str, parameters: dict[str, float]) -> tuple[np.ndarray, _Table]:
    """Flags (prompt, site, rank) and the massive entries."""
    require(ds, metric, "top_position")
    no_leading(ds["top_value"], _ORDER, metric)
    found = massive_activations(ds, definition, **parameters)
    flags = found["massive"].transpose(*_ORDER).values
    prompt, site, _ = np.nonzero(flags)
    dim, position, value = (ds[n].transpose(*_ORDER).values[flags] for n in ("top_dim", "top_position", "top_value"))
    ratio = found["ratio"].transpose(*_ORDER).values[flags]
    return flags, _Table(prompt, site, dim.astype(int), position.astype(int), np.abs(value), ratio)


@metric()
def massive_stages(
    ds: xr.Dataset, where: xr.DataArray | None = None, definition: str = "relative", **parameters: float
) -> xr.Dataset:
    """Find the blocks over which each massive activation keeps its size: one row per plateau, dim ``stage``.

    A massive activation may be written, taken away and written again, elsewhere and larger; so each dimension may have
    several stages. A stage is a run of two or more block outputs at which the dimension is massive in at least half of
    the prompts and whose median magnitude changes by at most a factor 2 from one to the next. Columns: ``dim``,
    ``first`` and ``last`` block, ``magnitude`` and ``ratio`` (median over its blocks and prompts of the largest entry),
    ``at`` (position it stands at most often), ``on_first`` (share of its entries at position 0), ``entries``. Sorted by
    magnitude, the largest first; no rows where nothing is massive.

    Args:
        ds: a reading with what ``massive_dims`` needs.
        where: bool (prompt, key): only entries of these tokens count, such as the sink's.
        definition: which entries are massive.
        parameters: as in ``massive_activations``.

    Raises:
        MetricError: as ``massive_dims``.
    """
    flags, table = _entries(ds, "massive_stages", definition, parameters)
    if where is not None:
        mask = where.transpose("prompt", "key").values
        on = mask[table.prompt, np.minimum(table.position, mask.shape[1] - 1)]
        table = _Table(*(column[on] for column in table))
    blocks = _blocks([str(site) for site in ds["site"].values])
    outputs = [s for s, (_, post) in enumerate(blocks) if post]
    rows: list[tuple[float, ...]] = []
    for dim in np.unique(table.dim):
        mine = _Table(*(column[table.dim == dim] for column in table))
        sizes = np.full((len(flags), len(outputs)), np.nan)
        for p, s, size in zip(mine.prompt, mine.site, mine.magnitude, strict=True):
            if s in outputs:
                sizes[p, outputs.index(s)] = np.fmax(sizes[p, outputs.index(s)], size)
        for first, last in _plateaus(sizes):
            inside = np.isin(mine.site, outputs[first : last + 1])
            positions = mine.position[inside]
            rows.append((
                int(dim), blocks[outputs[first]][0], blocks[outputs[last]][0],
                float(np.nanmedian(sizes[:, first : last + 1])), float(np.median(mine.ratio[inside])),
                int(np.bincount(positions).argmax()), float((positions == 0).mean()), int(inside.sum()),
            ))  # fmt: skip
    rows.sort(key=lambda row: -row[3])
    names = ("dim", "first", "last", "magnitude", "ratio", "at", "on_first", "entries")
    kinds = (int, int, int, float, float, int, float, int)
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    result = xr.Dataset({n: ("stage", np.array(c, dtype=k)) for n, c, k in zip(names, columns, kinds, strict=True)})
    result = result.assign_coords(stage=np.arange(len(rows)))
    result.attrs = {"metric": "massive_stages", "definition": definition, "step": STEP, "n": ds.sizes["prompt"]}
    return result


def _plateaus(sizes: np.ndarray) -> list[tuple[int, int]]:
    """Runs of two or more blocks of (prompt, block) whose median over prompts changes by at most ``STEP``."""
    there = np.isfinite(sizes).mean(0) >= 0.5
    level = np.array([np.nanmedian(column) if ok else np.nan for column, ok in zip(sizes.T, there, strict=True)])
    with np.errstate(invalid="ignore"):
        joined = np.abs(np.diff(np.log(level))) <= np.log(STEP)
    runs: list[tuple[int, int]] = []
    start = 0
    for block in range(len(level)):
        if block == len(level) - 1 or not joined[block]:
            if block > start:
                runs.append((start, block))
            start = block + 1
    return runs
