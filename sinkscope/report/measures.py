"""What the head map shows: one number per layer and head, from the metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr

from sinkscope.metrics.base import masked, mean_over
from sinkscope.metrics.drain import value_drain
from sinkscope.report.sinks import Sinks

Scale = Literal["share", "amount", "ratio"]
"""How a measure is coloured: a share from 0 to 1, an amount from 0 up, or a ratio around 1."""


@dataclass(frozen=True, eq=False)
class HeadMeasure:
    """One number per head, and how to name and colour it.

    ``values`` has the dims prompt, layer, head, and may have one of tokens.
    """

    name: str
    short: str
    label: str
    says: str
    scale: Scale
    values: xr.DataArray

    @property
    def grid(self) -> np.ndarray:
        """Mean over prompts and tokens, (layer head); NaN where there is no number."""
        rest = [dim for dim in self.values.dims if dim not in ("layer", "head")]
        return mean_over(self.values, rest).transpose("layer", "head").values

    @property
    def by_prompt(self) -> np.ndarray:
        """Mean over tokens, then over heads, (prompt): the units of a comparison."""
        rest = [dim for dim in self.values.dims if dim not in ("prompt", "layer", "head")]
        return mean_over(mean_over(self.values, rest), ["layer", "head"]).values


def head_measures(ds: xr.Dataset, sinks: Sinks) -> list[HeadMeasure]:
    """List the measures that a reading allows: attention on the sink, entropy, value drain and what else it holds.

    Args:
        ds: a reading with ``key_mass``, without a dimension in front of ``prompt``.
        sinks: which tokens are the sink; those of another reading of the same prompts will do.
    """
    mass = _bare(ds["key_mass"])
    share = masked(mass, sinks.mask.astype(bool))
    found = [
        HeadMeasure(
            "sink_share", "on the sink", f"attention on {sinks.label}",
            "attention on the sink's tokens from the queries that see them, mean over prompts", "share", share,
        ),
    ]  # fmt: skip
    if "entropy" in ds:
        values = _bare(ds["entropy"])
        says = "entropy of the attention row, mean over queries and prompts, natural log"
        found.append(HeadMeasure("entropy", "entropy [nat]", "mean entropy [nat]", says, "amount", values))
    if "value_norm" in ds and (drain := _drain(ds, sinks)) is not None:
        says = "length of the sink's value vectors over the median of the other tokens; below 1 they are drained"
        found.append(HeadMeasure("drain", "value drain", "value drain [ratio]", says, "ratio", drain))
    if "max_attention" in ds:
        values = _bare(ds["max_attention"])
        says = "largest attention weight on the chosen keys, mean over queries and prompts"
        found.append(
            HeadMeasure("max_attention", "largest weight", "largest weight on the chosen keys", says, "share", values)
        )
    if "row_sum" in ds:
        values = 1 - _bare(ds["row_sum"])
        says = "attention that goes to no token: 1 - sum of the row, mean over queries and prompts"
        found.append(HeadMeasure("implicit_sink", "on no token", "attention on no token", says, "share", values))
    return found


def _bare(array: xr.DataArray) -> xr.DataArray:
    """Drop coordinates that are not labels: those of tokens would be carried along by every mean."""
    return array.drop_vars([n for n in array.coords if n not in array.dims]).astype(np.float64)


def _drain(ds: xr.Dataset, sinks: Sinks) -> xr.DataArray | None:
    """Value drain (prompt layer head) with each head given the number of the key-value head that serves it."""
    heads = ds.sizes["head"]
    serves = ds["kv_of_head"].values.astype(int) if "kv_of_head" in ds.coords else np.arange(heads)
    if serves.max(initial=0) >= ds.sizes["kv_head"]:
        return None
    ratio = value_drain(ds, sinks.mask, over=())
    plain = ratio.drop_vars([n for n in ratio.coords if n not in ("prompt", "layer")])
    return plain.isel(kv_head=xr.DataArray(serves, dims="head")).assign_coords(head=ds["head"].values)
