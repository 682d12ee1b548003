"""Entropy of attention rows, with and without the sink, exactly and without a map."""

# What xarray leaves untyped is not counted against this file.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import xarray as xr

from sinkscope.definitions import DEFINITIONS, Definition
from sinkscope.errors import MetricError
from sinkscope.metrics.arrays import entropy_without
from sinkscope.metrics.base import (
    attribute,
    dims_over,
    lengths,
    masked,
    mean_over,
    metric,
    of_role,
    require,
    stamp,
    token_roles,
)


@metric(
    Definition("entropy_summary", "row", "-sum a ln a of the attention row", "nat"),
    Definition("entropy_summary", "without_sink", "entropy of the row renormalised without the sink's key", "nat"),
)
def entropy_summary(
    ds: xr.Dataset,
    sink: int | str = 0,
    *,
    over: str | Iterable[str] = ("prompt", "query"),
    share: xr.DataArray | None = None,
    min_rest: float = 1e-4,
) -> xr.Dataset:
    """Mean row entropy with the sink's key and of the row renormalised without it, by default per (layer, head).

    Needs ``entropy`` (prompt layer head query) and the attention each query gives the sink. That is taken from
    ``share`` if given, else from ``max_attention`` read on a role that one token of each prompt has, else from
    ``attention`` (its layers and heads only). ``sink`` is a position (0: the first token) or such a role. A mean over
    queries (``role_share``) cannot serve: entropy is not linear in it.

    Returns a Dataset: ``entropy``, ``sink_share`` and ``entropy_without_sink`` over the queries whose share is known,
    ``n`` their number, ``n_without`` those of them that keep at least ``min_rest`` of their mass without the sink (a
    row that sees the sink alone has none). Units: nat. With H the entropy, p the share and S the row sum the third is
    ``(H + p ln p) / (S - p) + ln(S - p)``; S is ``row_sum`` where the reading has it, else 1.

    Raises:
        MetricError: a variable is missing; the message names the probe to add.
    """
    require(ds, "entropy_summary", "entropy")
    if min_rest < 0:
        raise MetricError(f"entropy_summary(min_rest={min_rest}): give 0 or more; it is a share of a row.")
    whole = ds["entropy"].astype("float64")
    part = (_sink_share(ds, sink) if share is None else share).astype("float64")
    part = part.drop_vars([name for name in part.coords if name not in part.dims])
    total = ds["row_sum"].astype("float64") if "row_sum" in ds else xr.ones_like(whole)
    known = whole.notnull() & part.notnull()
    rest = xr.apply_ufunc(entropy_without, whole, part, total, kwargs={"min_rest": min_rest})
    dims = dims_over(whole, over, "entropy_summary")
    means = {
        "entropy": mean_over(whole.where(known), dims),
        "sink_share": mean_over(part.where(known), dims),
        "entropy_without_sink": mean_over(rest, dims),
    }
    counts = {"n": means["entropy"]["n"], "n_without": means["entropy_without_sink"]["n"]}
    data = {name: array.drop_vars("n") for name, array in {**means, **counts}.items()}
    result = xr.Dataset({name: array.rename(name) for name, array in data.items()})
    for name, units in (("entropy", "nat"), ("entropy_without_sink", "nat"), ("sink_share", "attention weight")):
        result[name].attrs["units"] = units
    definition = DEFINITIONS["entropy_summary", "without_sink"]
    result.attrs = {
        "metric": "entropy_summary", "definition": definition.name, "meaning": definition.meaning, "units": "nat",
        "reference": "", "n": int(result["n"].sum()), "sink": str(sink), "min_rest": min_rest,
    }  # fmt: skip
    return result


