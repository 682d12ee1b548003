"""What one attention map is like, and what its heads are for: numbers of maps that were asked for by layer and head.

Maps have shape ``(..., query, key)``, rows are queries, zero where a query cannot see a key.
"""

# What xarray leaves untyped is not counted against this file.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from sinkscope.definitions import Definition, define
from sinkscope.errors import MetricError
from sinkscope.metrics.base import metric, require, stamp

Array = NDArray[np.float64]


def _maps(attention: ArrayLike, name: str, least: int = 2) -> Array:
    weights = np.asarray(attention, dtype=np.float64)
    if weights.ndim < least or weights.shape[-1] != weights.shape[-2]:
        shape = "(..., head, query, key)" if least > 2 else "(..., query, key)"
        raise MetricError(f"{name}: expected maps of shape {shape} with as many keys, got {weights.shape}.")
    return weights


@metric(Definition("concentration", "frobenius", "Frobenius norm of the map", "1", (), "xue2025"))
def concentration(attention: ArrayLike) -> Array:
    """Return how concentrated a map is, its Frobenius norm: ``(..., query, key)`` to ``(...)``.

    The square root of the number of rows where each looks at one key. Conc of Deconstructing attention.
    """
    return np.sqrt((_maps(attention, "concentration") ** 2).sum((-2, -1)))


@metric(
    Definition(
        "local_focus", "diagonal", "mean weight of the key a fixed distance before the query", "weight", (), "xue2025"
    )
)
def local_focus(attention: ArrayLike, distance: int = 0) -> Array:
    """Return the mean weight on the key ``distance`` tokens before the query, over the rows that have one.

    Distance 0 is the token itself. LocFoc of Deconstructing attention.

    Raises:
        MetricError: the map has no key at that distance.
    """
    weights = _maps(attention, "local_focus")
    if not 0 <= distance < weights.shape[-1]:
        raise MetricError(f"local_focus(distance={distance}): the map has distances 0..{weights.shape[-1] - 1}.")
    return np.diagonal(weights, -distance, -2, -1).mean(-1)


@metric(
    Definition(
        "head_diversity",
        "std",
        "standard deviation over heads of a weight, mean over visible entries",
        "weight",
        (),
        "xue2025",
    )
)
def head_diversity(attention: ArrayLike) -> Array:
    """Return how much heads differ: the population standard deviation over heads, averaged over the causal triangle.

    ``(..., head, query, key)`` to ``(...)``; 0 where all heads are alike. HeadDiv of Deconstructing attention.
    """
    weights = _maps(attention, "head_diversity", least=3)
    return weights.std(-3)[..., *np.tril_indices(weights.shape[-1])].mean(-1)


@metric()
def effective_attention(attention: ArrayLike, gate: ArrayLike) -> Array:
    """Return each weight times the gate of its head at its query: what gated attention lets through (qiu2025).

    ``attention`` is ``(..., head, query, key)``, ``gate`` ``(..., head, query)``. Rows need not sum to 1.
    """
    return np.asarray(attention, dtype=np.float64) * np.asarray(gate, dtype=np.float64)[..., None]


@metric()
def global_sinks(attention: ArrayLike) -> tuple[Array, Array]:
    """Return the mean weight of each key over the rows given, and its variation (population std over mean).

    A global attention sink (RefAM, kukleva2025) has a high mean and a low variation: every row looks at it alike. Give
    the rows of the image alone, ``(..., query, key)``. NaN variation where a key gets nothing.
    """
    weights = np.asarray(attention, dtype=np.float64)
    mean = weights.mean(-2)
    return mean, np.divide(weights.std(-2), mean, out=np.full_like(mean, np.nan), where=mean > 0)


@metric()
def magnet_share(shares: ArrayLike, magnets: ArrayLike) -> Array:
    """Return the part of the attention on text that stop words take, ``(..., token)`` to ``(...)`` (RefAM).

    ``shares`` is the attention of image rows on each text token, ``magnets`` says which tokens are stop words. NaN
    where the text gets nothing.
    """
    values = np.asarray(shares, dtype=np.float64)
    total = values.sum(-1)
    held = (values * np.asarray(magnets, dtype=bool)).sum(-1)
    return np.divide(held, total, out=np.full_like(total, np.nan), where=total > 0)


@metric()
def stable_rank(outputs: ArrayLike) -> Array:
    """Return squared Frobenius over squared spectral norm of ``(..., token, dim)``: 1 where all rows are one vector.

    NaN for zeros.
    """
    matrix = np.asarray(outputs, dtype=np.float64)
    squares = np.linalg.svd(matrix, compute_uv=False) ** 2
    top = squares.max(-1)
    return np.divide(squares.sum(-1), top, out=np.full_like(top, np.nan), where=top > 0)


@metric(
    Definition(
        "sink_type", "algorithms2026", "what a sink head does: value ratio and stable rank of its output", "label",
        (("quiet", 0.2), ("loud", 0.5), ("rank", 1.5)), "algorithms2026",
    )
)  # fmt: skip
def sink_type(ds: xr.Dataset, definition: str = "algorithms2026", *, position: int = 0) -> xr.DataArray:
    """Say what each head's sink does: ``"no-operation"``, ``"broadcast"`` or ``"between"``; dims (prompt layer head).

    Needs ``write_norm`` (from ``WriteNorm``) and ``output_rank`` (from ``methods.sink_heads.output_rank``). The value
    ratio is what the head writes for the sink over the median of what it writes for the other keys, at weight 1. At
    most .2 is a no-operation: attention is parked where nothing is written. At least .5, with a stable rank of the
    head's output of at most 1.5, is a broadcast: one vector for every token. Take sink heads alone:
    ``sink_type(ds).where(sink_rate(ds, over=()) > 0)``. Source: arXiv 2606.08105, by its abstract's thresholds.

    Raises:
        MetricError: a variable is missing, or a position that no prompt has.
    """
    require(ds, "sink_type", "write_norm", "output_rank")
    rule = define("sink_type", definition)
    norm = ds["write_norm"].astype("float64")
    if not 0 <= position < norm.sizes["key"]:
        raise MetricError(
            f"sink_type(position={position}): the longest prompt has positions 0..{norm.sizes['key'] - 1}."
        )
    others = norm.where(xr.DataArray(np.arange(norm.sizes["key"]), dims="key") != position).median("key")
    ratio = (norm.isel(key=position) / others).drop_vars(
        [n for n in norm.coords if "key" in norm[n].dims], errors="ignore"
    )
    broadcast = (ratio >= rule.default("loud")) & (ds["output_rank"] <= rule.default("rank"))
    found = xr.where(ratio <= rule.default("quiet"), "no-operation", xr.where(broadcast, "broadcast", "between"))
    found = found.where(ratio.notnull(), "")
    return stamp(found, "sink_type", definition, n=int(ratio.notnull().sum()), position=position)
