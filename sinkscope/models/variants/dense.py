"""The dense attention function of the variants: whole maps, differentiable, for training and as a second opinion."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from sinkscope.errors import ModelError

NAME = "sinkscope_dense"
"""Name under which the function is registered: ``attn_implementation=NAME``."""

NORMALISERS = ("softmax", "softmax1", "sigmoid", "sigmoid_normalised", "relu")
"""Values of ``config.sinkscope_normaliser``."""

EPS = 1e-8
"""What is added to the sum of a row of sigmoids (Gu et al. 2025)."""


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
            ``"sigmoid"``, unnormalised; ``"sigmoid_normalised"``, sigmoids over their sum + 1e-8 (Gu et al. 2025);
            ``"relu"``, ReLU over the number of visible keys (Guo et al. 2024).
        extra: Logit of a learned key, whose weight is dropped too (key bias, Gu et al. 2025).

    Returns:
        Weights, 0 where nothing is visible. Rows of ``softmax`` sum to 1 unless ``extra`` is given.

    Raises:
        ModelError: unknown normaliser, or ``extra`` with one that is no softmax.
    """
    return _with_extra(logits, visible, normaliser, extra)[0]


def _with_extra(
    logits: torch.Tensor, visible: torch.Tensor, normaliser: str, extra: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The weights of the keys, and that of the learned key where there is one."""
    seen = visible.bool()
    if normaliser not in NORMALISERS:
        raise ModelError(f"config.sinkscope_normaliser={normaliser!r}: unknown. Use one of {', '.join(NORMALISERS)}.")
    if normaliser not in ("softmax", "softmax1"):
        if extra is not None:
            raise ModelError(f"extra_key with normaliser {normaliser!r}: its weight changes no other. Use softmax.")
        if normaliser == "relu":
            return torch.relu(logits) * seen / seen.sum(-1, keepdim=True).clamp(min=1), None
        scores = torch.sigmoid(logits) * seen
        return scores if normaliser == "sigmoid" else scores / (scores.sum(-1, keepdim=True) + EPS), None
    columns = [logits.masked_fill(~seen, torch.finfo(logits.dtype).min)]
    if extra is not None:
        columns.append(extra)
    if normaliser == "softmax1":
        columns.append(torch.zeros_like(logits[..., :1]))
    weights = torch.softmax(torch.cat(columns, -1), -1)
    keys = logits.shape[-1]
    return weights[..., :keys] * seen, None if extra is None else weights[..., keys : keys + 1]


def dense_attention(
    module: nn.Module,
    query: Float[torch.Tensor, "batch head query dim"],
    key: Float[torch.Tensor, "batch kv_head key dim"],
    value: Float[torch.Tensor, "batch kv_head key dim"],
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **keywords: Any,
) -> tuple[Float[torch.Tensor, "batch query head dim"], Float[torch.Tensor, "batch head query key"]]:
    """Return the attention of a variant, as one dense differentiable product.

    Args:
        module: The attention module; ``module.config.sinkscope_normaliser`` and its ``extra_key``, ``extra_value`` and
            ``value_bias``, each (head, dim), are read when they are there.
        query: Queries after position encoding.
        key: Keys, not repeated over query heads.
        value: Values, not repeated over query heads.
        attention_mask: Additive mask of :func:`transformers.masking_utils.eager_mask`; None: all keys are visible.
        scaling: Factor on the scores; one over the square root of the head width when None.
        keywords: ``position_bias`` (batch or 1, head, query, key) is added to the scaled scores (ALiBi).

    Returns:
        The output and the weights of the keys.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits = query @ key.transpose(2, 3) * scale
    if keywords.get("position_bias") is not None:
        logits = logits + keywords["position_bias"]
    if attention_mask is None:
        visible = torch.ones_like(logits[:1, :1])
    else:
        mask = attention_mask[..., : key.shape[2]]
        visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    extra_key, extra_value, value_bias = (
        getattr(module, name, None) for name in ("extra_key", "extra_value", "value_bias")
    )
    extra = None if extra_key is None else torch.einsum("bhqd,hd->bhq", query, extra_key)[..., None] * scale
    normaliser = getattr(getattr(module, "config", None), "sinkscope_normaliser", "softmax")
    weights, extra_weight = _with_extra(logits, visible, normaliser, extra)
    out = weights @ value
    if extra_weight is not None and extra_value is not None:
        out = out + extra_weight * extra_value[:, None]
    if value_bias is not None:
        out = out + value_bias[:, None]
    return out.transpose(1, 2).contiguous(), weights


AttentionInterface.register(NAME, dense_attention)
AttentionMaskInterface.register(NAME, eager_mask)
