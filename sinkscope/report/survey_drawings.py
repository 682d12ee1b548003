"""The figures of a survey: what it keeps of a corpus, drawn like the figures of a reading."""

from __future__ import annotations

from typing import TYPE_CHECKING

import xarray as xr

from sinkscope.report.drawings import both
from sinkscope.report.figures import figure
from sinkscope.report.sinks import Sinks
from sinkscope.report.surveys import pooled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINES = 5
"""Position buckets that a figure draws as lines, from the first token on."""


def _first_and_later(ds: xr.Dataset, name: str) -> xr.DataArray:
    return both(pooled(ds, name, True), pooled(ds, name, False))


@figure("How often each head has a sink", needs=["sink_rate"])
def sink_rate_map(ds: xr.Dataset, sinks: Sinks | None) -> Axes:
    """Layers upwards, heads along."""
    from sinkscope import plot

    says = "share of prompts whose first token gets more than 0.3 of a head's attention (Gu et al. 2025)"
    grid = plot.described(ds["sink_rate"], ds, says)
    return plot.sink_map(grid, title="Prompts with a sink", label="share of prompts")


@figure("Attention by position", needs=["key_mass_mean", "bucket_start"])
def attention_by_position(ds: xr.Dataset, sinks: Sinks | None) -> Axes:
    """One line per bucket of positions."""
    from sinkscope import plot

    mean = ds["key_mass_mean"].isel(bucket=slice(0, LINES)).mean("head").drop_vars("bucket_start")
    says = "mean attention that a key at these positions gets, over heads and prompts"
    return plot.layer_profile(plot.described(mean, ds, says), ylabel="mean attention weight", title="By position")


@figure("Where the attention of a corpus goes", needs=["role_share_mean"])
def corpus_role_share(ds: xr.Dataset, sinks: Sinks | None) -> Axes:
    """Shares by the role of the key."""
    from sinkscope import plot

    says = "share of attention on the keys of each role, mean over heads and prompts"
    return plot.role_share_by_layer(plot.described(ds["role_share_mean"].mean("head"), ds, says))


@figure("Tokens that are sinks", needs=["sink_token_share"])
def sink_tokens(ds: xr.Dataset, sinks: Sinks | None) -> Axes:
    """Those with most heads in all, up to twelve."""
    from sinkscope import plot

    top = ds.isel(sink_token=slice(0, 12))
    rows = zip(
        top["sink_token_text"].values, top["sink_token_first"].values, top["sink_token_count"].values, strict=True
    )
    names = [f"{plot.token_label(str(t))}{' (first)' if first else ''}, n = {n:,.0f}" for t, first, n in rows]
    share = top["sink_token_share"].drop_vars(["sink_token_text"]).assign_coords(sink_token=names)
    says = "share of heads for which the token gets key mass above 0.3, mean over its occurrences"
    return plot.effect_bars(plot.described(share.isel(sink_token=slice(None, None, -1)), ds, says), title="Sink tokens")


@figure("Length of value vectors over depth", needs=["value_norm_mean", "bucket_start"])
def value_norm_by_layer(ds: xr.Dataset, sinks: Sinks | None) -> Axes:
    """The first token against all later ones."""
    from sinkscope import plot

    says = "l2 norm of the value vectors of the first token (sink) and of later ones, mean over heads and prompts"
    mean = plot.described(_first_and_later(ds, "value_norm").mean("kv_head"), ds, says)
    return plot.layer_profile(mean, ylabel="l2 norm", title="Value vectors")


@figure("Norms of a corpus over depth", needs=["residual_norm_mean", "bucket_start"])
def corpus_residual_norm(ds: xr.Dataset, sinks: Sinks | None) -> Axes:
    """Log scale."""
    from sinkscope import plot

    says = "l2 norm of the residual stream of the first token (sink) and of later ones, mean over prompts"
    return plot.norm_profile(plot.described(_first_and_later(ds, "residual_norm"), ds, says))


@figure("Massive activations of a corpus", needs=["top_value_quantile", "median_abs_mean"])
def corpus_top_values(ds: xr.Dataset, sinks: Sinks | None) -> Axes:
    """Log scale."""
    from sinkscope import plot

    top = ds["top_value_quantile"].sel(quantile=0.5, drop=True)
    says = "three largest magnitudes in the residual stream (median over prompts) and the median of all (mean)"
    return plot.top_values_by_layer(plot.described(top, ds, says), ds["median_abs_mean"])


@figure("Entropy of every head in a corpus", needs=["entropy_mean", "bucket_start"])
def corpus_entropy_map(ds: xr.Dataset, sinks: Sinks | None) -> Axes:
    """Dark rows spread their attention."""
    from sinkscope import plot

    grid = ds["entropy_mean"].isel(bucket=-1, drop=True)
    says = f"entropy of the rows at positions {ds['bucket'].values[-1]}, mean over prompts, natural log"
    return plot.entropy_map(plot.described(grid.clip(min=0.0), ds, says))
