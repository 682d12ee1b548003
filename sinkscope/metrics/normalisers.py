"""What stands in softmax's place: one row of logits to one row of weights, for comparison side by side.

All rows have every key visible; a masked key is left out by the caller. Rows of all but softmax may sum to less than 1:
the missing mass is the implicit sink (``implicit_sink``).
"""

# What xarray leaves untyped is not counted against this file.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
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


def over_sum(scores: Row, eps: float = 1e-8) -> Row:
    """Scores over their sum along the keys, as normalised attention without a softmax does (Gu et al. 2025)."""
    return scores / (scores.sum(-1, keepdims=True) + eps)


def selective(logits: ArrayLike, alpha: float = math.exp(-1)) -> Row:
    """Softmax of logits times ``1 + alpha ln n``, n visible keys; alpha is learned in the paper, the default ours."""
    x = np.asarray(logits, dtype=np.float64)
    return softmax(x * (1 + alpha * np.log(x.shape[-1])), axis=-1)


def identity_kernel(logits: ArrayLike) -> Row:
    """Logits over the magnitude of their sum, or over 1 where that is larger; entries may be negative."""
    x = np.asarray(logits, dtype=np.float64)
    return x / np.maximum(np.abs(x.sum(-1, keepdims=True)), 1.0)


def _float(logits: ArrayLike) -> Row:
    return np.asarray(logits, dtype=np.float64)


NORMALISERS: dict[str, Callable[[ArrayLike], Row]] = {
    "softmax": lambda logits: softmax(np.asarray(logits, dtype=np.float64), axis=-1),
    "softmax1": with_null_key,
    "softpick": softpick,
    "clipped": clipped,
    "sigmoid": lambda logits: expit(np.asarray(logits, dtype=np.float64)),
    "relu": lambda logits: np.maximum(np.asarray(logits, dtype=np.float64), 0.0) / np.asarray(logits).shape[-1],
    "sigmoid_normalised": lambda logits: over_sum(expit(_float(logits))),
    "elu_normalised": lambda logits: over_sum(np.exp(np.minimum(_float(logits), 0)) + np.maximum(_float(logits), 0)),
    "softplus": lambda logits: over_sum(np.logaddexp(0.0, _float(logits))),
    "affine": lambda logits: affine(logits, 0.3, 0.6),
    "temperature": lambda logits: softmax(_float(logits) / 2.0, axis=-1),
    "selective": selective,
    "identity": identity_kernel,
}
"""Normalisers of one argument by name, parameters at their defaults; those that have parameters are functions here."""


@metric(
    Definition(
        "key_mass", "proxy", "as gu2025, each attention row over its sum first", "share of the row", (), "gu2025"
    )
)
def proxy_mass(ds: xr.Dataset) -> xr.DataArray:
    """Key mass of weights that need not sum to 1: each row over its sum, then the mean over queries that see the key.

    Needs ``attention``; dims as ``key_mass``. For sigmoid and ReLU attention, whose raw weights are no shares: a row of
    64 sigmoids may sum to 32. Rows that sum to less than 1e-8 are left out, as they give no key anything. The same as
    ``key_mass`` where rows sum to 1. Source: Gu et al. (gu2025), for measurement only.

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
