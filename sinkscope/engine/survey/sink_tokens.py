"""Which heads have a sink, and which tokens are sinks, counted over many prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sinkscope.engine.survey.accumulators import ExactSum
from sinkscope.engine.survey.layout import SurveyLayout
from sinkscope.metrics.base import even_attention
from sinkscope.models.backends.base import AttentionSite
from sinkscope.prompts import Batch, Prompts

THRESHOLD = 0.3
"""Key mass above which a token is a sink of a head (Gu et al. 2025); it takes 2 over it rows to tell."""
EXAMPLES = 3
"""Occurrences that are kept of each token that was a sink, the first ones of the corpus."""
CONTEXT = 6
"""Tokens on either side of an example."""

Example = tuple[int, int, str]
"""Number of the prompt, position, text around the token."""


class SinkTokens:
    """Counts per head and per token id; its size grows with the vocabulary, not with the prompts.

    The first token of a prompt and all later ones are counted apart (axis ``place``), since a first token is a sink by
    its position. As in :func:`sinkscope.metrics.sink_mask`, the last keys of a decoder do not count, as too few queries
    see them, nor do positions where evenly spread attention passes the threshold.
    """

    def __init__(self, layout: SurveyLayout, vocabulary: int) -> None:
        self.layout = layout
        depth = len(layout.kinds)
        self.head_hits = np.zeros((2, depth, layout.calls, layout.heads), dtype=np.int64)
        self.head_prompts = np.zeros((depth, layout.heads), dtype=np.int64)
        self.occurrences = np.zeros((2, vocabulary), dtype=np.int64)
        self.hits = np.zeros((2, vocabulary), dtype=np.int64)
        self.mass = ExactSum.zeros((2, vocabulary))
        self.examples: dict[int, list[Example]] = {}
        self.texts: dict[int, str] = {}
        self._open: tuple[Batch, NDArray[np.bool_], NDArray[np.int64], NDArray[np.float64]] | None = None

    def add(self, mass: torch.Tensor, batch: Batch, at: AttentionSite) -> None:
        """Add the key mass (prompt, head, key) of one attention call; the calls of a batch follow each other."""
        values = mass.detach().float().cpu().numpy()
        if self._open is None or self._open[0] is not batch:
            countable = self._countable(batch.real.cpu().numpy())
            self._open = batch, countable, np.zeros(countable.shape, np.int64), np.zeros(countable.shape)
        _, countable, hits, total = self._open
        over = (values > np.float32(THRESHOLD)) & countable[:, None]
        hits += over.sum(1)
        total += np.nan_to_num(values).astype(np.float64).sum(1)
        here = (at.layer, at.call, slice(0, values.shape[1]))
        self.head_hits[(0, *here)] += (over[..., 0]).sum(0)
        self.head_hits[(1, *here)] += (over[..., 1:].any(-1) & countable[:, None, 0]).sum(0)
        if at.call == 0:
            self.head_prompts[at.layer, : values.shape[1]] += countable[:, 0].sum()

    def _countable(self, real: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Say at which tokens (prompt, key) a sink can be told from none."""
        found = np.zeros(real.shape, dtype=bool)
        for row, length in enumerate(real.sum(-1).tolist()):
            even = even_attention(length, self.layout.causal)
            kept = even <= THRESHOLD
            if self.layout.causal:
                kept &= np.arange(length) <= length - int(np.ceil(2 / THRESHOLD))
            found[row, :length] = kept & kept[:1]
        return found

    def close(self, prompts: Prompts, numbers: Sequence[int]) -> None:
        """Count what the last batch gave by token; ``numbers`` are those of its ``prompts`` in the corpus."""
        if self._open is None:
            return
        batch, countable, hits, total = self._open
        self._open = None
        ids = batch.inputs["input_ids"].cpu().numpy()
        place = np.broadcast_to(np.arange(ids.shape[1]) > 0, ids.shape).astype(np.int64)
        vocabulary = self.occurrences.shape[1]
        found, of = np.unique(place[countable] * vocabulary + ids[countable], return_inverse=True)
        at = found // vocabulary, found % vocabulary
        self.occurrences[at] += np.bincount(of, minlength=len(found))
        self.hits[at] += np.bincount(of, hits[countable], len(found)).astype(np.int64)
        self.mass.add(np.bincount(of, total[countable], len(found)).astype(np.float64), at)
        for row, position in np.argwhere(hits > 0).tolist():
            which = batch.indices[row]
            self._keep(int(ids[row, position]), numbers[which], position, prompts.tokens[which])

    def _keep(self, token: int, number: int, position: int, tokens: Sequence[str]) -> None:
        held = self.examples.setdefault(token, [])
        if len(held) == EXAMPLES and held[-1][:2] <= (number, position):
            return
        self.texts.setdefault(token, tokens[position])
        before, after = tokens[max(0, position - CONTEXT) : position], tokens[position + 1 : position + 1 + CONTEXT]
        around = f"{''.join(before)}[{tokens[position]}]{''.join(after)}"
        self.examples[token] = sorted([*held, (number, position, around)])[:EXAMPLES]

    def join(self, other: SinkTokens) -> None:
        """Add the counts of other prompts."""
        for name in ("head_hits", "head_prompts", "occurrences", "hits"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.mass.limbs += other.mass.limbs
        self.texts = other.texts | self.texts
        for token, examples in other.examples.items():
            self.examples[token] = sorted([*self.examples.get(token, []), *examples])[:EXAMPLES]

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the counts, to be stored."""
        return {
            "head_hits": self.head_hits, "head_prompts": self.head_prompts, "occurrences": self.occurrences,
            "hits": self.hits, "mass": self.mass.limbs,
        }  # fmt: skip

    def about(self) -> dict[str, Any]:
        """Return the texts and examples as JSON data, to be stored."""
        ordered = sorted(self.examples)
        return {
            "texts": {str(token): self.texts[token] for token in ordered},
            "examples": {str(token): self.examples[token] for token in ordered},
        }

    def restore(self, arrays: Mapping[str, NDArray[np.generic]], about: Mapping[str, Any]) -> None:
        """Take up what was stored."""
        for name in ("head_hits", "head_prompts", "occurrences", "hits"):
            setattr(self, name, np.asarray(arrays[name], dtype=np.int64))
        self.mass = ExactSum(np.asarray(arrays["mass"], dtype=np.int64))
        self.texts = {int(token): text for token, text in about["texts"].items()}
        self.examples = {
            int(token): [(int(n), int(p), str(text)) for n, p, text in held]
            for token, held in about["examples"].items()
        }  # fmt: skip
