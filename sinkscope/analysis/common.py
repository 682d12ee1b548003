"""What several scripts need: an effect in words, its sign, the tokens with the highest score, some layers of many."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from sinkscope import metrics
from sinkscope.errors import SinkscopeWarning

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


def heads_that_change(effect: xr.DataArray) -> tuple[xr.Dataset, int, int, float]:
    """Test each head over prompts (Wilcoxon, false discovery rate over the heads), and say what could have been found.

    Args:
        effect: paired differences, dims prompt, layer, head; NaN for heads that were not measured.

    Returns:
        The tests as ``metrics.compare`` gives them; heads above and below 0 at q < 0.05; the smallest mean effect that
        a test finds with a power of 80 per cent (first to pass the correction), in the median head.
    """
    with warnings.catch_warnings():
        # That few prompts can show nothing is what the smallest effect says, in the claim itself.
        warnings.simplefilter("ignore", SinkscopeWarning)
        tested = metrics.compare(effect, to=xr.zeros_like(effect), test="wilcoxon")
    sure = tested["q_value"] < 0.05
    above, below = (int((sure & (sign * tested["difference"] > 0)).sum()) for sign in (1, -1))
    return tested, above, below, float(metrics.smallest_effect(effect).median())


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
