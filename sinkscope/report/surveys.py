"""What a survey shows, in words: findings from statistics over a corpus instead of single prompts."""

from __future__ import annotations

import json
from typing import Any

import xarray as xr

from sinkscope.report.text import counted, number, percent, quoted


def is_survey(ds: xr.Dataset) -> bool:
    """Say whether a reading holds statistics of a corpus."""
    return "survey" in ds.attrs


def corpus_of(ds: xr.Dataset) -> dict[str, Any]:
    """Return what a survey says of its corpus: prompts, tokens, how many were left out or cut, shards."""
    return json.loads(str(ds.attrs["survey"]))


def survey_texts(ds: xr.Dataset) -> list[tuple[str, str, str]]:
    """Return heading, text and state of each finding of a survey."""
    corpus, found = corpus_of(ds), []
    if corpus["blocks_missing"] != 0:
        found.append((
            "Part of the corpus",
            f"Shards {', '.join(corpus['shards'])} are joined here; {corpus['blocks_missing']} blocks of the corpus "
            "are in none of them.", "missing",
        ))  # fmt: skip
    for needs, step in (
        (("sink_rate", "key_mass_mean"), _where), (("sink_token_share",), _tokens), (("value_norm_mean",), _values),
        (("top_value_quantile", "top_dim_most", "median_abs_mean"), _carrier), (("entropy_mean",), _entropy),
    ):  # fmt: skip
        if all(name in ds for name in needs):
            found.append(step(ds))
    missing = "Add KeyMass(), ValueNorm() and MassiveActivations() to the survey."
    return found or [("Nothing about sinks was measured", missing, "missing")]


def pooled(ds: xr.Dataset, name: str, first: bool) -> xr.DataArray:
    """Return the mean of a variable over tokens: those at position 0, or all later ones, weighted by their number."""
    at = slice(0, 1) if first else slice(1, None)
    mean, count = (ds[f"{name}_{part}"].isel(bucket=at) for part in ("mean", "count"))
    total = count.sum("bucket")
    return (mean * count).sum("bucket") / total.where(total > 0)


def _where(ds: xr.Dataset) -> tuple[str, str, str]:
    prompts, rate, later = float(ds["sink_prompts"].max()), ds["sink_rate"], ds["later_sink_rate"]
    if not prompts:
        return ("The prompts are too short to tell a sink", "Use prompts of 30 tokens and more.", "missing")
    first, others = (float(pooled(ds, "key_mass", flag).mean()) for flag in (True, False))
    read = int(rate.notnull().sum())
    most, least = percent(float(rate.max())), percent(float(rate.min()))
    text = (
        f"The first token gets {percent(first)} of the attention on average, a later token {percent(others)} (mean "
        f"over {counted(read, 'head')}, prompts and the queries that see it). It is a sink, above 0.3, in "
        f"{percent(float(rate.mean()))} of the readings of a head on a prompt; of single heads in {least} to {most} "
        f"of their prompts; {int((rate > 0.5).sum())} heads have it in more than half of "
        f"{counted(int(prompts), 'prompt')} long enough to tell. A later token is one in "
        f"{percent(float(later.mean()))}."
    )
    some = bool((rate > 0).any()) or bool((later > 0).any())
    return ("Where attention goes", text, "found" if some else "absent")


def _tokens(ds: xr.Dataset) -> tuple[str, str, str]:
    if not ds.sizes["sink_token"]:
        return ("Which tokens are sinks", "No token gets more than 0.3 of the attention of any head.", "absent")
    parts = []
    for row in range(min(5, ds.sizes["sink_token"])):
        one = ds.isel(sink_token=row)
        place = "at the start" if float(one["sink_token_first"]) else "later"
        parts.append(
            f"{quoted(str(one['sink_token_text'].values))} {place} (for {percent(float(one['sink_token_share']))} of "
            f"the heads, {counted(int(one['sink_token_count']), 'occurrence')})"
        )
    return ("Which tokens are sinks", f"Those with most heads in all: {'; '.join(parts)}.", "found")


def _values(ds: xr.Dataset) -> tuple[str, str, str]:
    ratio = pooled(ds, "value_norm", True) / pooled(ds, "value_norm", False)
    low = int((ratio < 0.5).sum())
    text = (
        f"The value vector of the first token is {number(float(ratio.median()))} times as long as that of a later one "
        f"(median over {counted(int(ratio.notnull().sum()), 'key-value head')}, mean lengths); in {low} of them it is "
        "less than half as long."
    )
    return ("Values of the first token", text, "found" if low else "absent")


def _carrier(ds: xr.Dataset) -> tuple[str, str, str]:
    middle = ds["top_value_quantile"].sel(quantile=0.5).isel(rank=0)
    site = int(middle.fillna(-1).argmax("site"))
    at = ds.isel(site=site)
    ratio = float(middle[site] / at["median_abs_mean"])
    text = (
        f"At {ds['site'].values[site]} the largest entry of a prompt is {number(float(middle[site]))} (median over "
        f"prompts), {number(ratio)} times the median magnitude there; in {percent(float(at['top_dim_share']))} of the "
        f"prompts it stands in dimension {int(at['top_dim_most'])}."
    )
    return ("Largest activations", text, "found" if ratio >= 100 else "absent")


def _entropy(ds: xr.Dataset) -> tuple[str, str, str]:
    last = ds["entropy_mean"].isel(bucket=-1)
    text = (
        f"At positions {ds['bucket'].values[-1]} the mean entropy of a head is {number(float(last.mean()))} nat, from "
        f"{number(float(last.min()))} to {number(float(last.max()))} over {counted(int(last.notnull().sum()), 'head')}."
    )
    return ("Entropy", text, "found")
