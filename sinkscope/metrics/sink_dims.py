"""Which residual dimensions phi should look at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from sinkscope.definitions import Definition, define
from sinkscope.errors import MetricError
from sinkscope.metrics.base import attribute, metric, no_leading, require, stamp
from sinkscope.metrics.residual import phi_threshold


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
    no_leading(ds["top_value"], ("prompt", "site", "rank"), "discover_sink_dims")
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
