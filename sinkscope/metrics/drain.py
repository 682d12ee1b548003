"""Value drain: how small the value vectors of the sink tokens are beside the others'."""

# What xarray leaves untyped is not counted against this file.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xarray as xr

from sinkscope.definitions import Definition
from sinkscope.errors import MetricError
from sinkscope.metrics.base import dims_over, masked, mean_over, metric, real_tokens, require, stamp


@metric(
    Definition(
        "value_drain",
        "guo2024",
        "l2 norm of the value vector of the sink over the median of the other tokens",
        "ratio",
        (),
        "guo2024",
    ),
)
def value_drain(
    ds: xr.Dataset,
    sinks: int | xr.DataArray = 0,
    *,
    over: str | Iterable[str] = "prompt",
    definition: str = "guo2024",
) -> xr.DataArray:
    """Return the value norm of the sink tokens over the median of the other tokens, by default per (layer, kv_head).

    Needs ``value_norm`` (prompt layer kv_head key). ``sinks`` is a position (0: the first token) or a bool DataArray
    from ``sink_mask``: with a ``head`` dim, a token is a sink of a kv head when it is one for any head it serves.
    Several sinks count by their mean norm. ``over=()`` keeps the prompts, for ``compare``. Below 1 is a drain; NaN with
    n = 0 where there is no sink or no other token. Units: ratio of raw l2 norms. Source: Guo et al. (guo2024).

    Raises:
        MetricError: no ``value_norm``, a position beyond every prompt, sinks without a ``key`` dim.
    """
    require(ds, "value_drain", "value_norm")
    norm = ds["value_norm"].astype("float64").drop_vars(["token", "token_role"], errors="ignore")
    chosen = _by_kv_head(ds, _mask(ds, sinks), norm)
    real = real_tokens(ds, "value_drain")
    held = masked(norm, chosen & real).mean("key")
    others = masked(norm, ~chosen & real).median("key")
    ratio = (held / others.where(others > 0)).transpose(*[dim for dim in norm.dims if dim != "key"])
    result = mean_over(ratio, dims_over(ratio, over, "value_drain"))
    label = sinks if isinstance(sinks, int) else "sinks given"
    return stamp(result, "value_drain", definition, sinks=label)


def _mask(ds: xr.Dataset, sinks: int | xr.DataArray) -> xr.DataArray:
    size = ds.sizes["key"]
    if isinstance(sinks, xr.DataArray):
        if "key" not in sinks.dims:
            raise MetricError(f"value_drain: sinks have dims {list(sinks.dims)}, expected a 'key' dim among them.")
        return sinks.astype(bool).drop_vars(["token", "token_role", "n"], errors="ignore")
    if not 0 <= sinks < size:
        raise MetricError(f"value_drain(sinks={sinks}): the longest prompt has positions 0..{size - 1}.")
    return xr.DataArray(np.arange(size) == sinks, dims="key")


def _by_kv_head(ds: xr.Dataset, mask: xr.DataArray, norm: xr.DataArray) -> xr.DataArray:
    if "head" not in mask.dims:
        return mask
    if "kv_of_head" not in ds.coords:
        raise MetricError(
            "value_drain: the sinks differ by head, and the reading lacks the coordinate 'kv_of_head'. "
            "Reduce them first: sinks.any('head')."
        )
    serves = ds["kv_of_head"].sel(head=mask["head"]).values
    groups = [mask.isel(head=serves == kv).any("head") for kv in range(norm.sizes["kv_head"])]
    return xr.concat([group.drop_vars(["kv_of_head"], errors="ignore") for group in groups], dim="kv_head")
