"""Massive activations: which entries are massive, in which dimensions, by an absolute and by a relative rule."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy import stats

from sinkscope.definitions import Definition, define
from sinkscope.errors import MetricError
from sinkscope.metrics.base import attribute, lengths, metric, require, stamp
from sinkscope.metrics.residual import phi_threshold

NORMAL_MEDIAN = float(stats.norm.isf(0.25))
"""Median magnitude of a standard normal number."""


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
        "magnitude over the median at least factor times what the largest of as many normal numbers would show, in a "
        "dimension that does so in at least a share recurrence of the prompts at that site",
        "1",
        (("factor", 4.0), ("recurrence", 0.5)),
    ),
)
def massive_activations(ds: xr.Dataset, definition: str = "sun2024", **parameters: float) -> xr.Dataset:
    """Say which of the top entries are massive: ``massive`` (bool) and ``ratio``, dims (prompt site rank).

    Needs ``top_value``, ``top_dim``, ``median_abs``. ``ratio`` is magnitude over the median magnitude of its prompt and
    site. Two definitions:

    - ``"sun2024"``: magnitude > ``absolute`` (100) and ratio >= ``ratio`` (1000). Made for 7B models: it misses the
      dimension that carries the sink of a small encoder.
    - ``"relative"``: no absolute number. A site of n = tokens x d_model independent normal entries would show a largest
      ratio of about ``isf(1 / 2n) / isf(1 / 4)`` (5 to 8 for any n of practice). An entry is massive when its ratio is
      at least ``factor`` (4) times that, and its dimension does so in at least a share ``recurrence`` (0.5) of the
      prompts at that site: massive activations stand in fixed dimensions, chance outliers do not.

    ``massive_dims`` ranks the dimensions. Entries beyond the list's end (``MassiveActivations(top=)``) are not seen.

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
    median = ds["median_abs"].astype("float64")
    ratio = (size / median.where(median > 0)).transpose(*size.dims)
    if definition == "sun2024":
        massive = (size > bound["absolute"]) & (ratio >= bound["ratio"])
    else:
        entries = lengths(ds, "massive_activations") * attribute(ds, "massive_activations", "d_model")
        high = (ratio >= bound["factor"] * normal_extreme(entries)).transpose(*size.dims)
        massive = _recurring(high, ds["top_dim"], bound["recurrence"])
    count = int(size.notnull().sum())
    flags = stamp(massive, "massive_activations", definition, n=count, **bound)
    result = xr.Dataset({"massive": flags, "ratio": ratio})
    result["ratio"].attrs = {"units": "median magnitudes", "definition": definition}
    result.attrs = dict(flags.attrs)
    return result


def normal_extreme(entries: xr.DataArray) -> xr.DataArray:
    """Give the ratio to the median magnitude that the largest of ``entries`` normal numbers would show."""
    return xr.apply_ufunc(
        lambda n: stats.norm.isf(0.5 / np.maximum(n, 1)) / NORMAL_MEDIAN, entries.reset_coords(drop=True)
    )


def _recurring(high: xr.DataArray, dims: xr.DataArray, recurrence: float) -> xr.DataArray:
    """Keep flags whose dimension is flagged in at least a share of the prompts of its site."""
    order = [d for d in high.dims if d not in ("prompt", "rank")]
    flags = high.transpose(*order, "prompt", "rank")
    index = dims.transpose(*flags.dims).fillna(-1).astype("int64").values
    kept = np.zeros_like(flags.values)
    for at in np.ndindex(*flags.shape[:-2]):
        here, ids = flags.values[at], index[at]
        pairs = {(p, int(d)) for p, d in zip(*np.nonzero(here)[:1], ids[here], strict=True)}
        found, counts = np.unique([d for _, d in pairs], return_counts=True)
        lasting = found[counts >= recurrence * here.shape[0]]
        kept[at] = here & np.isin(ids, lasting)
    return flags.copy(data=kept).transpose(*high.dims)


@metric()
def massive_dims(ds: xr.Dataset, definition: str = "relative", **parameters: float) -> xr.DataArray:
    """Rank the residual dimensions that hold massive activations: share of (prompt, site), dim ``dim``, descending.

    Labels of ``dim`` are residual dimensions; coordinates give ``magnitude`` (median over its massive entries),
    ``ratio`` (median) and ``at`` (the position it stands at most often). Empty when nothing is massive. Needs what
    ``massive_activations`` needs, and ``top_position``; takes its parameters.

    Raises:
        MetricError: as ``massive_activations``, or the reading still has an ``edit`` dim.
    """
    require(ds, "massive_dims", "top_position")
    _no_leading(ds["top_value"], ("prompt", "site", "rank"), "massive_dims")
    found = massive_activations(ds, definition, **parameters)
    order = ("prompt", "site", "rank")
    flags = found["massive"].transpose(*order).values
    pair = np.broadcast_to(np.arange(flags.shape[0] * flags.shape[1]).reshape(*flags.shape[:2], 1), flags.shape)[flags]
    table = {name: ds[name].transpose(*order).values[flags] for name in ("top_dim", "top_position", "top_value")}
    ratio = found["ratio"].transpose(*order).values[flags]
    ids = table["top_dim"].astype(int)
    rows = []
    for dim in np.unique(ids):
        at = ids == dim
        position = np.bincount(table["top_position"][at].astype(int)).argmax()
        share = len(np.unique(pair[at])) / (flags.shape[0] * flags.shape[1])
        rows.append((dim, share, np.median(np.abs(table["top_value"][at])), np.median(ratio[at]), position))
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
    result = stamp(result, "massive_activations", definition, n=int(flags.shape[0] * flags.shape[1]))
    return result.rename("massive_dims").assign_attrs(units="share of (prompt, site)")


