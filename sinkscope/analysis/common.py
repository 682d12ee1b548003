"""What several scripts need: an effect in words, its sign, the tokens with the highest score, some layers of many."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from sinkscope import metrics

if TYPE_CHECKING:
    from sinkscope.models.handle import Model


def describe_difference(
    values: xr.DataArray, to: xr.DataArray | None = None, *, digits: int = 3
) -> tuple[str, xr.Dataset]:
    """Return the mean over prompts, or the paired difference to ``to``, in words, and as ``metrics.compare`` gives it.

    The words hold the bootstrap interval and n: what a claim needs.
    """
    found = metrics.compare(values, to=xr.zeros_like(values) if to is None else to)
    mean, low, high = (f"{float(found[name]):+.{digits}f}" for name in ("difference", "low", "high"))
    return f"{mean} [{low}, {high}], n = {int(found['n'])} prompts", found


def has_sign(found: xr.Dataset, sign: int = 1) -> bool | None:
    """Return whether an effect has the sign claimed; None where its interval holds 0, so that it cannot be seen."""
    low, high = float(found["low"]), float(found["high"])
    if low <= 0 <= high or not np.isfinite([low, high]).all():
        return None
    return (low > 0) == (sign > 0)


def highest_tokens(scores: xr.DataArray, among: xr.DataArray, count: int) -> xr.DataArray:
    """Return the ``count`` tokens of each prompt with the highest score: bool (prompt key), as ``among`` is."""
    order = np.where(among.values, scores.transpose("prompt", "key").values, -np.inf)
    ranked = np.argsort(-order, axis=1, kind="stable")[:, :count]
    chosen = np.zeros(among.shape, dtype=bool)
    np.put_along_axis(chosen, ranked, True, axis=1)
    return among.copy(data=chosen & among.values)


def spread_layers(model: Model, most: int = 8) -> list[int]:
    """Return all layers of a shallow model, else ``most`` of them at even distances."""
    depth = int(model.config.get_text_config().num_hidden_layers)
    return sorted({int(layer) for layer in np.linspace(0, depth - 1, min(depth, most)).round()})
