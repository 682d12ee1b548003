"""Where the sinks are: the share of heads with a sink, and which tokens are sinks."""

# What xarray and pandas leave untyped is not counted against this file.
# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.definitions import Definition, define
from sinkscope.errors import MetricError, SinkscopeWarning
from sinkscope.metrics.base import (
    attribute,
    dims_over,
    even_key_mass,
    lengths,
    mean_over,
    metric,
    real_tokens,
    require,
    stamp,
    token_roles,
)


@metric(
    Definition(
        "sink_rate",
        "gu2025",
        "share of (prompt, layer, head) whose key mass at the position is above epsilon (strictly)",
        "share of heads",
        (("epsilon", 0.3),),
        "gu2025",
    ),
)
def sink_rate(
    ds: xr.Dataset,
    epsilon: float = 0.3,
    position: int | Sequence[int] | None = 0,
    *,
    over: str | Iterable[str] = ("prompt", "layer", "head"),
    definition: str = "gu2025",
) -> xr.DataArray:
    """Share of heads whose key mass at a position is above epsilon (strictly).

    Needs ``key_mass`` (prompt layer head key). The result keeps every dim that is not in ``over``: ``over=("prompt",
    "head")`` gives a layer profile, ``over="prompt"`` a head map. ``position`` counts real tokens from 0; a sequence
    keeps the dim ``key`` labelled by position, None takes every position. Prompts that end before it are left out, and
    the coordinate ``n`` says how many values went in: NaN with n = 0 where none did. Units: share of heads, 0 to 1
    (the paper prints percent, at T = 64). Source: Gu et al. (gu2025) Sink^eps_k. Late positions have few rows: do not
    read k > T/2.

    Warns:
        SinkscopeWarning: prompts are so short that even attention passes epsilon: there every head counts.

    Raises:
        MetricError: no ``key_mass``, a position that no prompt has, or an unknown definition or dim.
    """
    define("sink_rate", definition)
    require(ds, "sink_rate", "key_mass")
    mass = ds["key_mass"].drop_vars(["token", "token_role"], errors="ignore")
    size = mass.sizes["key"]
    wanted = list(range(size)) if position is None else position
    for k in np.atleast_1d(wanted):
        if not 0 <= k < size:
            raise MetricError(f"sink_rate(position={k}): the longest prompt has positions 0..{size - 1}.")
    mass = mass.isel(key=wanted)
    if "key" in mass.dims:
        mass = mass.assign_coords(key=wanted)
    dims = dims_over(mass, over, "sink_rate")
    _warn_if_short(ds, epsilon, wanted)
    hit = (mass > epsilon).astype("float64").where(mass.notnull())
    return stamp(mean_over(hit, dims), "sink_rate", definition, epsilon=epsilon, position=str(position))


def _warn_if_short(ds: xr.Dataset, epsilon: float, positions: int | Sequence[int]) -> None:
    if "token_role" not in ds.coords or "prompt" not in ds["token_role"].dims:
        return
    even = even_key_mass(ds, "sink_rate").isel(key=np.atleast_1d(positions))
    passing = int((even > epsilon).any("key").sum())
    if passing:
        longest = int(lengths(ds, "sink_rate").where((even > epsilon).any("key"), 0).max())
        warnings.warn(
            f"sink_rate: {passing} of {ds.sizes['prompt']} prompts have {longest} tokens or fewer, where evenly spread "
            f"attention passes epsilon = {epsilon:g} without any sink. Use longer prompts (Gu et al. use 64 tokens).",
            SinkscopeWarning,
            stacklevel=4,
        )