@dataclass(frozen=True)
class _Rule:
    tau: float
    share: float
    relative: bool


@metric(
    Definition(
        "sink_dims",
        "kang2025",
        "median over prompts of |x_d| / RMS at the sink position at least tau in half of the sites of the middle 80 %",
        "share of sites",
        (("tau", 20.0), ("share", 0.5)),
        "kang2025",
    ),
    Definition(
        "sink_dims",
        "width_relative",
        "as kang2025 with tau a share of its upper bound sqrt(d_model), 20 / sqrt(4096) at every width, and at least "
        "twice what normal entries would show",
        "share of sites",
        (("tau", 0.3125), ("share", 0.5)),
        "kang2025",
    ),
)
def discover_sink_dims(
    ds: xr.Dataset,
    position: int = 0,
    *,
    definition: str = "kang2025",
    tau: float | None = None,
    share: float | None = None,
) -> xr.DataArray:
    """Find the dimensions that phi should look at: share of sites that show each, dim ``dim``, descending.

    At the block inputs of the middle 80 % of the layers, a dimension counts where the median over prompts of
    |x_d| / RMS at ``position`` is at least ``tau``; those that count in at least ``share`` of the sites are kept. Needs
    ``top_value``, ``top_dim``, ``top_position`` and ``residual_norm`` (RMS = norm / sqrt(d_model)). A dimension that is
    not in the top list counts as 0, so nothing is invented. ``"kang2025"`` has tau = 20, which no model narrower than
    400 can reach; ``"width_relative"`` has 0.3125 sqrt(d_model), the same at width 4096, and at least twice what normal
    entries would show. Coordinate ``phi``: median over sites. Use at least 20 prompts; check the dims by a causal test
    before trusting them.

    Raises:
        MetricError: a variable or ``d_model`` is missing, or the reading still has an ``edit`` dim.
    """
    chosen = define("sink_dims", definition)
    require(ds, "discover_sink_dims", "top_value", "top_dim", "top_position", "residual_norm")
    _no_leading(ds["top_value"], ("prompt", "site", "rank"), "discover_sink_dims")
    width = attribute(ds, "discover_sink_dims", "d_model")
    rule = _Rule(
        chosen.default("tau") if tau is None else tau,
        chosen.default("share") if share is None else share,
        definition == "width_relative",
    )
    sites = _middle_inputs([str(site) for site in ds["site"].values])
    level = _phi_by_dim(ds.sel(site=sites), position, width)
    bound = phi_threshold(rule.tau, width) if rule.relative else rule.tau
    counted = (level >= bound).mean(0)
    kept = np.nonzero(counted >= rule.share)[0]
    kept = kept[np.lexsort((-np.median(level, axis=0)[kept], -counted[kept]))]
    result = xr.DataArray(
        counted[kept], dims="dim", coords={"dim": kept, "phi": ("dim", np.median(level, axis=0)[kept])}
    )
    return stamp(result, "sink_dims", definition, n=ds.sizes["prompt"], tau=rule.tau, share=rule.share)


def _phi_by_dim(ds: xr.Dataset, position: int, width: int) -> np.ndarray:
    """Median over prompts of |x_d| / RMS at a position, ``(site, dim)``; 0 where a dim is not in the top list."""
    order = ("prompt", "site", "rank")
    value, index, place = (ds[name].transpose(*order).values for name in ("top_value", "top_dim", "top_position"))
    norm = ds["residual_norm"].isel(key=position).transpose("prompt", "site").values.astype(np.float64)
    rms = np.sqrt(norm**2 / width + 1e-6)[..., None]
    level = np.zeros((value.shape[0], value.shape[1], width))
    at = (place == position) & np.isfinite(value)
    prompt, site, _ = np.nonzero(at)
    level[prompt, site, index[at].astype(int)] = np.abs(value / rms)[at]
    return np.median(level, axis=0)


def _middle_inputs(sites: list[str]) -> list[str]:
    posts = [site for site in sites if site.endswith(".post")]
    inputs = [site for site in sites if site == "embed"] + posts[:-1]
    if not inputs:
        raise MetricError(f"discover_sink_dims needs block inputs ('embed', '0.post', ...); the sites are {sites}.")
    trim = len(inputs) // 10
    return inputs[trim : len(inputs) - trim]


def _no_leading(array: xr.DataArray, dims: tuple[str, ...], metric: str) -> None:
    extra = [dim for dim in array.dims if dim not in dims]
    if extra:
        raise MetricError(
            f"{metric}: the reading has the dims {extra} in front. Select one label first: ds.sel(edit=...)."
        )
