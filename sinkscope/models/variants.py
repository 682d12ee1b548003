"""Attention variants of the zoo's models: other normalisers, a learned extra key, head-wise output gates.

Two attributes say what a model computes, and everything that reads attention looks at these two: the normaliser in
``config.sinkscope_normaliser`` (``"softmax"`` when absent) and, on an attention module, ``extra_key`` (absent or None
in most models). One plain, dense, differentiable attention function serves them all under the name
``"sinkscope_dense"``; it is registered when this module is imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb

from sinkscope.errors import ModelError

NAME = "sinkscope_dense"
"""Name under which the function is registered: ``attn_implementation=NAME``."""

NORMALISERS = ("softmax", "softmax1", "sigmoid", "relu")
"""Values of ``config.sinkscope_normaliser``."""


def normalise(
    logits: Float[torch.Tensor, "*batch query key"],
    visible: Shaped[torch.Tensor, "... query key"],
    normaliser: str,
    extra: Float[torch.Tensor, "*batch query 1"] | None = None,
) -> Float[torch.Tensor, "*batch query key"]:
    """Turn scaled logits into attention weights.

    Args:
        logits: Scaled scores, unmasked.
        visible: 1 where the query may see the key, else 0 (boolean or float; broadcasts).
        normaliser: ``"softmax"``; ``"softmax1"``, a softmax with one more logit of 0 whose weight is dropped;
            ``"sigmoid"``, unnormalised; ``"relu"``, ReLU over the number of visible keys (Guo et al. 2024).
        extra: Logit of a learned key with value zero, whose weight is dropped too (key bias, Gu et al. 2025).

    Returns:
        Weights, 0 where nothing is visible. Rows of ``softmax`` sum to 1 unless ``extra`` is given.

    Raises:
        ModelError: unknown normaliser, or ``extra`` with one that shares nothing between keys.
    """
    seen = visible.bool()
    if normaliser in ("sigmoid", "relu"):
        if extra is not None:
            raise ModelError(f"extra_key with normaliser {normaliser!r}: its weight changes no other. Use softmax.")
        if normaliser == "sigmoid":
            return torch.sigmoid(logits) * seen
        return torch.relu(logits) * seen / seen.sum(-1, keepdim=True).clamp(min=1)
    if normaliser not in ("softmax", "softmax1"):
        raise ModelError(f"config.sinkscope_normaliser={normaliser!r}: unknown. Use one of {', '.join(NORMALISERS)}.")
    columns = [logits.masked_fill(~seen, torch.finfo(logits.dtype).min)]
    if extra is not None:
        columns.append(extra)
    if normaliser == "softmax1":
        columns.append(torch.zeros_like(logits[..., :1]))
    weights = torch.softmax(torch.cat(columns, -1), -1)[..., : logits.shape[-1]]
    return weights * seen


def dense_attention(
    module: nn.Module,
    query: Float[torch.Tensor, "batch head query dim"],
    key: Float[torch.Tensor, "batch kv_head key dim"],
    value: Float[torch.Tensor, "batch kv_head key dim"],
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Float[torch.Tensor, "batch query head dim"], Float[torch.Tensor, "batch head query key"]]:
    """Return the attention under the module's normaliser and extra key, as one dense differentiable product.

    Args:
        module: The attention module; ``module.config.sinkscope_normaliser`` and ``module.extra_key`` (head, dim) are
            read when they are there.
        query: Queries after position encoding.
        key: Keys, not repeated over query heads.
        value: Values, not repeated over query heads.
        attention_mask: Additive mask of :func:`transformers.masking_utils.eager_mask`; None: all keys are visible.
        scaling: Factor on the scores; one over the square root of the head width when None.

    Returns:
        The output and the weights.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits = query @ key.transpose(2, 3) * scale
    if attention_mask is None:
        visible = torch.ones_like(logits[:1, :1])
    else:
        mask = attention_mask[..., : key.shape[2]]
        visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    extra_key = getattr(module, "extra_key", None)
    extra = None if extra_key is None else torch.einsum("bhqd,hd->bhq", query, extra_key)[..., None] * scale
    normaliser = getattr(getattr(module, "config", None), "sinkscope_normaliser", "softmax")
    weights = normalise(logits, visible, normaliser, extra)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register(NAME, dense_attention)
AttentionMaskInterface.register(NAME, eager_mask)


class GatedLlamaAttention(LlamaAttention):
    """Llama attention with a sigmoid gate per head, from the block's input (Qiu et al. 2025, head-wise G1).

    ``gate_proj`` maps the hidden state to one logit per head, or, with ``config.sinkscope_gate = "element"``, to one
    per element of each head's output (element-wise G1); the gate acts after the weighted sum of values and before
    ``o_proj``, so the attention weights themselves stay a softmax.
    """

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        each = self.head_dim if config.sinkscope_gate == "element" else 1
        self.gate_proj = nn.Linear(config.hidden_size, config.num_attention_heads * each, bias=False)
        nn.init.normal_(self.gate_proj.weight, std=config.initializer_range)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, Any]:
        """Attend as Llama does, then gate each head."""
        assert position_embeddings is not None
        shape = hidden_states.shape[:-1]
        split = (*shape, -1, self.head_dim)
        query, key, value = (p(hidden_states).view(split).transpose(1, 2) for p in self._projections())
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(str(self.config._attn_implementation), dense_attention)
        out, weights = attend(self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs)
        gated = out * torch.sigmoid(self.gate_proj(hidden_states)).view(*shape, out.shape[-2], -1)
        return self.o_proj(gated.reshape(*shape, -1)), weights

    def _projections(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        return self.q_proj, self.k_proj, self.v_proj


def build(config: Any) -> Any:
    """Build a causal language model with fresh weights and the variant that its config names.

    Args:
        config: A transformers config; ``sinkscope_normaliser`` (str), ``sinkscope_extra_key`` (bool) and
            ``sinkscope_gate`` (bool or ``"element"``, Llama only) are read when they are there.

    Raises:
        ModelError: unknown normaliser, or a gate asked of another architecture than Llama.
    """
    normaliser = getattr(config, "sinkscope_normaliser", "softmax")
    if normaliser not in NORMALISERS:
        raise ModelError(f"config.sinkscope_normaliser={normaliser!r}: unknown. Use one of {', '.join(NORMALISERS)}.")
    extra_key, gate = getattr(config, "sinkscope_extra_key", False), getattr(config, "sinkscope_gate", False)
    if (extra_key or gate) and config.model_type != "llama":
        raise ModelError(f"sinkscope_extra_key and sinkscope_gate: only for llama, this is {config.model_type}.")
    plain = normaliser == "softmax" and not extra_key
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa" if plain else NAME)
    for index, layer in enumerate(model.model.layers if extra_key or gate else ()):
        if gate:
            old = layer.self_attn
            layer.self_attn = GatedLlamaAttention(model.config, index)
            layer.self_attn.load_state_dict(old.state_dict(), strict=False)
        if extra_key:
            shape = model.config.num_attention_heads, layer.self_attn.head_dim
            layer.self_attn.extra_key = nn.Parameter(torch.zeros(shape))
    return model


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


__all__ = ["NAME", "NORMALISERS", "GatedLlamaAttention", "build", "dense_attention", "load", "normalise", "save"]
