"""The Bigram-Backcopy task (Guo et al. 2024, arXiv 2410.13835): its chain, its sequences, its risks.

A sequence starts with ``<s>``; its first token is drawn from the stationary law without triggers; after a trigger the
token before the trigger comes again, after any other token the next one is drawn from the bigram law. A head is needed
on triggers and idle on everything else.
"""

from __future__ import annotations

import dataclasses
import string

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray

SYMBOLS = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+-"
"""Names of the tokens in order of frequency: the k triggers are the first k letters."""


@dataclasses.dataclass(frozen=True)
class Chain:
    """A bigram chain over ``vocab`` tokens, ids in falling order of frequency; ``<s>`` is id ``vocab``.

    Attributes:
        marginal: (vocab,) stationary law of the bigram chain.
        conditional: (vocab + 1, vocab) law of the next token; the row of ``<s>`` is the marginal without triggers.
        triggers: Number of triggers: ids 0 to ``triggers`` - 1.
    """

    marginal: NDArray[np.float64]
    conditional: NDArray[np.float64]
    triggers: int

    @property
    def bos(self) -> int:
        """Id of ``<s>``."""
        return len(self.marginal)

    @property
    def vocab_size(self) -> int:
        """Number of token ids, ``<s>`` included."""
        return len(self.marginal) + 1

    def entropy(self) -> NDArray[np.float64]:
        """Return the entropy in nats of each row of ``conditional``: what the best model loses after that token."""
        p = self.conditional
        return -(p * np.log(np.where(p > 0, p, 1.0))).sum(-1)


def zipf_chain(vocab: int = 64, triggers: int = 8, seed: int = 0, spread: float = 1.5) -> Chain:
    """Make a chain with Zipf-like frequencies: ``P(y|x)`` proportional to ``exp(spread * normal) / (rank(y) + 2)``.

    Stands in for the character bigrams of Shakespeare's text in the paper, which cannot be counted on to be there.
    """
    rng = np.random.default_rng(seed)
    weights = np.exp(spread * rng.standard_normal((vocab, vocab))) / (np.arange(vocab) + 2.0)
    conditional = weights / weights.sum(-1, keepdims=True)
    marginal = np.full(vocab, 1.0 / vocab)
    for _ in range(500):
        marginal = marginal @ conditional
    order = np.argsort(-marginal, kind="stable")
    marginal, conditional = marginal[order], conditional[np.ix_(order, order)]
    first = marginal.copy()
    first[:triggers] = 0.0
    return Chain(marginal, np.vstack([conditional, first / first.sum()]), triggers)


def sample(chain: Chain, batch: int, length: int, rng: np.random.Generator) -> Int[torch.Tensor, "batch key"]:
    """Draw sequences of ``length`` tokens, ``<s>`` included."""
    cumulative = chain.conditional.cumsum(-1)
    out = np.full((batch, length), chain.bos, dtype=np.int64)
    for t in range(1, length):
        last = out[:, t - 1]
        drawn = (rng.random(batch)[:, None] > cumulative[last]).sum(-1).clip(max=chain.bos - 1)
        out[:, t] = np.where(last < chain.triggers, out[:, t - 2], drawn) if t > 1 else drawn
    return torch.from_numpy(out)


def risks(chain: Chain, ids: Int[torch.Tensor, "batch key"], logits: Float[torch.Tensor, "batch key vocab"]) -> dict:
    """Risks of a model on both halves of the task, in nats.

    Args:
        chain: The chain the sequences come from.
        ids: Input tokens.
        logits: The model's logits at each of them.

    Returns:
        ``backcopy_risk``: cross-entropy on trigger positions, where the best possible is 0. ``bigram_risk``:
        cross-entropy against the chain's law on all other positions; ``bigram_excess``: less the entropy of that law.
    """
    log_p = torch.log_softmax(logits.double(), -1)
    trigger = ids < chain.triggers
    previous = torch.cat([ids[:, :1], ids[:, :-1]], 1)
    copy = -log_p.gather(-1, previous[..., None])[..., 0]
    law = torch.from_numpy(chain.conditional)[ids]
    cross = -(law * log_p[..., : chain.bos]).sum(-1)
    excess = cross - torch.from_numpy(chain.entropy())[ids]
    return {
        "backcopy_risk": float(copy[trigger].mean()),
        "bigram_risk": float(cross[~trigger].mean()),
        "bigram_excess": float(excess[~trigger].mean()),
    }


def sink_logit_gap(
    logits: Float[torch.Tensor, "batch query key"], ids: Int[torch.Tensor, "batch query"], vocab: int
) -> Float[torch.Tensor, " vocab"]:
    """Sink logit gap by token of the query: logit of key 0 minus the mean over keys 1 .. i-1 (Guo et al. 2024).

    The query's own key is left out; queries 0 and 1 have no such mean and are dropped. NaN for tokens that never occur.
    """
    length = logits.shape[-1]
    index = torch.arange(length)
    others = (index[None, :] >= 1) & (index[None, :] < index[:, None])
    mean = logits.masked_fill(~others, 0).sum(-1) / others.sum(-1)
    gap = logits[..., 0] - mean
    valid = (index >= 2).expand_as(ids)
    total = torch.zeros(vocab, dtype=gap.dtype).index_add(0, ids[valid], gap[valid])
    count = torch.zeros(vocab, dtype=gap.dtype).index_add(0, ids[valid], torch.ones_like(gap[valid]))
    return total / torch.where(count > 0, count, torch.nan)
