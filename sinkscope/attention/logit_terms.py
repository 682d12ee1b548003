"""Edits of scores and weights as the kernels of the GPU path take them: numbers added to the logits.

A log-bias adds to the logits before the softmax. A weight edit that multiplies by f after it adds log f to the logits
behind the denominator: the weight exp(t - total) becomes exp(t + log f - total). Hidden and dropped keys are logits of
minus 1e30. So both are the same sum of products, a number of each key times 0 or 1 of each row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int

from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.masks import HIDDEN_LOGIT
from sinkscope.attention.primitives import DropWeights, LogBias
from sinkscope.attention.spans import Spans

MOST = 4
"""Most terms of one call: each is a constant of the kernel, which is compiled for their number."""

NO_KEY = -(1 << 30)
"""Key column of row 0 where no query's own key is left out."""


def serves(edits: CallEdits) -> bool:
    """Return whether these edits have this form.

    Biases that stand behind a weight edit, and functions of whole rows, have none. Rows that a hiding bias would leave
    without a key are found for each bias by itself, so there may be one.
    """
    drops = [each for each in edits.weights if isinstance(each, DropWeights) and each.factor >= 0]
    biases = edits.log_biases
    if biases is None or len(drops) != len(edits.weights):
        return False
    few = len(biases) + len(drops) <= MOST and sum(bias.hide for bias in biases) <= 1
    return few and not edits.blockwise and set(edits.normalisers) <= {"softmax1"}


@dataclass(frozen=True)
class LogitTerms:
    """Term s adds ``step[s]`` to the logits of the keys in the rows where ``acts[s]`` is 1.

    The first ``before`` of them stand before the softmax. ``own`` is the key column of row 0, whose diagonal is left
    out, or :data:`NO_KEY`.
    """

    step: Float[torch.Tensor, "term batch head key"]
    acts: Float[torch.Tensor, "term batch head query"]
    own: Int[torch.Tensor, " term"]
    before: int

    @staticmethod
    def of(call: Call, edits: CallEdits, spans: Spans) -> LogitTerms | None:
        """Return the terms of edits that :func:`serves` accepted, None where there are none; counts what they touch."""
        targets = [*edits.biases, *(each for each in edits.weights if isinstance(each, DropWeights))]
        if not targets:
            return None
        seen = _Seen(call, spans)
        terms = [seen.term(target) for target in targets]
        step, acts = (torch.stack(part) for part in zip(*terms, strict=True))
        own = [target.diagonal if target.keep_self else NO_KEY for target in targets]
        return LogitTerms(step, acts, torch.tensor(own, device=step.device), len(edits.biases))


class _Seen:
    """Which keys the rows of a call see while its edits are taken in one by one."""

    def __init__(self, call: Call, spans: Spans) -> None:
        self.shape = call.query.shape[:3]
        self.device, self.spans = call.query.device, spans
        self.hidden: tuple[LogBias, Bool[torch.Tensor, "batch head query"]] | None = None

    def term(self, target: LogBias | DropWeights) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (batch, head, key) to add and (batch, head, query) rows to add it to; count the rows."""
        acts = torch.ones(self.shape, dtype=torch.bool, device=self.device)
        if target.queries is not None:
            acts = acts & target.queries[:, None]
        live = self._live(target)
        if isinstance(target, LogBias) and target.hides:
            left_empty = acts & (live > 0) & (live == self._count(torch.ones_like(target.keys)))
            target.tally.spared += int(left_empty.sum())
            acts = acts & ~left_empty
            self.hidden = target, acts
        # Counting reads the device, so it stops at the first call that was touched.
        target.tally.touched = target.tally.touched or int((acts & (live > 0)).sum())
        return torch.where(target.keys, self._number(target)[None, :, None], 0.0), acts.float()

    def _number(self, target: LogBias | DropWeights) -> Float[torch.Tensor, " head"]:
        if isinstance(target, LogBias) and not target.hides:
            return target.value.float()
        factor = 0.0 if isinstance(target, LogBias) else target.factor
        number = math.log(factor) if factor > 0 else HIDDEN_LOGIT
        return torch.full((self.shape[1],), number, device=self.device)

    def _live(self, target: LogBias | DropWeights) -> Int[torch.Tensor, "batch head query"]:
        """Return how many of the keys of a target each row sees by now."""
        live = self._count(target.keys, target)
        if self.hidden is None:
            return live
        bias, acts = self.hidden
        gone = self._count(target.keys & bias.keys, target, bias)
        return live - torch.where(acts, gone, 0)

    def _count(
        self, keys: Bool[torch.Tensor, "batch head key"], *targets: LogBias | DropWeights
    ) -> Int[torch.Tensor, "batch head query"]:
        """Return how many of these keys each row sees, without its own one where a target leaves that out."""
        spans, (batch, heads, rows) = self.spans, self.shape
        if spans.real is not None:
            keys = keys & spans.real[:, None]
        before = torch.nn.functional.pad(keys.int().cumsum(-1), (1, 0))
        first, stop = (each[:, None].expand(-1, heads, -1).long() for each in (spans.first, spans.stop))
        count = before.gather(2, stop) - before.gather(2, first)
        left_out: Sequence[int] = [target.diagonal for target in targets if target.keep_self]
        if not left_out:
            return count
        own = torch.arange(rows, device=self.device).expand(batch, heads, -1) + left_out[0]
        mine = keys.gather(2, own.clamp(0, keys.shape[2] - 1)) & (own >= first) & (own < stop)
        return count - mine.int()
