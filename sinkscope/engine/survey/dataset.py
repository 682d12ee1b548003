"""From what a survey counted to a reading: one variable per statistic, labelled, with the state to join shards by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sinkscope.engine.survey.layout import SurveyLayout
from sinkscope.engine.survey.sink_tokens import EXAMPLES, THRESHOLD, SinkTokens
from sinkscope.engine.survey.state import SurveyState
from sinkscope.engine.survey.tables import BUCKETS, VariableTable, edges_of
from sinkscope.roles import ATTENDED_ROLES
from sinkscope.schema import Variable, declare, validate

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
TOP_TOKENS = 30
"""Sink tokens that a result lists, those with most heads first."""
STATE = "survey_state"
"""Variable that holds the state as bytes."""

_SAYS = {
    "count": "how many values went in", "mean": "mean", "std": "standard deviation over prompts and tokens",
    "min": "smallest value", "max": "largest value",
}  # fmt: skip

Found = dict[str, tuple[Variable, NDArray[Any]]]


def finished(state: SurveyState) -> xr.Dataset:
    """Return the statistics of a survey as a reading; buckets beyond the longest prompt are left out."""
    layout = SurveyLayout.from_json(state.about["layout"])
    found: Found = {}
    for table in state.tables.values():
        found |= _of_table(table)
    used = max([_buckets(table) for table in state.tables.values()], default=1)
    if state.sinks is not None:
        found |= _of_heads(state.sinks)
    ds = xr.Dataset({name: (variable.dims, values, _attrs(variable)) for name, (variable, values) in found.items()})
    if "bucket" in ds.dims:
        ds = ds.isel(bucket=slice(0, used))
    ds = ds.assign_coords(_coordinates(ds, state, layout))
    declared = {name: variable for name, (variable, _) in found.items()}
    if state.sinks is not None:
        tokens = _of_tokens(state.sinks)
        ds, declared = ds.merge(tokens), declared | _TOKEN_VARIABLES
    ds[STATE] = ("byte", np.frombuffer(state.to_bytes(), dtype=np.uint8), {"long_name": "state, to join shards by"})
    ds.attrs = _attributes(state) | {
        "variables": declare(declared), "definitions": json.dumps({n: v.meaning for n, v in declared.items()}),
    }  # fmt: skip
    return validate(ds)


def _attrs(variable: Variable) -> dict[str, str]:
    return {"units": variable.units, "long_name": variable.meaning}


def _buckets(table: VariableTable) -> int:
    """How many position buckets hold a number."""
    moments = table.moments.get("position")
    if moments is None or not moments.count.any():
        return 0
    return int(np.flatnonzero(moments.count.reshape(-1, len(BUCKETS)).any(0))[-1]) + 1


def _of_table(table: VariableTable) -> Found:
    found: Found = {}
    for by, moments in table.moments.items():
        last = {"position": ("bucket",), "role": ("role",), "all": ()}[by]
        middle = "_by_role" if by == "role" else ""
        for part, values in moments.finished().items():
            units = "values" if part == "count" else table.variable.units
            meaning = f"{_SAYS[part]}: {table.variable.meaning}"
            values = values if last else values[..., 0]
            name = f"{table.name}{middle}_{part}"
            found[name] = Variable((*table.dims, *last), units, meaning, reference=table.variable.reference), values
    if table.histogram is not None:
        last = ("bucket",) if table.token_axis is not None else ()
        counts, quantiles = table.histogram.counts, table.histogram.quantiles(QUANTILES)
        if not last:
            counts, quantiles = counts[..., 0, :], quantiles[..., 0]
        dims = (*table.dims, *last)
        found[f"{table.name}_histogram"] = (
            Variable((*dims, f"{table.name}_bin"), "values", f"values by magnitude: {table.variable.meaning}"), counts
        )  # fmt: skip
        found[f"{table.name}_quantile"] = (
            Variable(("quantile", *dims), table.variable.units,
                     f"quantiles of the magnitude, from the histogram: {table.variable.meaning}"), quantiles
        )  # fmt: skip
    if table.values is not None and table.values.shape[-1]:
        dims = table.variable.dims[1:2]
        total = table.values.sum(-1)
        most = np.where(total > 0, table.values.argmax(-1), np.nan)
        share = np.divide(table.values.max(-1), total, out=np.full(len(total), np.nan), where=total > 0)
        meaning = f"of rank 0: {table.variable.meaning}"
        found[f"{table.name}_most"] = Variable(dims, "index", f"most frequent value {meaning}", discrete=True), most
        found[f"{table.name}_share"] = Variable(dims, "1", f"share of prompts with that value {meaning}"), share
    return found


def _of_heads(sinks: SinkTokens) -> Found:
    prompts = sinks.head_prompts[:, None, :]
    rates = [np.divide(h, prompts, out=np.full(h.shape, np.nan), where=prompts > 0) for h in sinks.head_hits]
    several = sinks.layout.calls > 1
    dims = ("layer", "call", "head") if several else ("layer", "head")
    first, later = (rate if several else rate[:, 0] for rate in rates)
    over = f"gets key mass above {THRESHOLD} (strictly)"
    return {
        "sink_rate": (Variable(dims, "share of prompts", f"share of prompts whose first token {over}",
                               reference="gu2025"), first),
        "later_sink_rate": (Variable(dims, "share of prompts", f"share of prompts where a later token {over}",
                                     reference="gu2025"), later),
        "sink_prompts": (Variable(("layer", "head"), "prompts", "prompts long enough to tell a sink"),
                         sinks.head_prompts.astype(np.float64)),
    }  # fmt: skip


_TOKEN_VARIABLES = {
    "sink_token_id": Variable(("sink_token",), "index", "id of the token", discrete=True),
    "sink_token_first": Variable(("sink_token",), "1", "1 where it stands at the start of a prompt", discrete=True),
    "sink_token_count": Variable(("sink_token",), "tokens", "how often it stands where a sink can be told"),
    "sink_token_share": Variable(("sink_token",), "share of heads", "mean share of heads for which it is a sink"),
    "sink_token_mass": Variable(("sink_token",), "attention weight", "mean attention it gets, over heads"),
}


def _of_tokens(sinks: SinkTokens) -> xr.Dataset:
    """Tokens that were sinks, most heads first; first tokens of prompts and later ones are rows of their own."""
    order = np.lexsort((np.arange(sinks.hits.size), -sinks.hits.ravel()))[:TOP_TOKENS]
    place, token = np.unravel_index(order[sinks.hits.ravel()[order] > 0], sinks.hits.shape)
    count = sinks.occurrences[place, token].astype(np.float64)
    readings = count * sinks.layout.readings
    masses = sinks.mass.limbs[:, place, token]
    total = type(sinks.mass)(masses).integers()
    mean = [int(t) / (int(n) << 64) for t, n in zip(total.tolist(), readings.tolist(), strict=True)]
    columns = {
        "sink_token_id": token.astype(np.float64), "sink_token_first": 1.0 - place, "sink_token_count": count,
        "sink_token_share": sinks.hits[place, token] / readings, "sink_token_mass": np.array(mean, dtype=np.float64),
    }  # fmt: skip
    texts = [sinks.texts.get(int(t), f"#{t}") for t in token]
    examples = [
        [text for _, position, text in sinks.examples.get(int(t), []) if (position == 0) == (p == 0)]
        for p, t in zip(place, token, strict=True)
    ]
    table = np.array([(found + [""] * EXAMPLES)[:EXAMPLES] for found in examples], dtype=str)
    return xr.Dataset(
        {name: (v.dims, columns[name], _attrs(v)) for name, v in _TOKEN_VARIABLES.items()},
        coords={
            "sink_token": np.arange(len(texts)), "sink_token_text": ("sink_token", np.array(texts, dtype=str)),
            "sink_token_example": (("sink_token", "example"), table.reshape(len(texts), EXAMPLES)),
        },
    )  # fmt: skip


def _coordinates(ds: xr.Dataset, state: SurveyState, layout: SurveyLayout) -> dict[str, Any]:
    coords: dict[str, Any] = {}
    if "layer" in ds.dims:
        coords |= {"layer": range(len(layout.kinds)), "block_kind": ("layer", list(layout.kinds))}
    if "head" in ds.dims:
        group = layout.heads // layout.kv_heads
        coords |= {"head": range(layout.heads), "kv_of_head": ("head", [h // group for h in range(layout.heads)])}
    if "site" in ds.dims:
        coords |= {"site": list(layout.sites), "site_name": ("site", list(layout.site_names))}
    if "role" in ds.dims:
        coords["role"] = list(ATTENDED_ROLES)
    if "quantile" in ds.dims:
        coords["quantile"] = list(QUANTILES)
    if "bucket" in ds.dims:
        starts = BUCKETS[: ds.sizes["bucket"]]
        coords |= {"bucket": [_range(start) for start in starts], "bucket_start": ("bucket", list(starts))}
    for table in state.tables.values():
        if table.histogram is not None:
            coords[f"{table.name}_bin"] = edges_of(table.variable)[1:].astype(np.float64)
    return coords


def _range(start: int) -> str:
    last = 2 * start - 1
    return str(start) if last <= start else f"{start}-{last}"


def _attributes(state: SurveyState) -> dict[str, Any]:
    counters = state.counters
    missing = state.missing()
    told = {**counters, "seen": state.seen, "blocks_missing": missing, "shards": _shards(state.runs)}
    if counters["with_bos"] in (0, counters["prompts"]):
        key0 = state.key0 if counters["with_bos"] or "content" in state.key0 else "a content token"
    else:
        key0 = f"bos in {counters['with_bos']} of {counters['prompts']} prompts, a content token in the others"
    return state.about["attrs"] | {
        "survey": json.dumps(told), "prompts_hash": f"{state.digest:032x}", "key0": key0,
    }  # fmt: skip


def _shards(runs: Sequence[tuple[int, int, int]]) -> list[str]:
    return [f"{start + 1}/{step}" for start, step, _ in runs]
