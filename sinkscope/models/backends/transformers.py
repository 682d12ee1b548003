"""The primary backend: any transformers model whose attention goes through the library's attention interface.

What a model is made of is found by running one token (or one blank image): the modules that call the attention function
in order, the block each sits in, the projection that reads its output, and where the residual stream can be read.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch

from sinkscope.attention import seam
from sinkscope.errors import UnsupportedModelError
from sinkscope.models.backends import crossing, vision
from sinkscope.models.backends.alone import Batches
from sinkscope.models.backends.base import AttentionSite, Instruments, Output, Tower
from sinkscope.models.backends.collector import Collector
from sinkscope.models.backends.discovery import discover, no_cache
from sinkscope.models.backends.own_errors import inputs_told
from sinkscope.models.backends.projections import Factor, OutputProjections
from sinkscope.models.backends.residual_hooks import residual_hooks
from sinkscope.models.backends.trial import parts_of
from sinkscope.models.facts import is_encoder_decoder
from sinkscope.prompts.batch import PER_TOKEN, PER_TOKEN_AND_IMAGE
from sinkscope.prompts.placing import device_of, in_type_of

DENSE_MASKS = (
    "this model computes with its masks, so it gets tensors (batch, 1, query, key): their memory grows with the square "
    "of the length"
)

TOKENS = frozenset({"input_ids", "attention_mask", "position_ids"}) | PER_TOKEN | PER_TOKEN_AND_IMAGE
"""Inputs as long as the text, of which the number of an image's features does not depend."""


