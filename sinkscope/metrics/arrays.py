"""Numeric cores on plain arrays: what the papers compute from one attention map, as pure functions of ndarrays.

Maps have shape ``(..., query, key)``, rows are queries, post-softmax, zero where a query cannot see a key. Everything
is computed in float64. The streaming pass never forms a map; these functions serve maps that were asked for by layer
and head, and the test vectors of the papers.
"""

# What xarray leaves untyped is not counted against this file.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr

from sinkscope.arguments import checked
from sinkscope.definitions import Definition
from sinkscope.errors import MetricError
from sinkscope.metrics.base import metric, positions

Array = NDArray[np.float64]


def _square(attention: ArrayLike, name: str) -> Array:
    weights = np.asarray(attention, dtype=np.float64)
    if weights.ndim < 2 or weights.shape[-1] != weights.shape[-2]:
        raise MetricError(f"{name}: expected maps of shape (..., query, key) with as many keys, got {weights.shape}.")
    return weights


@checked(MetricError)
def importance_score(attention: ArrayLike) -> Array:
    """Mean attention each key gets from the rows that can see it, ``A[k:, k].sum() / (T - k)``; shape ``(..., key)``.

    Source: Gu et al. (gu2025) alpha_k. For a causal map; row k itself is in the mean.
    """
    weights = _square(attention, "importance_score")
    size = weights.shape[-1]
    column_sums: Array = np.tril(weights).sum(-2)
    viewers = size - np.arange(size, dtype=np.float64)
    return column_sums / viewers


@checked(MetricError)
def row_entropy(attention: ArrayLike) -> Array:
    """Entropy of each causal row over ln of the keys it sees, in [0, 1]; row 0 is 0. Shape ``(..., query)``.

    Source: Guo et al. (guo2024). A head's score is the mean over its rows.
    """
    weights = _square(attention, "row_entropy")
    visible: Array = np.log(np.arange(1, weights.shape[-1] + 1, dtype=np.float64))
    return np.divide(entr(weights).sum(-1), visible, out=np.zeros(weights.shape[:-1]), where=visible > 0)


@checked(MetricError)
def column_entropy(attention: ArrayLike) -> Array:
    """Entropy of each causal column, normalised to sum 1, over ln(T - j); the last column is 0. Shape ``(..., key)``.

    Source: Guo et al. (guo2024). A sink-like head has low row entropy and a high largest column entropy.
    """
    weights = np.tril(_square(attention, "column_entropy"))
    total: Array = weights.sum(-2, keepdims=True)
    share = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    rows: Array = np.log(weights.shape[-1] - np.arange(weights.shape[-1], dtype=np.float64))
    return np.divide(entr(share).sum(-2), rows, out=np.zeros(share.shape[:-2] + rows.shape), where=rows > 0)


@checked(MetricError)
def entropy_without(entropy: ArrayLike, share: ArrayLike, row_sum: ArrayLike = 1.0, min_rest: float = 1e-4) -> Array:
    """Entropy (nat) of a row renormalised without one key, from its entropy H, the key's share p and the row sum S.

    ``(H + p ln p) / (S - p) + ln(S - p)``: exact, the map is not needed. NaN where less than ``min_rest`` of the row
    is left, as float32 statistics cannot tell what little remains. The result is clipped at 0.
    """
    whole, part, total = (np.asarray(x, dtype=np.float64) for x in (entropy, share, row_sum))
    rest = total - part
    kept = rest >= min_rest
    safe = np.where(kept, rest, 1.0)
    return np.where(kept, np.maximum((whole - entr(part)) / safe + np.log(safe), 0.0), np.nan)


@checked(MetricError)
def sink_logit_gap(logits: ArrayLike, tokens: ArrayLike, bos: int) -> dict[int, tuple[float, float]]:
    """Mean logit of the keys 1..i-1 and gap of key 0 above it, averaged per query token: ``{token: (mean, gap)}``.

    ``logits`` is ``(query, key)``, pre-softmax; future keys are ignored, and so is the query's own key. NaN for a token
    that only stands at i < 2. ``bos`` is reported too. Source: Guo et al. (guo2024), the Bigram-Backcopy definition.
    """
    scores = _square(logits, "sink_logit_gap")
    ids = np.asarray(tokens)
    others: Array = np.array([scores[i, 1:i].mean() if i > 1 else np.nan for i in range(len(ids))])
    result: dict[int, tuple[float, float]] = {}
    for token in sorted({*ids.tolist(), bos}):
        at = (ids == token) & np.isfinite(others)
        pair = (others[at].mean(), (scores[at, 0] - others[at]).mean()) if at.any() else (np.nan, np.nan)
        result[int(token)] = (float(pair[0]), float(pair[1]))
    return result


@checked(MetricError)
def matrix_entropy(states: ArrayLike, without: int | None = None) -> float:
    """Return the entropy (nat) of the normalised squared singular values of token states ``(token, dim)``.

    ``without`` leaves out one token: a sink of large norm hides what the others do, so report both. NaN for a zero
    matrix. Source: a lead of the matrix-entropy literature, vector in the project's notes.
    """
    matrix = np.asarray(states, dtype=np.float64)
    if without is not None:
        matrix = np.delete(matrix, without, axis=0)
    energy = np.asarray(np.linalg.svd(matrix, compute_uv=False), dtype=np.float64) ** 2
    total = float(energy.sum())
    return float(entr(energy / total).sum()) if total > 0 else float("nan")


