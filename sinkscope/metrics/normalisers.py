"""What stands in softmax's place: one row of logits to one row of weights, for comparison side by side.

All rows have every key visible; a masked key is left out by the caller. Rows of all but softmax may sum to less than 1:
the missing mass is the implicit sink (``implicit_sink``).
"""

# What xarray leaves untyped is not counted against this file.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax

from sinkscope.definitions import Definition
from sinkscope.metrics.base import metric, require, stamp

Row = NDArray[np.float64]


def with_null_key(logits: ArrayLike, null: float = 0.0) -> Row:
    """Softmax with one extra logit-only key whose column is dropped: 0 is softmax-off-by-one, GPT-OSS learns it."""
    x = np.asarray(logits, dtype=np.float64)
    extended = np.concatenate([x, np.full((*x.shape[:-1], 1), null)], axis=-1)
    return softmax(extended, axis=-1)[..., :-1]


def softpick(logits: ArrayLike, eps: float = 1e-8) -> Row:
    """``relu(e^x - 1) / (sum |e^x - 1| + eps)``, shifted by the largest logit against overflow (arXiv 2504.20966)."""
    x = np.asarray(logits, dtype=np.float64)
    top = np.maximum(x.max(-1, keepdims=True), 0.0)
    shifted = np.exp(x - top) - np.exp(-top)
    return np.maximum(shifted, 0.0) / (np.abs(shifted).sum(-1, keepdims=True) + eps * np.exp(-top))


def clipped(logits: ArrayLike, zeta: float = 1.03, gamma: float = -0.03) -> Row:
    """Softmax stretched to [gamma, zeta] and clipped to [0, 1] (Bondarenko et al.)."""
    return np.clip((zeta - gamma) * softmax(np.asarray(logits, dtype=np.float64), axis=-1) + gamma, 0.0, 1.0)


def affine(logits: ArrayLike, alpha: float, alpha_mean: float) -> Row:
    """``alpha p + (alpha_mean - alpha) / N``, N visible keys; entries may be negative (arXiv 2602.23057)."""
    x = np.asarray(logits, dtype=np.float64)
    return alpha * softmax(x, axis=-1) + (alpha_mean - alpha) / x.shape[-1]


NORMALISERS: dict[str, Callable[[ArrayLike], Row]] = {
    "softmax": lambda logits: softmax(np.asarray(logits, dtype=np.float64), axis=-1),
    "softmax1": with_null_key,
    "softpick": softpick,
    "clipped": clipped,
    "sigmoid": lambda logits: expit(np.asarray(logits, dtype=np.float64)),
    "relu": lambda logits: np.maximum(np.asarray(logits, dtype=np.float64), 0.0) / np.asarray(logits).shape[-1],
}
"""Normalisers of one argument by name; ``with_null_key`` and ``affine`` take more."""


@metric(
    Definition(
        "key_mass", "proxy", "as gu2025, each attention row over its sum first", "share of the row", (), "gu2025"
    )
)
def proxy_mass(ds: xr.Dataset) -> xr.DataArray:
    """Key mass of weights that need not sum to 1: each row over its sum, then the mean over queries that see the key.

    Needs ``attention``; dims as ``key_mass``. For sigmoid and ReLU attention, whose raw weights are no shares: a row of
    64 sigmoids may sum to 32. Rows that sum to less than 1e-8 are left out, as they give no key anything. The same as
    ``key_mass`` where rows sum to 1. Source: Gu et al. (gu2025) M5, for measurement only.

    Raises:
        MetricError: no ``attention``.
    """
    require(ds, "proxy_mass", "attention")
    weights = ds["attention"].astype("float64")
    total = weights.sum("key")
    shares = weights / total.where(total > 1e-8)
    rows, keys = (xr.DataArray(np.arange(weights.sizes[dim]), dims=dim) for dim in ("query", "key"))
    seen = shares.where(keys <= rows) if int(ds.attrs.get("causal", 1)) else shares
    return stamp(seen.mean("query"), "key_mass", "proxy", n=int(total.notnull().sum()))
