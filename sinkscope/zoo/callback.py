"""A callback for the transformers ``Trainer`` that measures sinks while a model trains.

    callback = SinkCallback(held_out_ids, every=200, path="sinks.jsonl")
    Trainer(model=model, args=args, train_dataset=data, callbacks=[callback]).train()
    callback.history          # one row per measurement

It sees what :func:`sinkscope.zoo.statistics.sink_statistics` measures: share of heads over the threshold, drain of the
first token's values, massive activations. Models of the Llama family.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from transformers import TrainerCallback

from sinkscope.errors import ProbeError
from sinkscope.zoo.statistics import sink_statistics, summary


class SinkCallback(TrainerCallback):
    """Measure sinks every ``every`` optimiser steps on a fixed batch, and before the first and after the last one.

    Attributes:
        history: One row per measurement: ``step`` and the scalars of :func:`sinkscope.zoo.statistics.summary`.
    """

    def __init__(
        self,
        ids: Int[torch.Tensor, "batch key"],
        every: int = 500,
        threshold: float = 0.3,
        path: str | Path | None = None,
    ) -> None:
        """Set what is measured and when.

        Args:
            ids: Held-out token ids without padding, the sink candidate in the first column.
            every: Steps between measurements.
            threshold: A head over it counts as a sink head (Gu et al. 2025 use 0.3 at 64 tokens).
            path: File that gets one line of JSON per measurement.

        Raises:
            ProbeError: the batch is empty or shorter than two tokens, or ``every`` is below 1.
        """
        if ids.ndim != 2 or ids.shape[0] < 1 or ids.shape[1] < 2:
            raise ProbeError(f"SinkCallback: ids of shape {tuple(ids.shape)}. Give (prompts, tokens), at least (1, 2).")
        if every < 1:
            raise ProbeError(f"SinkCallback(every={every}): measured at least every step. Use 1 or more.")
        self.ids, self.every, self.threshold = ids, every, threshold
        self.path = None if path is None else Path(path)
        self.history: list[dict[str, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the model as it is before training."""
        self._measure(state, kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure when the step is due."""
        if state.global_step % self.every == 0:
            self._measure(state, kwargs["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the trained model, unless its last step was just measured."""
        if not self.history or self.history[-1]["step"] != state.global_step:
            self._measure(state, kwargs["model"])

    def _measure(self, state: Any, model: Any) -> None:
        device = next(model.parameters()).device
        row = {"step": float(state.global_step)}
        row |= summary(sink_statistics(model, self.ids.to(device)), self.threshold)
        self.history.append(row)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
