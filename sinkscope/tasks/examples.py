"""Prompts with known answers, and how well a model answers them: what a procedure is calibrated and tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from scipy.special import log_softmax

from sinkscope.engine.run import run
from sinkscope.errors import PromptError
from sinkscope.probes.output import Logits

if TYPE_CHECKING:
    from sinkscope.edits.base import Edit
    from sinkscope.models.handle import Model
    from sinkscope.prompts import Prompts


@dataclass(frozen=True, eq=False)
class Examples:
    """Prompts, and for each the id of the token that answers it.

    Raises:
        PromptError: not one answer per prompt.
    """

    prompts: Prompts
    answers: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check the number of answers."""
        object.__setattr__(self, "answers", tuple(int(answer) for answer in self.answers))
        if len(self.answers) != len(self.prompts):
            raise PromptError(
                f"Examples: {len(self.prompts)} prompts but {len(self.answers)} answers. Give one token id per prompt."
            )

    def split(self, share: float = 0.5, seed: int = 0) -> tuple[Examples, Examples]:
        """Draw a calibration part of ``share`` of the prompts; the rest is for the test.

        Raises:
            PromptError: a part would be empty.
        """
        count = round(share * len(self.answers))
        if not 0 < count < len(self.answers):
            raise PromptError(
                f"Examples.split(share={share}): {len(self.answers)} prompts leave one part empty. Give more prompts."
            )
        order = np.random.default_rng(seed).permutation(len(self.answers)).tolist()
        return self.subset(order[:count]), self.subset(order[count:])

    def subset(self, indices: Sequence[int]) -> Examples:
        """Return the examples at ``indices``."""
        return Examples(self.prompts.subset(indices), tuple(self.answers[i] for i in indices))


def answer_score(model: Model, examples: Examples, edits: Sequence[Edit] = ()) -> xr.Dataset:
    """Return how each prompt is answered under ``edits``: ``log_probability`` of the answer and ``correct`` (1 or 0).

    Dims (prompt,); both are read at the last position. Attributes are those of the reading.
    """
    return score_answers(run(model, examples.prompts, [Logits()], edits), examples)


def score_answers(reading: xr.Dataset, examples: Examples) -> xr.Dataset:
    """Return what :func:`answer_score` does, from a reading with ``Logits()`` of the examples' own prompts.

    Raises:
        PromptError: the reading is of another number of prompts.
    """
    answers = np.asarray(examples.answers)
    if reading.sizes["prompt"] != len(answers):
        raise PromptError(
            f"score_answers: {reading.sizes['prompt']} prompts were read but {len(answers)} have answers. "
            "Give the reading of the examples' own prompts."
        )
    logits = reading["logits"].isel(position=-1).values.astype(np.float64)
    rows = np.arange(len(answers))
    found = {
        "log_probability": log_softmax(logits, axis=-1)[rows, answers],
        "correct": (logits.argmax(-1) == answers).astype(np.float64),
    }
    data = {name: ("prompt", values) for name, values in found.items()}
    return xr.Dataset(data, coords={"prompt": reading["prompt"]}, attrs=reading.attrs)