@metric(
    Definition(
        "row_entropy",
        "guo2024",
        "entropy of the row over ln of the keys it can see; 0 with one key",
        "1",
        (),
        "guo2024",
    ),
)
def row_entropy(ds: xr.Dataset, *, over: str | Iterable[str] = ("prompt", "query")) -> xr.DataArray:
    """Entropy of each row over ln of the number of keys it can see, averaged; by default a score per (layer, head).

    Needs ``entropy`` and the attribute ``causal``. A decoder's row i sees i + 1 keys (row 0 counts as 0), an encoder's
    row all real tokens. A sliding window is not taken into account. Source: Guo et al. (guo2024).

    Raises:
        MetricError: ``entropy`` or ``causal`` is missing.
    """
    require(ds, "row_entropy", "entropy")
    whole = ds["entropy"].astype("float64")
    if attribute(ds, "row_entropy", "causal"):
        visible = xr.DataArray(np.arange(1, whole.sizes["query"] + 1), dims="query")
    else:
        visible = lengths(ds, "row_entropy").reset_coords(drop=True)
    scale = xr.apply_ufunc(np.log, visible)
    scaled = xr.where(scale > 0, whole / scale.where(scale > 0), whole * 0.0).transpose(*whole.dims)
    return stamp(mean_over(scaled, dims_over(scaled, over, "row_entropy")), "row_entropy", "guo2024")


@metric(
    Definition(
        "non_vision_entropy",
        "kan2025",
        "entropy of the mean attention row over the keys that are not visual",
        "nat",
        (("min_mass", 1e-6),),
        "kan2025",
    ),
)
def non_vision_entropy(ds: xr.Dataset, *, queries: str = "all", visual: str = "image") -> xr.DataArray:
    """Entropy of the mean attention row over the keys that are not visual, per (prompt, layer, head).

    Needs ``attention``. Each row is renormalised over the other keys (rows with less than 1e-6 there are dropped), the
    rows of role ``queries`` are averaged, and the entropy of that average is taken. Units: nat. Source: kan2025.

    Raises:
        MetricError: no ``attention``.
    """
    require(ds, "non_vision_entropy", "attention")
    other = of_role(ds, "non_vision_entropy", "all") & ~of_role(ds, "non_vision_entropy", visual)
    kept = masked(ds["attention"].astype("float64"), other).fillna(0.0)
    kept = masked(kept, of_role(ds, "non_vision_entropy", queries, dim="query"))
    mass = kept.sum("key", skipna=False)
    least = DEFINITIONS["non_vision_entropy", "kan2025"].default("min_mass")
    mean = (kept / mass.where(mass >= least)).mean("query")
    logs = xr.apply_ufunc(np.log, mean.where(mean > 0, 1.0))
    entropy = -(mean * logs).sum("key", skipna=False)
    return stamp(entropy.reset_coords(drop=True), "non_vision_entropy", "kan2025")


def _sink_share(ds: xr.Dataset, sink: int | str) -> xr.DataArray:
    if "max_attention" in ds:
        for keys in _roles_read(ds):
            if _is_one_token(ds, keys, sink):
                return ds["max_attention"]
    if "attention" in ds:
        if isinstance(sink, int):
            return ds["attention"].isel(key=sink)
        if _is_one_token(ds, sink, sink):
            return masked(ds["attention"], of_role(ds, "entropy_summary", sink)).sum("key", min_count=1)
    role = sink if isinstance(sink, str) else "bos"
    raise MetricError(
        f"entropy_summary needs the attention each query gives the sink ({sink!r}); this reading holds "
        f"{sorted(map(str, ds.data_vars))}, and a mean over queries cannot serve. Add MaxAttention(keys={role!r}, "
        "queries='all') where one token of each prompt has that role, or AttentionMap, or pass share=."
    )


def _roles_read(ds: xr.Dataset) -> Iterator[str]:
    """Give the ``keys`` of each MaxAttention probe that the reading records."""
    probes: list[dict[str, Any]] = json.loads(str(ds.attrs.get("probes", "[]")))
    for probe in probes:
        if "MaxAttention" in probe.values():
            keys: str | list[str] = probe.get("keys", "image")
            if isinstance(keys, str):
                yield keys
            elif len(keys) == 1:
                yield keys[0]


def _is_one_token(ds: xr.Dataset, keys: str, sink: int | str) -> bool:
    """Say whether the largest weight on ``keys`` is the sink's weight: it is the one token of its role."""
    if keys == "first":
        return sink in (0, "first")
    roles = token_roles(ds, "entropy_summary")
    at = roles == keys
    alone = bool((at.sum("key") == 1).all())
    return alone and (sink == keys or (isinstance(sink, int) and bool(at.isel(key=sink).all())))
