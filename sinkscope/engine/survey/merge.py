"""Joining the shards of a survey."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import xarray as xr

from sinkscope.arguments import is_iterable, shown
from sinkscope.engine.survey.dataset import STATE, finished
from sinkscope.engine.survey.state import SurveyState, from_bytes
from sinkscope.errors import OutputError, SchemaError, SinkscopeWarning


def merge(readings: Sequence[xr.Dataset], names: Sequence[str] | None = None) -> xr.Dataset:
    """Join shards of one survey into what one pass over the whole corpus gives, in whatever order they come.

    Args:
        readings: what :func:`survey` returned for each shard, or what :func:`merge` made of some of them.
        names: what to call them in errors, such as their files.

    Raises:
        OutputError: they differ in model, probes, versions, settings or source, or hold the same prompts.
        SchemaError: nothing to join, or a reading that is no survey.

    Warns:
        SinkscopeWarning: parts of the corpus are in none of them.
    """
    given: Any = readings
    listed: list[Any] = list(given) if is_iterable(given) and not isinstance(given, Mapping) else []
    if not listed:
        raise SchemaError(f"merge: expected readings, got {shown(given)}. Pass a list of the shards of one survey.")
    called = [f"reading {i}" for i in range(len(listed))]
    if names is not None:
        called = list(map(str, names)) if is_iterable(names) else [str(names)]
    if len(called) != len(listed):
        raise SchemaError(f"merge: {len(listed)} readings and {len(called)} names. Name each, or leave names out.")
    state = _state(listed[0], called[0])
    for reading, name in zip(listed[1:], called[1:], strict=True):
        state.join(_state(reading, name), (called[0], name))
    missing = state.missing()
    if missing:
        warnings.warn(
            f"merge: {missing} blocks of the corpus are in none of these shards "
            f"({', '.join(json.loads(finished(state).attrs['survey'])['shards'])}). Join the others too.",
            SinkscopeWarning,
            stacklevel=2,
        )
    return finished(state)


def _state(reading: xr.Dataset, name: str) -> SurveyState:
    if not isinstance(cast("object", reading), xr.Dataset) or STATE not in reading:
        raise SchemaError(f"merge: {name} is no survey. Give what sinkscope.survey or `sinkscope survey` made.")
    state = from_bytes(np.asarray(reading[STATE].values, dtype=np.uint8).tobytes(), f"merge: {name}")
    if state.seen < 0:
        raise OutputError(f"merge: {name} is a survey that has not come to its end. Let it finish first.")
    return state