@metric(
    Definition(
        "sink_scores",
        "binkowski2026",
        "the largest key masses of each head, in falling order: mean attention a token gets from all that see it",
        "attention weight",
        (("top", 10.0),),
        "binkowski2026",
    ),
)
def sink_scores(ds: xr.Dataset, top: int = 10, *, definition: str = "binkowski2026") -> xr.DataArray:
    """Return the ``top`` largest key masses of each head, largest first: the features of a probe for hallucinations.

    Needs ``key_mass`` (prompt layer head key), of prompts with what the model wrote (:func:`sinkscope.generate`), and
    gives (prompt layer head rank); NaN where a prompt has fewer tokens. Sorting takes out which token is the sink, so
    that prompts of any length are comparable. Binkowski et al. fit a logistic regression with an L1 penalty on them;
    that is left to scikit-learn, on prompts with labels of your own. Units: attention weight, 0 to 1. Source: Binkowski
    et al. (binkowski2026), sink scores; the mean here is over all queries that see a token, itself included.

    Raises:
        MetricError: no ``key_mass``, or ``top`` below 1.
    """
    define("sink_scores", definition)
    require(ds, "sink_scores", "key_mass")
    if isinstance(top, bool) or top != int(top) or top < 1:
        raise MetricError(f"sink_scores(top={top!r}): use a whole number of tokens, at least 1.")
    mass = ds["key_mass"].drop_vars(["token", "token_role"], errors="ignore").transpose(..., "key")
    values = mass.values.astype("float64")
    # NaN, which stands for padding, sorts behind every number: falling order is that of the negated values.
    ranked = -np.sort(-values, axis=-1)[..., : int(top)]
    short = int(top) - ranked.shape[-1]
    if short > 0:
        ranked = np.pad(ranked, [(0, 0)] * (ranked.ndim - 1) + [(0, short)], constant_values=np.nan)
    known = cast("Any", mass).coords
    coords: dict[Any, Any] = {name: each for name, each in known.items() if "key" not in each.dims}
    found = xr.DataArray(ranked, coords | {"rank": range(int(top))}, (*mass.dims[:-1], "rank"))
    return stamp(found, "sink_scores", definition, top=int(top))


@metric(
    Definition("sink_tokens", "gu2025", "key mass above epsilon (strictly)", "1", (("threshold", 0.3),), "gu2025"),
    Definition(
        "sink_tokens",
        "act_relative",
        "key mass above threshold / N, N the prompt's length; the constant 5 was recalled, not read in the paper",
        "1",
        (("threshold", 5.0),),
        "yu2024",
    ),
    Definition(
        "sink_tokens", "act_absolute", "key mass above an absolute threshold", "1", (("threshold", 0.1),), "yu2024"
    ),
)
def sink_tokens(
    ds: xr.Dataset, definition: str = "gu2025", *, threshold: float | None = None, min_queries: int | None = None
) -> pd.DataFrame:
    """Return a table of the tokens that are sinks, the most common first: one row per token and position.

    Columns: ``token`` (as text), ``role``, ``position`` (from the first real token), ``share`` (of the heads of the
    prompts that have it, 0 to 1), ``mass`` (mean attention it gets there), ``even`` (what evenly spread attention
    would give it) and ``n`` (prompts that have this token at this position). Arguments as of :func:`sink_mask`.

    Raises:
        MetricError: as :func:`sink_mask`.
    """
    mask = sink_mask(ds, definition, threshold=threshold, min_queries=min_queries)
    order = ("prompt", "layer", "head", "key")
    values = ds["key_mass"].transpose(*order).values.astype(np.float64)
    # Beyond a prompt's end, and in blocks without attention, no head was read.
    heads = np.isfinite(values).sum(axis=(1, 2)).clip(min=1)
    hits = mask.transpose(*order).values.sum(axis=(1, 2)) / heads
    mass = np.nansum(values, axis=(1, 2)) / heads
    prompt, position = np.nonzero(hits > 0)
    real = real_tokens(ds, "sink_tokens").transpose("prompt", "key").values
    names = ds["token"].transpose("prompt", "key").values if "token" in ds.coords else np.full(real.shape, "")
    table = pd.DataFrame(
        {
            "token": names[real], "role": token_roles(ds, "sink_tokens").transpose("prompt", "key").values[real],
            "position": np.nonzero(real)[1], "share": hits[real], "mass": mass[real],
            "even": even_key_mass(ds, "sink_tokens").values[real],
        }
    )  # fmt: skip
    found: set[tuple[str, int]] = {(names[p, k], k) for p, k in zip(prompt.tolist(), position.tolist(), strict=True)}
    grouped: Any = table.groupby(["token", "role", "position"], sort=False)
    rows: Any = grouped.agg(
        share=("share", "mean"), mass=("mass", "mean"), even=("even", "mean"), n=("share", "size")
    ).reset_index()
    kept = np.array([pair in found for pair in zip(rows["token"], rows["position"], strict=True)], dtype=bool)
    rows = rows.loc[kept].sort_values(by=["share", "mass"], ascending=False, kind="stable")
    rows = rows.reset_index(drop=True)
    rows.attrs = dict(mask.attrs)
    return rows


