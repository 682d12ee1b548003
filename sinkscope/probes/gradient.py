"""Probes of gradients with respect to attention weights: what a scalar of the output owes to each weight."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float

from sinkscope.arguments import whole_numbers
from sinkscope.errors import ProbeError
from sinkscope.models.backends.base import Tower
from sinkscope.probes.attention import AttentionMap
from sinkscope.probes.base import Probe, ProbeContext
from sinkscope.schema import Variable

__all__ = ["AttentionGradient"]

Maps = Float[torch.Tensor, "batch head query key"]


@dataclass(frozen=True)
class GradientProbe(Probe, listed=False):
    """A probe that needs the gradient of a scalar with respect to attention weights: a second pass, with autograd."""

    @property
    @abstractmethod
    def gradient_layers(self) -> tuple[int, ...]:
        """Layers whose weights the gradient is taken of."""

    @abstractmethod
    def objective(
        self, logits: Float[torch.Tensor, "batch position vocab"], context: ProbeContext
    ) -> Float[torch.Tensor, ""]:
        """Return the scalar, a sum over the prompts of the batch."""

    @abstractmethod
    def at_gradient(self, weights: Maps, gradient: Maps, context: ProbeContext) -> dict[str, torch.Tensor]:
        """Return the variables of one layer, batch first."""


@dataclass(frozen=True)
class AttentionGradient(GradientProbe):
    """Weight times gradient of a scalar with respect to the weight, for the named layers and heads.

    Makes ``attention_gradient`` (prompt, layer, head, query, key); ``weighted=False`` leaves the weight out. ``target``
    is the scalar of each prompt: ``"top"``, the log probability of the most likely next token at the last token;
    token ids (one for all prompts, or one each), the log probability of that token there; ``"loss"``, the mean
    next-token loss, in nats, at ``queries``; or a function of a prompt's logits (query, vocab) and token ids (query).

    By causality a row after the one whose logits are used has gradient 0: that of a token at P is read with the prompt
    cut before P. Keeps maps, so memory is the square of the length, and autograd keeps every layer above the first.
    """

    layers: Sequence[int]
    heads: Sequence[int]
    target: Any = "top"
    queries: Any = "all"
    weighted: bool = True
    variables: ClassVar[Mapping[str, Variable]] = {
        "attention_gradient": Variable(
            ("prompt", "layer", "head", "query", "key"), "nat", "attention weight times the gradient of a scalar to it"
        ),
    }
    papers = ("zhang2026", "zhang2025")

    def __post_init__(self) -> None:
        named = AttentionMap(self.layers, self.heads)
        object.__setattr__(self, "layers", named.layers)
        object.__setattr__(self, "heads", named.heads)
        target: Any = self.target
        if target in ("top", "loss") if isinstance(target, str) else callable(target):
            return
        # One id for all prompts, or one for each: the same id may come twice.
        ids = whole_numbers(target)
        if not ids or max(map(abs, ids)) >= 1 << 31:
            raise ProbeError(
                f"AttentionGradient(target={target!r:.40}): use 'top', 'loss', token ids, or a function of logits and "
                "ids."
            )
        object.__setattr__(self, "target", tuple(ids))

    def check(self, tower: Tower) -> None:
        """Layers and heads must exist, and the tower must predict a token."""
        AttentionMap(self.layers, self.heads).check(tower)
        if not tower.causal:
            raise ProbeError("AttentionGradient(): this model is an encoder and predicts no next token.")

    def labels(self, longest: int) -> Mapping[str, Sequence[Any]]:
        """Name the layers and heads that are kept."""
        return {"layer": self.layers, "head": self.heads}

    @property
    def gradient_layers(self) -> tuple[int, ...]:
        """The layers named."""
        return tuple(self.layers)

    def objective(
        self, logits: Float[torch.Tensor, "batch position vocab"], context: ProbeContext
    ) -> Float[torch.Tensor, ""]:
        """Add the scalars of the prompts up: a prompt's weights move its own scalar alone."""
        ids = context.batch.inputs["input_ids"]
        chosen = context.chosen(self.queries, self, "queries")
        total = logits.new_zeros((), dtype=torch.float32)
        for row, real in enumerate(context.batch.real):
            scores = logits[row][real].float()
            total = total + self._scalar(scores, ids[row][real], chosen[row][real], context.batch.indices[row])
        return total

    def _scalar(self, scores: torch.Tensor, ids: torch.Tensor, chosen: torch.Tensor, prompt: int) -> torch.Tensor:
        target: Any = self.target
        if callable(target):
            scalar: Any = target
            return scalar(scores, ids)
        logs = torch.log_softmax(scores, -1)
        if target == "top":
            return logs[-1].max()
        if target == "loss":
            rows = chosen[:-1].nonzero()[:, 0]
            if not len(rows):
                raise ProbeError(
                    f"AttentionGradient(queries={self.queries!r:.40}): prompt {prompt} has no such token before its "
                    "last one. Choose queries whose next token is in the prompt."
                )
            return -logs[rows, ids[rows + 1]].mean()
        if len(target) > 1 and prompt >= len(target):
            raise ProbeError(
                f"AttentionGradient(target=[{len(target)} ids]): there is none for prompt {prompt}. Give one per "
                "prompt, or one for all."
            )
        wanted = target[prompt] if len(target) > 1 else target[0]
        if not 0 <= wanted < logs.shape[-1]:
            raise ProbeError(f"AttentionGradient(target={wanted}): the vocabulary has ids 0..{logs.shape[-1] - 1}.")
        return logs[-1, wanted]

    def at_gradient(self, weights: Maps, gradient: Maps, context: ProbeContext) -> dict[str, torch.Tensor]:
        """Keep the named heads."""
        found = weights * gradient if self.weighted else gradient
        return {"attention_gradient": found[:, list(self.heads)]}
