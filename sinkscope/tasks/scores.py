"""How questions are answered: accuracy by label logits, exact match of the greedy token, invalid answers, with n."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from scipy import stats
from scipy.special import log_softmax

from sinkscope.engine.sweep import sweep
from sinkscope.errors import MetricError, PromptError
from sinkscope.tasks.questions import Questions

if TYPE_CHECKING:
    from sinkscope.edits.base import Edit
    from sinkscope.models.handle import Model

MEANINGS: dict[str, tuple[str, str]] = {
    "correct": ("1", "the right option has the largest logit among the options"),
    "exact": ("1", "the greedy token names the right option"),
    "invalid": ("1", "the greedy token names no option"),
    "choice": ("option", "option with the largest logit"),
    "log_probability": ("nat", "log probability of the right option over the vocabulary"),
    "option_log_probability": ("nat", "log probability of the right option among the options"),
    "answer_entropy": ("nat", "entropy of the next token over the vocabulary"),
    "option_entropy": ("nat", "entropy over the options"),
}
"""Units and meaning of every score."""


def evaluate(
    model: Model, questions: Questions, variants: Mapping[str, Sequence[Edit]] | None = None, *, batch_size: int = 1,
    executor: Any = None,
) -> xr.Dataset:  # fmt: skip
    """Answer the questions under every variant of edits; an empty list is the model as it is, and so is leaving it out.

    Returns the scores of :func:`scores` with the dimension ``edit`` in front. Variants, ``executor`` and errors are
    those of :func:`sinkscope.sweep`; a :func:`sinkscope.grid` gives its own dimensions instead of ``edit``.

    Raises:
        PromptError: ``questions`` is something else, such as a task.
    """
    if not isinstance(questions, Questions):
        raise PromptError(
            f"evaluate: expected Questions, got {type(questions).__name__}. Take some of a task's, such as "
            "Questions.of(task.test, model)."
        )
    asked = {"none": []} if variants is None else variants
    reading = sweep(model, questions.prompts, asked, [questions.probe], batch_size=batch_size, executor=executor)
    return scores(reading, questions)


def scores(reading: xr.Dataset, questions: Questions) -> xr.Dataset:
    """Return the scores of each prompt from a reading of :class:`sinkscope.tasks.questions.Answers`.

    Dims are those of the reading without ``option``. ``correct``, ``exact`` and ``invalid`` are 1 or 0; the others,
    with units, are in ``MEANINGS``. ``choice`` takes the first of equal options.

    Raises:
        MetricError: the reading lacks the probe's variables, or has another number of prompts.
    """
    needed = ("log_probability_by_option", "greedy_token", "answer_entropy")
    if any(name not in reading for name in needed) or reading.sizes.get("prompt") != len(questions.items):
        raise MetricError(
            f"scores: the reading holds {sorted(map(str, reading.data_vars))} of {reading.sizes.get('prompt', 0)} "
            f"prompts; {list(needed)} of {len(questions.items)} are needed. Read questions.prompts with "
            "questions.probe."
        )
    logs = reading["log_probability_by_option"].transpose(..., "prompt", "option")
    dims = logs.dims[:-1]
    given = logs.values.astype(np.float64)
    filled = np.where(np.isnan(given), -np.inf, given)
    among = log_softmax(filled, axis=-1)
    answers = np.broadcast_to(questions.answers, given.shape[:-1])[..., None]
    choice = filled.argmax(-1)
    greedy = reading["greedy_token"].transpose(*dims).values
    named = _named(greedy, questions)
    found = {
        "correct": choice == questions.answers,
        "exact": named == questions.answers,
        "invalid": named < 0,
        "choice": choice,
        "log_probability": np.take_along_axis(given, answers, -1)[..., 0],
        "option_log_probability": np.take_along_axis(among, answers, -1)[..., 0],
        "answer_entropy": reading["answer_entropy"].transpose(*dims).values,
        "option_entropy": -(np.exp(among) * np.where(np.isfinite(among), among, 0)).sum(-1),
    }
    data = {name: (dims, np.asarray(values, np.float64), _attrs(name)) for name, values in found.items()}
    coords = {dim: reading[dim] for dim in dims if dim in reading.coords}
    return xr.Dataset(data, coords=coords, attrs=reading.attrs)


def rate(values: xr.DataArray, *, over: str = "prompt", level: float = 0.95) -> xr.Dataset:
    """Share of ones along ``over``: ``value``, Wilson interval ``low`` and ``high``, and ``n``. NaN over nothing.

    Raises:
        MetricError: values other than 0, 1 and NaN, or no such dim.
    """
    if over not in values.dims:
        raise MetricError(f"rate(over={over!r}): dims are {list(values.dims)}. Name one of them.")
    kept = [dim for dim in values.dims if dim != over]
    cells = values.transpose(*kept, over).values.astype(np.float64)
    counted = np.isfinite(cells)
    if not np.isin(cells[counted], (0.0, 1.0)).all():
        raise MetricError("rate: some values are neither 0 nor 1. Give correct, exact or invalid answers.")
    hits, n = np.nansum(cells, axis=-1).astype(int), counted.sum(-1)
    columns = np.full((3, *hits.shape), np.nan)
    for at in np.ndindex(*hits.shape):
        if n[at]:
            interval = stats.binomtest(int(hits[at]), int(n[at])).proportion_ci(level, method="wilson")
            columns[(slice(None), *at)] = hits[at] / n[at], interval.low, interval.high
    data = {name: (kept, column) for name, column in zip(("value", "low", "high"), columns, strict=True)}
    coords = {dim: values[dim] for dim in kept if dim in values.coords}
    attrs = {"interval": "Wilson", "level": level, "score": str(values.name or ""), "units": "1"}
    return xr.Dataset(data | {"n": (kept, n)}, coords=coords, attrs=attrs)


def collapse(choice: xr.DataArray) -> xr.DataArray:
    """Share of the questions that get the most frequent choice: 1 where one option is always chosen."""
    kept = [dim for dim in choice.dims if dim != "prompt"]
    cells = choice.transpose(*kept, "prompt").values.astype(int)
    most = np.apply_along_axis(lambda row: np.bincount(row).max() / len(row), -1, cells)
    coords = {dim: choice[dim] for dim in kept if dim in choice.coords}
    meaning = "share of the questions that get the most frequent option"
    return xr.DataArray(most, dims=kept, coords=coords, name="collapse", attrs={"units": "1", "long_name": meaning})


def _named(greedy: np.ndarray, questions: Questions) -> np.ndarray:
    """Place of the option that each greedy token names; -1 where it names none."""
    out = np.full(greedy.shape, -1)
    known: dict[tuple[int, int], int] = {}
    for at in np.ndindex(*greedy.shape):
        pair = (at[-1], int(greedy[at]))
        if pair not in known:
            place = questions.option_named(*pair)
            known[pair] = -1 if place is None else place
        out[at] = known[pair]
    return out


def _attrs(name: str) -> dict[str, str]:
    units, meaning = MEANINGS[name]
    return {"units": units, "long_name": meaning}
