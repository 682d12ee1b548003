"""A callback for the transformers ``Trainer``, and readings of the checkpoints of a run."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from tqdm.auto import tqdm
from transformers import TrainerCallback

from sinkscope import metrics, schema
from sinkscope.engine.run import run
from sinkscope.errors import ProbeError, PromptError, SinkscopeError
from sinkscope.models.handle import Model, load_model
from sinkscope.probes import KeyMass, MassiveActivations, ResidualNorm, TokenLoss, ValueNorm
from sinkscope.probes.base import Probe
from sinkscope.prompts import Prompts

Texts = Sequence[str] | Sequence[Sequence[int]] | Any
"""Prompts: texts, lists of token ids, or a tensor of token ids (prompt, token)."""


def standard_probes(model: Model) -> list[Probe]:
    """What is read when no probe is named: attention received, value and residual norms, massive activations, loss."""
    found: list[Probe] = [KeyMass(), ValueNorm(), ResidualNorm(), MassiveActivations()]
    return found + ([TokenLoss()] if model.backend.towers[model.backend.default_tower].causal else [])


def summary(readings: xr.Dataset, threshold: float = 0.3, position: int = 0) -> dict[str, float]:
    """Sum a reading up in scalars, those that its variables allow.

    Args:
        readings: One reading.
        threshold: A head over it counts as a sink head (Gu et al. 2025: 0.3 at 64 tokens).
        position: The sink candidate.

    Returns:
        ``sink_rate`` and ``key_mass``, ``key_mass_max`` (mean and largest over heads, of the mean over prompts);
        ``value_drain`` and ``value_drain_min`` (value norm of the position over the median of the others: median and
        smallest over heads); ``residual_ratio`` (residual norm over the median of the others, largest over sites);
        ``massive`` and ``massive_dim`` (largest magnitude over the median magnitude, at the site where it is largest,
        and its dimension); ``loss`` (mean next-token cross-entropy, nat).
    """
    row: dict[str, float] = {}
    if "key_mass" in readings:
        heads = readings["key_mass"].isel(key=position).mean("prompt")
        row |= {"sink_rate": float(metrics.sink_rate(readings, threshold, position))}
        row |= {"key_mass": float(heads.mean()), "key_mass_max": float(heads.max())}
    if "value_norm" in readings:
        drain = metrics.value_drain(readings, position)
        row |= {"value_drain": float(drain.median()), "value_drain_min": float(drain.min())}
    if "residual_norm" in readings:
        norm = readings["residual_norm"].astype("float64")
        others = norm.where(np.arange(norm.sizes["key"]) != position).median("key")
        row["residual_ratio"] = float((norm.isel(key=position) / others).mean("prompt").max())
    if "top_value" in readings:
        ratio = metrics.massive_activations(readings)["ratio"].isel(rank=0).mean("prompt")
        at = readings["top_dim"].isel(rank=0, site=int(ratio.argmax("site")))
        row |= {"massive": float(ratio.max()), "massive_dim": float(np.bincount(at.values.astype(int)).argmax())}
    if "token_loss" in readings:
        row["loss"] = float(readings["token_loss"].mean())
    return row


class SinkCallback(TrainerCallback):
    """Measure sinks every ``every`` optimiser steps on fixed prompts, before the first step and after the last.

    The main process alone measures, on the weights it holds: whole ones, so data-parallel training, not sharded (FSDP,
    ZeRO-3). The model is left in the mode it was in. What is wrong with the setup is raised before the first step; a
    measurement that fails later (weights that are no longer finite, a full disk, no memory left) is warned of and
    written into its row, and the training goes on.

    Attributes:
        history: One row per measurement: ``step`` and the scalars of :func:`summary`.
    """

    def __init__(
        self,
        texts: Texts,
        every: int = 500,
        *,
        tokenizer: Any = None,
        probes: Sequence[Probe] | None = None,
        threshold: float = 0.3,
        folder: str | PathLike[str] | None = None,
    ) -> None:
        """Set what is measured and when.

        Args:
            texts: Held-out texts (with ``tokenizer``), or token ids, a row per prompt. 64 tokens are the custom; of
                much shorter prompts even uniform attention passes the threshold.
            every: Steps between measurements.
            tokenizer: Of the model; for texts.
            probes: What is read; :func:`standard_probes` when left out.
            threshold: A head over it counts as a sink head.
            folder: Gets ``sinks.jsonl``, a row per measurement, and each reading as ``step-NUMBER.nc``.

        Raises:
            ProbeError: ``every`` below 1.
            PromptError: no prompts, or texts without a tokenizer.
        """
        if every < 1:
            raise ProbeError(f"SinkCallback(every={every}): measured at least every step. Use 1 or more.")
        self.texts = _listed(texts, "SinkCallback")
        if isinstance(self.texts[0], str) and tokenizer is None:
            raise PromptError("SinkCallback: texts need the model's tokenizer. Pass tokenizer=, or give token ids.")
        self.every, self.tokenizer, self.probes, self.threshold = every, tokenizer, probes, threshold
        self.folder = None if folder is None else Path(folder)
        self.history: list[dict[str, Any]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the model as it is before training; what is wrong with the setup is raised here."""
        if state.is_world_process_zero:
            self._keep(state.global_step, self._read(kwargs["model"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure when the step is due."""
        if state.global_step % self.every == 0:
            self._measure(state, kwargs["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the trained model, unless its last step was just measured."""
        if not self.history or self.history[-1]["step"] != state.global_step:
            self._measure(state, kwargs["model"])

    def _measure(self, state: Any, network: Any) -> None:
        if not state.is_world_process_zero:
            return
        try:
            self._keep(state.global_step, self._read(network))
        except (SinkscopeError, RuntimeError, OSError) as error:
            warnings.warn(f"SinkCallback: step {state.global_step} was not measured: {error}", stacklevel=2)
            row = {"step": state.global_step, "failed": str(error)}
            self.history.append(row)
            with suppress(OSError):
                self._write(row)

    def _read(self, network: Any) -> xr.Dataset:
        model = load_model(network, tokenizer=self.tokenizer)
        with model.evaluating():
            return _read(model, self.texts, self.probes)

    def _keep(self, step: int, readings: xr.Dataset) -> None:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            schema.save(readings, self.folder / f"step-{step:06d}.nc", overwrite=True)
        row = {"step": step, **summary(readings, self.threshold)}
        self._write(row)
        self.history.append(row)

    def _write(self, row: dict[str, Any]) -> None:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "sinks.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def checkpoints(folder: str | PathLike[str]) -> dict[int, Path]:
    """Return the checkpoints that a ``Trainer`` left in its output folder, by step, in order.

    Raises:
        PromptError: no folder ``checkpoint-NUMBER`` there.
    """
    root = Path(folder)
    steps = {int(found[1]): path for path in root.glob("*") if (found := re.fullmatch(r"checkpoint-(\d+)", path.name))}
    if not steps:
        raise PromptError(
            f"checkpoints({str(root)!r}): no folder named checkpoint-NUMBER there. Name the output folder of a "
            "Trainer, or pass the models by step: {1000: 'path/or/hub-id', ...}."
        )
    return dict(sorted(steps.items()))


def read_checkpoints(
    sources: str | PathLike[str] | Mapping[int, Any],
    texts: Texts,
    probes: Sequence[Probe] | None = None,
    *,
    tokenizer: Any = None,
    batch_size: int = 1,
) -> xr.Dataset:
    """Measure the checkpoints of a training run on the same prompts.

    Args:
        sources: Output folder of a ``Trainer``, or steps and what :func:`sinkscope.load_model` takes.
        texts: Texts, or token ids, a row per prompt.
        probes: What is read; :func:`standard_probes` when left out.
        tokenizer: Use this one instead of the checkpoints' own.
        batch_size: Prompts per pass.

    Returns:
        A reading with one more dim, ``step``. ``metrics.sink_rate(found)`` and the others keep it.

    Raises:
        PromptError: no checkpoints, no prompts, or prompts that a later checkpoint's tokenizer cuts differently.
        ModelError, UnsupportedModelError, ProbeError: as ``load_model`` and ``run``.
    """
    found = dict(sources) if isinstance(sources, Mapping) else checkpoints(sources)
    listed = _listed(texts, "read_checkpoints")
    if not found:
        raise PromptError("read_checkpoints: no checkpoints. Pass {step: model, ...} or the folder of a Trainer.")
    readings = []
    for step, source in tqdm(found.items(), desc="checkpoints", disable=None):
        model = load_model(source, tokenizer=tokenizer)
        readings.append(_read(model, listed, probes, batch_size))
        if readings[-1]["token"].values.tolist() != readings[0]["token"].values.tolist():
            raise PromptError(
                f"read_checkpoints: the prompts have other tokens at step {step} than at step {next(iter(found))}. "
                "Pass one tokenizer=, or token ids."
            )
    along = xr.concat(
        readings, dim=xr.Variable("step", list(found)), coords="minimal", compat="override", combine_attrs="override"
    )
    each = {"model_id": sorted({ds.attrs["model_id"] for ds in readings}), "model_fingerprint": [
        ds.attrs["model_fingerprint"] for ds in readings
    ]}  # fmt: skip
    return along.assign_attrs({name: ", ".join(map(str, values)) for name, values in each.items()})


def _read(model: Model, texts: Sequence[Any], probes: Sequence[Probe] | None, batch_size: int = 1) -> xr.Dataset:
    given = Prompts.from_texts(texts, model) if isinstance(texts[0], str) else Prompts.from_ids(texts, model)
    return run(model, given, standard_probes(model) if probes is None else probes, batch_size=batch_size)


def _listed(texts: Texts, who: str) -> list[Any]:
    plain: Any = texts
    rows = plain.tolist() if hasattr(plain, "tolist") else [plain] if isinstance(plain, str) else list(plain)
    if not rows or not all(isinstance(row, str) or len(row) for row in rows):
        raise PromptError(f"{who}: no prompts, or an empty one. Give texts, or token ids, a row per prompt.")
    return rows


__all__ = ["SinkCallback", "checkpoints", "read_checkpoints", "standard_probes", "summary"]