@metric()
def sink_mask(
    ds: xr.Dataset, definition: str = "gu2025", *, threshold: float | None = None, min_queries: int | None = None
) -> xr.DataArray:
    """Say which tokens are sinks, head by head: bool, dims (prompt layer head key), false beyond a prompt's end.

    Needs ``key_mass``. Definitions: ``"gu2025"`` key mass > 0.3; ``"act_absolute"`` > 0.1; ``"act_relative"`` > 5 / N,
    N the prompt's length (yu2024; the constant is recalled, not read). ``threshold`` replaces the constant. The result
    serves as ``keys=`` of an edit; ``.any(["layer", "head"])`` gives the sinks of a prompt.

    Args:
        ds: the reading.
        definition: one of the above.
        threshold: instead of the definition's constant.
        min_queries: a key that fewer queries can see is no sink. The last keys of a decoder are seen by themselves and
            a few others, so their mean attention is high for no reason of theirs. None takes 2 over the constant: with
            fewer queries a head that looks at itself or at the token before would pass (``act_relative``: 8). The
            papers leave all in (1).

    Raises:
        MetricError: no ``key_mass``, or an unknown definition.
    """
    chosen = define("sink_tokens", definition)
    require(ds, "sink_tokens", "key_mass")
    bound = chosen.default("threshold") if threshold is None else threshold
    if min_queries is None:
        min_queries = 8 if definition == "act_relative" or bound <= 0 else math.ceil(2 / bound)
    mass = ds["key_mass"]
    limit = bound / lengths(ds, "sink_tokens") if definition == "act_relative" else bound
    found = mass > limit
    if min_queries > 1 and attribute(ds, "sink_tokens", "causal"):
        position = xr.DataArray(np.arange(mass.sizes["key"]), dims="key")
        found &= position <= lengths(ds, "sink_tokens") - min_queries
    found = found.transpose(*mass.dims)
    return stamp(found, "sink_tokens", definition, n=int(mass.notnull().sum()), threshold=bound)


@metric(
    Definition("implicit_sink", "row_deficit", "1 - row sum: attention that goes to no key", "attention weight"),
)
def implicit_sink(ds: xr.Dataset, *, over: str | Iterable[str] = ("prompt", "query")) -> xr.DataArray:
    """Return the attention that goes to no key: mean of 1 - row sum, by default per (layer, head).

    Needs ``row_sum`` (prompt layer head query). Above 0 in models with a learned sink logit (GPT-OSS), with
    softmax-off-by-one or an unnormalised normaliser; 0 up to rounding under softmax. Units: attention weight.

    Raises:
        MetricError: no ``row_sum``, or an unknown dim.
    """
    require(ds, "implicit_sink", "row_sum")
    missing = 1.0 - ds["row_sum"].astype("float64")
    return stamp(mean_over(missing, dims_over(missing, over, "implicit_sink")), "implicit_sink", "row_deficit")


@metric()
def sink_moves(before: xr.Dataset, after: xr.Dataset, epsilon: float = 0.3) -> xr.Dataset:
    """Say where the sink stands after an edit that takes it away: a masked sink may move to the next token.

    Needs ``key_mass`` of the same prompts without and with the edit; ``after`` may have a dim ``edit`` in front. Only
    keys of the first half of the positions count, as later ones are seen by few queries. Returns ``origin`` (the key
    with the largest mean key mass over prompts, layers and heads before the edit), ``target`` (the same after it),
    ``rate_before`` and ``rate`` (sink rate at ``target`` before and after, dims prompt), and ``moved``: the target is
    another key, and its sink rate is at least half of the origin's former one. This project's own definition.

    Raises:
        MetricError: no ``key_mass``.
    """
    for ds in (before, after):
        require(ds, "sink_moves", "key_mass")
    masses = [ds["key_mass"].drop_vars(["token", "token_role"], errors="ignore") for ds in (before, after)]
    first, now = (mass.isel(key=slice(None, max(1, (mass.sizes["key"] + 1) // 2))) for mass in masses)
    pooled = ["prompt", "layer", "head"]
    origin, target = first.mean(pooled).argmax("key"), now.mean(pooled).argmax("key")
    rate_before, rate = (
        (mass.isel(key=target).where(mass.isel(key=target).notnull()) > epsilon).mean(["layer", "head"])
        for mass in (first, now)
    )
    former = (first.isel(key=origin) > epsilon).mean()
    found = xr.Dataset({"origin": origin, "target": target, "rate_before": rate_before, "rate": rate})
    found["moved"] = (target != origin) & (rate.mean("prompt") >= 0.5 * former) & (former > 0)
    found.attrs = {"metric": "sink_moves", "epsilon": epsilon, "n": before.sizes["prompt"], "former": float(former)}
    return found.drop_vars("key", errors="ignore")