class TransformersBackend:
    """Drives a ``transformers`` model in place; leaves it as it was after every pass."""

    name = "transformers"

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.why_not = ""
        self.towers: Mapping[str, Tower] = {}
        try:
            self.towers = vision.Towers(model, discover(model))
        except UnsupportedModelError as error:
            self.why_not = str(error)
        except Exception as error:  # whatever a model of unknown make raises while it is looked at
            self.why_not = (
                f"{type(model).__name__}: running one token ended in {type(error).__name__}: {str(error)[:120]}. "
                f"Run the model by itself first.{parts_of(model)}"
            )
        missing = [name for name in ("decoder", "encoder", "cross") if name not in self.towers]
        if self.towers and is_encoder_decoder(model) and missing:
            self.why_not = (
                f"{', '.join(missing)}: computed by the model itself, without transformers' attention interface, or in "
                "one call over source and target together."
            )
        self.note = " ".join(self._notes())
        self.reading = "streaming" if self.towers else "none"
        self.edits = bool(self.towers)
        self.default_tower = next(iter(self.towers), "text")
        self._projections = OutputProjections(model)
        self._keys: dict[Any, int] = {}
        self._batches = Batches(type(model).__name__, self._hidden, unpadded=False)

    def _notes(self) -> list[str]:
        notes = [f"{DENSE_MASKS}."] if self.towers and seam.takes_tensors(self.model) else []
        if "text" in self.towers and crossing.NAME in self.towers:
            layers = sorted({site.layer for site in self.towers[crossing.NAME].attention})
            notes.append(f"its attention to images, at blocks {layers}, is another tower: tower='cross'.")
        return notes

    def forward(
        self, inputs: Mapping[str, torch.Tensor], tower: Tower, instruments: Instruments, logits: str | None = None
    ) -> Output:
        """Run the model once under ``instruments``; see :class:`sinkscope.models.backends.base.Backend`."""
        inputs = in_type_of(self.model, inputs)
        # Which keys a model chooses by a mask may depend on padding (Mistral Large 4), and an encoder may mix
        # neighbours before its first block (MobileBERT); a decoder's tokens do not see what is behind them.
        if seam.takes_tensors(self.model) or not tower.causal:
            with inputs_told(self.model, inputs):
                self._batches.check(inputs)
        collector = Collector(self.model, tower, instruments, self.write_factor)
        alone = self._alone(tower, inputs)
        if alone is not None or "grid_thw" in inputs:
            vision.Portions(collector.session, collector.site_of)
        with ExitStack() as stack:
            stack.enter_context(inputs_told(self.model, inputs))
            stack.enter_context(residual_hooks(self.model, tower, instruments.residual, vision.rows_of(inputs)))
            session = None
            if instruments.wants or instruments.edits:
                session = stack.enter_context(seam.entered(self.model, collector.session))
                stack.enter_context(collector.listening())
            if tower.name == "encoder":
                hidden, scores = self._run_encoder(inputs, logits)
            else:
                hidden, scores = self._run(inputs, logits) if alone is None else (hidden_state(alone(**inputs)), None)
        collector.flush()
        return Output(hidden, scores, frozenset(session.paths if session else {"native"}))

    def _hidden(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        with seam.entered(self.model, seam.Session()):
            return self._run(inputs, None)[0]

    def _run(self, inputs: Mapping[str, torch.Tensor], logits: str | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        base = _headless(self.model, inputs)
        arguments = dict(inputs)
        if base is getattr(getattr(self.model, "base_model", None), "text_model", None) and base is not self.model:
            # AIMv2's text part looks ahead where it gets no mask: alone and in a batch a text must read the same.
            arguments.setdefault("attention_mask", torch.ones_like(arguments["input_ids"]))
        if logits is None:
            return hidden_state(base(**arguments, **no_cache(base))), None
        kept: list[torch.Tensor] = []
        # OPT's head calls the decoder inside the headless model, not that model itself.
        inner = [base, getattr(base, "decoder", None)]
        handles = [
            part.register_forward_hook(lambda _m, _a, out: kept.append(hidden_state(out)))
            for part in inner
            if isinstance(part, torch.nn.Module)
        ]
        try:
            extra = no_cache(self.model)
            if logits == "last" and "logits_to_keep" in inspect.signature(self.model.forward).parameters:
                extra["logits_to_keep"] = 1
            out = self.model(**arguments, **extra)
        finally:
            for handle in handles:
                handle.remove()
        scores = getattr(out, "logits", None)
        return (kept[-1] if kept else hidden_state(out)), scores

    def _run_encoder(
        self, inputs: Mapping[str, torch.Tensor], logits: str | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The encoder of an encoder-decoder by itself; with the decoder behind it where logits are wanted."""
        network: Any = self.model
        encoder = network.get_encoder()
        if logits is None:
            names = inspect.signature(encoder.forward).parameters
            return hidden_state(encoder(**{name: tensor for name, tensor in inputs.items() if name in names})), None
        out = self.model(**inputs, **no_cache(self.model))
        return out.encoder_last_hidden_state, getattr(out, "logits", None)

    def _alone(self, tower: Tower, inputs: Mapping[str, torch.Tensor]) -> torch.nn.Module | None:
        """The module to call where a tower inside the model is run by itself; None where the whole model is run."""
        root = vision.vision_root(self.model) if tower.name == vision.NAME and "input_ids" not in inputs else None
        return None if root is None else self.model.get_submodule(root)

    def write_factor(self, site: AttentionSite) -> Factor | None:
        """Triangular factor of each head's slice of W_O: |R v| = |W_O v| at head width instead of model width."""
        return self._projections.factor(site)

    def cross_keys(self, inputs: Mapping[str, torch.Tensor]) -> int:
        """Count the keys that the images in ``inputs`` are to cross-attention; 0 where none of it is reached."""
        shapes = tuple((n, tuple(t.shape)) for n, t in sorted(inputs.items()) if n not in TOKENS)
        if shapes not in self._keys:
            placed = {name: tensor.to(device_of(self.model)) for name, tensor in inputs.items()}
            self._keys[shapes] = crossing.count_keys(
                self.model, self.towers[crossing.NAME], lambda: self._run(in_type_of(self.model, placed), None)
            )
        return self._keys[shapes]

    def vision_root(self) -> str | None:
        """Return the path of the vision part inside a larger model, or None."""
        return vision.vision_root(self.model)


def hidden_state(output: Any) -> torch.Tensor:
    """Return the last hidden state that a model gave, or its logits where it gives no more."""
    for name in ("last_hidden_state", "logits", "logits_per_image"):
        found = getattr(output, name, None)
        if found is not None:
            return found[0] if isinstance(found, tuple) else found  # of several heads (MGP-STR) the first
    if isinstance(output, tuple) and output and isinstance(output[0], torch.Tensor):
        return output[0]
    raise UnsupportedModelError(
        f"the model returned {type(output).__name__} without a hidden state or logits. Pass one that returns either, "
        "such as the part of it that attends."
    )


def _headless(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """The model without its output layer; the model itself where that part takes no raw inputs (DINOv3's encoder).

    Of two encoders side by side (CLIP, SigLIP) the text part alone where no images are given.
    """
    base: Any = getattr(model, "base_model", model)
    if hasattr(base, "get_text_features") and hasattr(base, "text_model") and "pixel_values" not in inputs:
        return base.text_model
    return base if set(inputs) <= set(inspect.signature(base.forward).parameters) else model
