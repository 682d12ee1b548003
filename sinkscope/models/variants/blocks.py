"""Parts of Llama that are exchanged in a variant: attention with gates and biases, and other position encodings."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaModel, apply_rotary_pos_emb

from sinkscope.attention.masks import MaskSpec, with_opened
from sinkscope.errors import ModelError
from sinkscope.models.variants.dense import NAME, dense_attention

READS_ALL = (NAME, "sinkscope", "sinkscope_dense_mask")
"""Attention functions that know learned keys, value biases and position biases; others would leave them out."""


class VariantLlamaAttention(LlamaAttention):
    """Llama attention with what a variant adds to it, each where its config asks for it.

    ``sinkscope_gate``: a sigmoid gate per head, from the block's input (Qiu et al. 2025, head-wise G1). ``gate_proj``
    maps the hidden state to one logit per head, or, with ``"element"``, to one per element of each head's output
    (element-wise G1); the gate acts after the weighted sum of values and before ``o_proj``, so the attention weights
    themselves stay a softmax. ``sinkscope_positions = "alibi"``: no rotation, and the distance to the key times a slope
    per head is taken from the logit. ``sinkscope_prefix``: so many first keys are seen by every query.
    """

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.prefix = int(getattr(config, "sinkscope_prefix", 0))
        self.slopes = None
        if getattr(config, "sinkscope_positions", "rotary") == "alibi":
            self.slopes = alibi_slopes(config.num_attention_heads)
        gate = getattr(config, "sinkscope_gate", False)
        if gate:
            each = self.head_dim if gate == "element" else 1
            self.gate_proj = nn.Linear(config.hidden_size, config.num_attention_heads * each, bias=False)
            nn.init.normal_(self.gate_proj.weight, std=config.initializer_range)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: Any = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, Any]:
        """Attend as Llama does, under the variant's mask and bias, then gate each head.

        Raises:
            ModelError: the model was set to an attention function that would leave a bias out.
        """
        assert position_embeddings is not None
        shape = hidden_states.shape[:-1]
        split = (*shape, -1, self.head_dim)
        query, key, value = (p(hidden_states).view(split).transpose(1, 2) for p in self._projections())
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        name = str(self.config._attn_implementation)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(name, dense_attention)
        if name not in READS_ALL and (self.slopes is not None or self.prefix or self._has_biases()):
            raise ModelError(
                f"attention implementation {name!r} leaves out what this variant adds to attention. Call "
                f"model.set_attn_implementation({NAME!r})."
            )
        if self.prefix and attention_mask is not None:
            attention_mask = _with_prefix(attention_mask, self.prefix)
        if self.slopes is not None:
            kwargs["position_bias"] = alibi_bias(self.slopes.to(query), query.shape[2], key.shape[2])
        out, weights = attend(self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs)
        if hasattr(self, "gate_proj"):
            out = out * torch.sigmoid(self.gate_proj(hidden_states)).view(*shape, out.shape[-2], -1)
        return self.o_proj(out.reshape(*shape, -1)), weights

    def _projections(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        return self.q_proj, self.k_proj, self.v_proj

    def _has_biases(self) -> bool:
        return any(getattr(self, each, None) is not None for each in ("extra_key", "value_bias"))


def alibi_slopes(heads: int) -> Float[torch.Tensor, " head"]:
    """Return ALiBi's slopes, ``2 ** (-8 (h + 1) / heads)``; Press et al. give this series for powers of two."""
    return torch.tensor([2.0 ** (-8 * (head + 1) / heads) for head in range(heads)])


def alibi_bias(slopes: Float[torch.Tensor, " head"], rows: int, keys: int) -> Float[torch.Tensor, "1 head query key"]:
    """Return minus slope times distance; the rows are the last positions of the keys. Future keys get 0."""
    at = torch.arange(keys, device=slopes.device)
    distance = (at[keys - rows :, None] - at[None]).clamp(min=0)
    return (-slopes[:, None, None] * distance)[None]


def _with_prefix(mask: Any, prefix: int) -> Any:
    """Show the first ``prefix`` real keys of each prompt to all its queries."""
    if isinstance(mask, MaskSpec):
        real = mask.padding
        if real is None:
            real = torch.ones(mask.batch_size, mask.kv_length, dtype=torch.bool, device=mask.device)
        queries = torch.ones(mask.batch_size, mask.q_length, dtype=torch.bool, device=mask.device)
        return with_opened(mask, _first(real, prefix), queries)
    hidden = mask <= torch.finfo(mask.dtype).min / 2
    # The last query sees every real key, so what it does not see is padding.
    opened = _first(~hidden[:, 0, -1], prefix)[:, None, None]
    return mask.masked_fill(opened, 0.0)


def _first(real: torch.Tensor, count: int) -> torch.Tensor:
    return real & (real.long().cumsum(-1) <= count)


class NoRotation(nn.Module):
    """Stands where Llama keeps its rotary embedding, and turns nothing."""

    def forward(self, hidden: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines of 1 and sines of 0, of a width that broadcasts over the heads."""
        ones = hidden.new_ones(1, position_ids.shape[-1], 1)
        return ones, torch.zeros_like(ones)


class LearnedPositionLlama(LlamaModel):
    """Llama without rotation, with a learned vector per position added to the embeddings, as in GPT-2."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.rotary_emb = NoRotation()
        self.post_init()

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Int[torch.Tensor, "batch query"] | None = None,
        attention_mask: Any = None,
        position_ids: Int[torch.Tensor, "batch query"] | None = None,
        past_key_values: Any = None,
        inputs_embeds: Float[torch.Tensor, "batch query d_model"] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Add the positions, counted from the first real token of each prompt, and go on as Llama does."""
        inputs_embeds = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        assert inputs_embeds is not None
        if position_ids is None:
            rows = inputs_embeds.shape[1]
            if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -rows:]
            else:
                before = 0 if past_key_values is None else past_key_values.get_seq_length()
                position_ids = torch.arange(before, before + rows, device=inputs_embeds.device)[None]
        inputs_embeds = inputs_embeds + self.embed_positions(position_ids)
        return super().forward(
            attention_mask=attention_mask, past_key_values=past_key_values, inputs_embeds=inputs_embeds, **kwargs
        )
