"""Losses that are added to the training loss to keep sinks away.

class Decorrelated(Trainer):
    def compute_loss(self, model, inputs, **kwargs):
        out = model(**inputs, output_hidden_states=True)
        return out.loss + decorrelation(out.hidden_states, inputs["attention_mask"])
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int

from sinkscope.errors import PromptError

States = Float[torch.Tensor, "batch key d_model"]
Mask = Bool[torch.Tensor, "batch key"] | Int[torch.Tensor, "batch key"]


def first_token_alignment(states: States, mask: Mask | None = None) -> Float[torch.Tensor, ""]:
    """Return the mean squared cosine between the first token's state and every later one of its prompt.

    ``mask`` says which tokens count, padding left out; the first that counts is the one compared with (BOS). Gradient
    flows to both sides: the first token is not detached, as in the released code. NaN where no later token counts.
    """
    real = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device) if mask is None else mask.bool()
    first = real.int().argmax(-1)
    start = states[torch.arange(len(states), device=states.device), first]
    cosine = torch.nn.functional.cosine_similarity(states.float(), start.float()[:, None], dim=-1)
    later = real & (torch.arange(states.shape[1], device=states.device) > first[:, None])
    return (cosine.square() * later).sum() / later.sum()


def decorrelation(
    hidden_states: Sequence[States], mask: Mask | None = None, weight: float = 1e4
) -> Float[torch.Tensor, ""]:
    """Return the penalty on states that point along BOS: ``weight`` times its mean over the outputs of blocks 0..L-2.

    Args:
        hidden_states: what a model returns under ``output_hidden_states=True``: the embeddings, then the output of each
            block, the last one behind the final norm. The first and the last entry are left out.
        mask: tokens that count: BOS and everything that is not to be predicted (the released code leaves the transcript
            out), never padding.
        weight: lambda of the paper, 10,000; large early in training, so log both terms.

    Source: Anand et al. 2026 (anand2026). Squared cosines push tokens that point against BOS away as well.

    Raises:
        PromptError: fewer than three states.
    """
    if len(hidden_states) < 3:
        raise PromptError(
            f"decorrelation: {len(hidden_states)} hidden states. Give what the model returns under "
            "output_hidden_states=True; the first and the last of them are left out."
        )
    parts = [first_token_alignment(states, mask) for states in hidden_states[1:-1]]
    return weight * torch.stack(parts).mean()