@checked(MetricError)
def collapse(values: ArrayLike) -> float:
    """Distance of token states ``(token, dim)`` from their mean, Frobenius norm. Source: Barbero et al. 2025."""
    matrix = np.asarray(values, dtype=np.float64)
    return float(np.linalg.norm(matrix - matrix.mean(0, keepdims=True)))


@checked(MetricError)
def attention_rollout(attention: ArrayLike, residual: bool = False) -> Array:
    """Product of head-averaged maps over depth, ``A_L ... A_1``: ``(layer, query, key)`` to ``(query, key)``.

    ``residual=True`` uses ``(A + I) / 2``. Source: Wu et al. 2025 (wu2025); the last row is each position's influence.
    """
    maps = _square(attention, "attention_rollout")
    if maps.ndim != 3:
        raise MetricError(
            f"attention_rollout: expected (layer, query, key), got {maps.shape}. Average the heads first."
        )
    if residual:
        maps = 0.5 * maps + 0.5 * np.eye(maps.shape[-1])
    rolled = np.eye(maps.shape[-1])
    for layer in maps:
        rolled = layer @ rolled
    return rolled


@checked(MetricError)
def norm_weighted(attention: ArrayLike, norms: ArrayLike) -> Array:
    """Attention times the norm of what each key writes, ``A_ij |v_j W_O|``; shape as the map. Source: Kobayashi."""
    return np.asarray(attention, dtype=np.float64) * np.asarray(norms, dtype=np.float64)[..., None, :]


@checked(MetricError)
def phi(states: ArrayLike, dims: ArrayLike, eps: float = 1e-6) -> Array:
    """Return the largest magnitude over the sink dims over the root mean square: ``(..., dim)`` to ``(...)``.

    ``max_d |x_d| / sqrt(mean(x^2) + eps)`` on the raw residual stream, no norm weight. Bounded by sqrt(D).
    Source: Kang et al. (kang2025).
    """
    if eps < 0:
        raise MetricError(f"phi(eps={eps}): give 0 or more; it stands under a root.")
    x = np.asarray(states, dtype=np.float64)
    return np.abs(x[..., positions(dims, "phi", "dims")]).max(-1) / np.sqrt((x**2).mean(-1) + eps)


@checked(MetricError)
def head_divergence(with_image: ArrayLike, without_image: ArrayLike) -> Array:
    """Return the distance of each head's output with and without the image: ``(..., head, width)`` to ``(..., head)``.

    Outputs are before ``W_O``. Source: He et al. (he2025) eqs. 2 to 4.
    """
    difference = np.asarray(with_image, dtype=np.float64) - np.asarray(without_image, dtype=np.float64)
    return np.linalg.norm(difference, axis=-1)


@checked(MetricError)
def vision_aware_heads(divergence: ArrayLike, without_image: ArrayLike) -> NDArray[np.bool_]:
    """Heads whose divergence is above the median of their layer, outliers set to 0 first; ``(layer, head)`` bool.

    An outlier is above mean + population standard deviation both in divergence and in the squared norm of its output
    without the image. Source: He et al. (he2025) eqs. 6 and 7.
    """
    values = np.asarray(divergence, dtype=np.float64)
    energy = (np.asarray(without_image, dtype=np.float64) ** 2).sum(-1)
    high = [x > x.mean(-1, keepdims=True) + x.std(-1, keepdims=True) for x in (values, energy)]
    values = np.where(high[0] & high[1], 0.0, values)
    return values > np.median(values, axis=-1, keepdims=True)


@checked(MetricError)
def hoyer_sparsity(values: ArrayLike) -> float:
    """Hoyer sparsity of all entries, 0 (all equal) to 1 (one entry); NaN for zeros. Used for attention gradients."""
    flat = np.abs(np.asarray(values, dtype=np.float64)).ravel()
    norm = np.linalg.norm(flat)
    if norm == 0 or flat.size < 2:
        return float("nan")
    return float((np.sqrt(flat.size) - flat.sum() / norm) / (np.sqrt(flat.size) - 1))


@metric(
    Definition(
        "residual_sinks", "own", "share of tokens in which a dimension is over ratio times the token's median",
        "share of tokens", (("ratio", 10.0),), "qiu2026",
    )
)  # fmt: skip
def residual_sinks(states: ArrayLike, ratio: float = 10.0) -> Array:
    """Return in which share of the tokens each dimension stands out: ``(..., token, dim)`` to ``(..., dim)``.

    A residual sink (Qiu et al. 2026) is a fixed dimension with large activations at most tokens: a share above .5. A
    dimension that is massive at the first token alone, as with an attention sink, has a share of 1 over their number.
    A token stands out in a dimension where its magnitude is over ``ratio`` times the median magnitude of that token.
    The paper's bound was not found: 10 is this project's. Tokens that hold a NaN, such as those beyond a prompt's end,
    do not count; NaN where none is left.

    Raises:
        MetricError: no tokens and dimensions, or a ratio that is not above 0.
    """
    size = np.abs(np.asarray(states, dtype=np.float64))
    if size.ndim < 2 or not size.size or ratio <= 0:
        raise MetricError(f"residual_sinks(ratio={ratio}): states of shape (..., token, dim) are needed, and a ratio "
                          f"above 0; got shape {size.shape}.")  # fmt: skip
    known = ~np.isnan(size).any(-1, keepdims=True)
    standing = (size > ratio * np.median(size, -1, keepdims=True)) & known
    n = known.sum(-2).astype(np.float64)
    return np.divide(standing.sum(-2), n, out=np.full(standing[..., 0, :].shape, np.nan), where=n > 0)
