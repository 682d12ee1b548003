"""Building, saving and loading a model whose config names a variant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from sinkscope.errors import ModelError
from sinkscope.models.variants.blocks import LearnedPositionLlama, NoRotation, VariantLlamaAttention
from sinkscope.models.variants.dense import NAME, NORMALISERS

POSITIONS = ("rotary", "learned", "alibi", "none")
"""Values of ``config.sinkscope_positions``."""

LLAMA_ONLY = ("extra_key", "gate", "value_bias", "positions", "prefix")
"""Keys behind ``sinkscope_`` that change Llama's own modules."""


def build(config: Any) -> Any:
    """Build a causal language model with fresh weights and the variant that its config names.

    Args:
        config: A transformers config. Read when they are there: ``sinkscope_normaliser`` (str) and, for Llama alone,
            ``sinkscope_extra_key`` (True: a learned key, ``"value"``: with a learned value), ``sinkscope_value_bias``
            (a learned vector added to every head's output), ``sinkscope_gate`` (True or ``"element"``),
            ``sinkscope_positions`` (one of ``POSITIONS``) and ``sinkscope_prefix`` (so many first keys are seen by
            every query). Learned keys, values and biases start at 0.

    Raises:
        ModelError: unknown normaliser or positions, or a change of Llama's modules asked of another architecture.
    """
    normaliser = getattr(config, "sinkscope_normaliser", "softmax")
    positions = getattr(config, "sinkscope_positions", "rotary")
    for key, given, known in (("normaliser", normaliser, NORMALISERS), ("positions", positions, POSITIONS)):
        if given not in known:
            raise ModelError(f"config.sinkscope_{key}={given!r}: unknown. Use one of {', '.join(known)}.")
    asked = {name: value for name in LLAMA_ONLY if (value := getattr(config, f"sinkscope_{name}", False))}
    if asked and config.model_type != "llama":
        names = " and ".join(f"sinkscope_{name}" for name in asked)
        raise ModelError(f"{names}: only for llama, this is {config.model_type}.")
    dense = normaliser != "softmax" or positions == "alibi" or set(asked) & {"extra_key", "value_bias", "prefix"}
    model = AutoModelForCausalLM.from_config(config, attn_implementation=NAME if dense else "sdpa")
    if asked:
        _place_positions(model, positions)
        for index, layer in enumerate(model.model.layers):
            layer.self_attn = _attention(model.config, index, layer.self_attn)
    return model


def _place_positions(model: Any, positions: str) -> None:
    if positions == "learned":
        # The same draws as without: what is new is drawn after everything else.
        inner = LearnedPositionLlama(model.config)
        inner.load_state_dict(model.model.state_dict(), strict=False)
        model.model = inner
    elif positions in ("alibi", "none"):
        model.model.rotary_emb = NoRotation()


def _attention(config: Any, index: int, old: nn.Module) -> nn.Module:
    """The attention module of a block with what its config adds, and the old one's weights."""
    new = VariantLlamaAttention(config, index)
    new.load_state_dict(old.state_dict(), strict=False)
    extra = getattr(config, "sinkscope_extra_key", False)
    wanted = {"extra_key": extra, "extra_value": extra == "value"}
    wanted["value_bias"] = getattr(config, "sinkscope_value_bias", False)
    for name, asked in wanted.items():
        if asked:
            setattr(new, name, nn.Parameter(torch.zeros(config.num_attention_heads, new.head_dim)))
    return new


def save(model: Any, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write ``config.json`` and ``model.safetensors`` of a model with untied embeddings into the folder ``path``."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    tensors = {k: v.detach().to(dtype).contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def load(path: str | Path) -> Any:
    """Load a model of the zoo, variant or not, in float32 and in evaluation mode.

    Args:
        path: Folder with ``config.json`` and ``model.safetensors``.

    Raises:
        ModelError: the folder lacks a file, or its weights do not fit its config.
    """
    folder = Path(path)
    missing = [name for name in ("config.json", "model.safetensors") if not (folder / name).exists()]
    if missing:
        raise ModelError(f"zoo model {folder}: no {' and no '.join(missing)} there. Name a folder written by save().")
    model = build(AutoConfig.from_pretrained(folder, local_files_only=True))
    tensors = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelError(f"zoo model {folder}: weights do not fit config.json: {error}") from error
    return model.eval()
