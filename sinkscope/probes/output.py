"""Probes of the model's output: loss per token and logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float

from sinkscope.errors import ModelError, ProbeError
from sinkscope.models.backends.base import Tower
from sinkscope.probes.base import Probe, ProbeContext, whole_numbers
from sinkscope.schema import Variable

__all__ = ["Logits", "TokenLoss"]

CHUNK = 256
"""Positions whose log-softmax is formed at once."""


@dataclass(frozen=True)
class TokenLoss(Probe):
    """Cross-entropy of the next token at each query, in nats. Makes ``token_loss`` (prompt, query).

    Finite on exactly T - 1 queries of a prompt of T tokens.
    """

    variables: ClassVar[Mapping[str, Variable]] = {
        "token_loss": Variable(("prompt", "query"), "nat", "cross-entropy of the next token"),
    }
    logits: ClassVar[str | None] = "all"

    def check(self, tower: Tower) -> None:
        """Only a decoder predicts the next token."""
        if not tower.decodes:
            raise ProbeError("TokenLoss(): this model is an encoder and predicts no next token. Use Logits() instead.")

    def at_end(
        self, logits: Float[torch.Tensor, "batch position vocab"], context: ProbeContext
    ) -> dict[str, torch.Tensor]:
        """Return the loss of token t + 1 at query t, over real tokens."""
        ids, real = context.batch.inputs["input_ids"], context.batch.real
        loss = torch.full(real.shape, torch.nan, device=logits.device)
        for start in range(0, real.shape[1] - 1, CHUNK):
            stop = min(start + CHUNK, real.shape[1] - 1)
            # In bfloat16 a loss has two digits; a vocabulary of 150,000 in float32 does not fit for all positions at
            # once.
            scores = logits[:, start:stop].float()
            picked = scores.gather(-1, ids[:, start + 1 : stop + 1, None])[..., 0]
            loss[:, start:stop] = scores.logsumexp(-1) - picked
        # With padding on the left the token before the prompt is none: both ends of a prediction must be real.
        target = torch.zeros_like(real)
        target[:, :-1] = real[:, :-1] & real[:, 1:]
        refuse_overflow(loss[target], "TokenLoss()")
        return {"token_loss": loss.masked_fill(~target, torch.nan)}


@dataclass(frozen=True)
class Logits(Probe):
    """Output logits at ``positions``: ``"last"``, ``"all"``, or positions from the first real token.

    Makes ``logits`` (prompt, position, vocab); ``position`` is labelled by the tokens' positions, counted from the end
    (-1) for ``"last"``. A model whose output has one vector per prompt (a classifier) gives that vector.
    """

    positions: str | Sequence[int] = "last"
    variables: ClassVar[Mapping[str, Variable]] = {
        "logits": Variable(("prompt", "position", "vocab"), "logit", "output logits"),
    }
    logits: ClassVar[str | None] = "all"

    def __post_init__(self) -> None:
        if isinstance(self.positions, str):
            if self.positions not in ("last", "all"):
                raise ProbeError(f"Logits(positions={self.positions!r}): use 'last', 'all' or a list of positions.")
            return
        object.__setattr__(self, "positions", whole_numbers(self.positions, "Logits(positions"))
        if not self.positions:
            raise ProbeError("Logits(positions=[]): no position is named. Use 'last', 'all' or a list of positions.")

    def labels(self, longest: int) -> Mapping[str, Sequence[Any]]:
        """Label positions from the first real token, the last one by -1."""
        if self.positions == "last":
            return {"position": [-1]}
        return {"position": range(longest) if self.positions == "all" else [int(p) for p in self.positions]}

    def at_end(
        self, logits: Float[torch.Tensor, "batch position vocab"], context: ProbeContext
    ) -> dict[str, torch.Tensor]:
        """Take the rows asked for."""
        if logits.ndim == 2:
            return {"logits": logits[:, None].float()}
        real = context.batch.real
        rows: list[torch.Tensor] = []
        for scores, mask in zip(logits, real, strict=True):
            # A model may give the logits of the last positions alone; they line up with the end of the mask.
            own = scores[mask[-scores.shape[0] :]] if scores.shape[0] != int(mask.sum()) else scores
            if self.positions == "all":
                refuse_overflow(own, "Logits()")
                padded = own.new_full((int(real.sum(-1).max()), own.shape[-1]), torch.nan, dtype=torch.float32)
                padded[: len(own)] = own.float()
                rows.append(padded)
                continue
            wanted = [-1] if self.positions == "last" else [int(p) for p in self.positions]
            wrong = [p for p in wanted if not -len(own) <= p < len(own)]
            if wrong:
                raise ProbeError(
                    f"Logits(positions={list(self.positions)}): position {wrong[0]} is beyond a prompt of {len(own)} "
                    "tokens. Use positions inside every prompt."
                )
            rows.append(own[wanted].float())
            refuse_overflow(rows[-1], "Logits()")
        return {"logits": torch.stack(rows)}


def refuse_overflow(found: torch.Tensor, asked: str) -> None:
    """Refuse logits, or what was made of them, that overflowed in the output layer behind a finite residual stream.

    A logit of minus infinity is no overflow: a model may rule a token out with it.
    """
    if found.numel() and not bool(found.amax() < torch.inf):
        raise ModelError(
            f"{asked}: the output logits are not finite (NaN or infinite) though the residual stream is. "
            "Use a wider dtype (float32 or bfloat16 instead of float16)."
        )
