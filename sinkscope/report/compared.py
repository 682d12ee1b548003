"""How runs differ: paired differences over prompts with interval and test, and sinks that moved to another token."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from sinkscope.errors import SinkscopeWarning
from sinkscope.metrics.comparison import compare
from sinkscope.metrics.sinks import sink_moves
from sinkscope.report.measures import head_measures
from sinkscope.report.runs import BASELINES, ShownRun
from sinkscope.report.sinks import Sinks
from sinkscope.report.text import number, percent


@dataclass(frozen=True)
class RunDifference:
    """One number of one run against the same of the base: means, paired difference, 95 % interval, q-value, pairs."""

    run: str
    quantity: str
    value: float
    base: float
    difference: float
    low: float
    high: float
    q_value: float
    n: int

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as it stands in the table."""
        interval = f"{number(self.low)} to {number(self.high)}" if np.isfinite(self.low) else "too few prompts"
        q = "" if not np.isfinite(self.q_value) else ("< 0.001" if self.q_value < 0.001 else f"{self.q_value:.2g}")
        return (
            self.run, self.quantity, number(self.base), number(self.value), f"{self.difference:+.3g}", interval, q,
            f"{self.n:,}",
        )  # fmt: skip


def differences(runs: Sequence[ShownRun], base: int, sinks: Sinks | None) -> list[RunDifference]:
    """Compare every run with the base: attention on the sink, entropy, drain, largest activation, loss.

    Each number is a mean per prompt, and the prompts are the pairs. The q-values correct over the whole table.
    """
    told = [dict(_per_prompt(run.ds, sinks)) for run in runs]
    names = [name for name in told[base] if all(name in each for each in told)]
    others = [i for i in range(len(runs)) if i != base]
    if not names or not others:
        return []
    quantities, labels = xr.Variable("quantity", names), xr.Variable("run", [runs[i].label for i in others])
    values = xr.concat([xr.concat([told[i][n] for n in names], quantities) for i in others], labels)
    reference = xr.concat([told[base][n] for n in names], quantities)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SinkscopeWarning)  # few pairs: the table shows the interval and n
        found = compare(values, to=reference.broadcast_like(values))
    return [
        _row(found.isel(run=r, quantity=q), (runs[i].label, name), told[i][name], told[base][name])
        for r, i in enumerate(others) for q, name in enumerate(names)
    ]  # fmt: skip


def moved_sinks(runs: Sequence[ShownRun], base: int, compared: bool = False) -> list[str]:
    """Say of which runs that took the base's sink away another token became the sink, as a masked sink may move.

    Nothing is said where the base is no run without edits, of another model, or where not all keys were measured.

    Args:
        runs: as :func:`sinkscope.report.runs.runs_of` lists them.
        base: index of the one that the others are compared with.
        compared: the base was named by the user, whatever its label.
    """
    before = runs[base].ds
    if not (compared or runs[base].label in BASELINES) or not _all_keys(before):
        return []
    said = []
    for i, run in enumerate(runs):
        same = run.ds.attrs.get("model_fingerprint") == before.attrs.get("model_fingerprint")
        if i == base or not same or not _all_keys(run.ds):
            continue
        moves = sink_moves(before, run.ds)
        if bool(moves["moved"]):
            said.append(
                f"{run.label}: the sink moves from position {int(moves['origin'])} to {int(moves['target'])}, where "
                f"{percent(float(moves['rate'].mean()))} of the heads have one (before: "
                f"{percent(float(moves['rate_before'].mean()))}). So what this edit costs says little on whether sinks "
                "matter; edit a part of the layers, or both tokens."
            )
    return said


def _all_keys(ds: xr.Dataset) -> bool:
    """Whether attention was measured at more keys than one, so that it can be seen where it went."""
    return "key_mass" in ds and int(ds["key_mass"].notnull().any(["prompt", "layer", "head"]).sum()) > 1


def _row(found: xr.Dataset, names: tuple[str, str], values: xr.DataArray, base: xr.DataArray) -> RunDifference:
    low, high, q = (float(found[part]) for part in ("low", "high", "q_value"))
    means = float(values.mean()), float(base.mean())
    return RunDifference(*names, *means, float(found["difference"]), low, high, q, int(found["n"]))


def _per_prompt(ds: xr.Dataset, sinks: Sinks | None) -> Iterator[tuple[str, xr.DataArray]]:
    """Numbers that each prompt has, by name."""
    if sinks is not None and "key_mass" in ds:
        for measure in head_measures(ds, sinks):
            yield f"{measure.label}, mean over heads", xr.DataArray(measure.by_prompt, dims="prompt")
    if "top_value" in ds:
        yield "largest activation", _plain(abs(ds["top_value"]).max(["site", "rank"]))
    if "token_loss" in ds:
        yield "loss of the next token [nat]", _plain(ds["token_loss"].mean("query"))


def _plain(array: xr.DataArray) -> xr.DataArray:
    return xr.DataArray(array.values.astype(np.float64), dims="prompt")
