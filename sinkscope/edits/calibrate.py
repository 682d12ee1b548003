"""ACT: damp the attention sinks of each head other than the initial token."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float

from sinkscope.attention.primitives import Tally
from sinkscope.attention.tile import Tile
from sinkscope.edits.base import AttentionEdit
from sinkscope.edits.call import EditedCall


@dataclass
class FoundKeys:
    """Keys found in each head of the prompt, by layer and call: (batch, head, key)."""

    at: dict[tuple[int, int], Bool[torch.Tensor, "batch head key"]] = field(
        default_factory=dict[tuple[int, int], torch.Tensor]
    )


@dataclass
class DampSinks:
    """Multiply the weight on detected keys by ``beta`` and give what is freed to the others (Yu et al. 2024, ACT)."""

    sinks: Bool[torch.Tensor, "batch head key"]
    rows: Bool[torch.Tensor, "batch query"] | None
    beta: float
    tally: Tally

    def __call__(
        self, weights: Float[torch.Tensor, "flat query key"], tile: Tile
    ) -> Float[torch.Tensor, "flat query key"]:
        """Return the weights with the sinks damped; rows keep their sums."""
        # Per head: a key that is a sink in one head is an ordinary token in the next.
        sinks = self.sinks[tile.batch, tile.head][:, None, tile.cols].to(weights.dtype)
        share = (weights * sinks).sum(-1)
        rest = (weights * (1 - sinks)).sum(-1)
        where = share > 0
        if self.rows is not None:
            where = where & self.rows[tile.batch, tile.rows]
        # No other key could receive what is freed; damping alone would change the row sum.
        self.tally.spared += int((where & (rest <= 0)).sum())
        where = where & (rest > 0)
        fired = int(where.sum())
        if not fired:
            return weights
        self.tally.fired += fired
        self.tally.touched += fired
        gain = 1 + (1 - self.beta) * share / rest.clamp(min=1e-38)
        new = weights * torch.where(sinks > 0, torch.full_like(gain, self.beta)[..., None], gain[..., None])
        return torch.where(where[..., None], new, weights)


@dataclass(frozen=True, repr=False)
class CalibrateSinks(AttentionEdit):
    """Damp the sinks of each head other than the initial token (Yu et al. 2024, ACT).

    Per prompt and head, sinks are keys whose mean attention over the queries that see them (``key_mass``, as the edits
    standing before this one leave it) exceeds ``threshold`` (``rule="absolute"``, the released code) or ``threshold``
    over the number of tokens of the prompt (``rule="relative"``, the paper: a threshold of 5 is five times an even
    share, and the same as 0.1 for 50 tokens). Their weight is multiplied by ``beta``; what is freed goes
    to all other keys, the initial token among them, in proportion. ``exempt="initial"`` spares the first token;
    ``"first_hit"`` (the released code) spares the first detected key, whichever it is. A row that sees only sinks is
    left unchanged. At decoding steps the sinks found in the prompt hold.
    """

    papers = ("yu2024",)
    conditional: ClassVar[bool] = True
    threshold: float = 0.1
    _: KW_ONLY
    beta: float = 0.4
    exempt: str = "initial"
    rule: str = "absolute"

    def __post_init__(self) -> None:
        """Check the numbers, the choice and the selectors."""
        self._number("threshold", low=0.0)
        self._number("beta", 0.0, 1.0)
        self._choice("exempt", ("initial", "first_hit"))
        self._choice("rule", ("absolute", "relative"))
        super().__post_init__()

    @property
    def identity(self) -> bool:
        """Beta 1."""
        return self.beta == 1.0

    def change_attention(self, call: EditedCall) -> None:
        """Find the sinks in a first pass over the call, then damp them."""
        start, length = call.call.mask.kv_offset, call.call.key.shape[2]
        known = call.state(FoundKeys).at
        if call.diagonal <= 0 or call.place not in known:
            known[call.place] = torch.nn.functional.pad(self._detect(call), (start, 0))
        found = known[call.place]
        sinks = torch.nn.functional.pad(found, (0, max(0, start + length - found.shape[-1])))
        sinks = sinks[..., start : start + length]
        if bool(sinks.any()):
            call.written.weights.append(DampSinks(sinks, call.queries(), self.beta, call.tally))

    def _detect(self, call: EditedCall) -> Bool[torch.Tensor, "batch head key"]:
        # ACT looks before it acts: the same pass, as the edits before this one leave it, then the damped one.
        stats = call.statistics("key_sum", "key_viewers")
        mass = stats["key_sum"] / stats["key_viewers"].clamp(min=1)[:, None]
        real = call.along_keys(call.tokens.batch.real, True)
        least = torch.full((len(real), 1, 1), self.threshold, device=real.device)
        if self.rule == "relative":
            least = least / real.sum(-1).clamp(min=1)[:, None, None]
        found = (mass > least) & real[:, None] & call.heads[None, :, None]
        if self.exempt == "initial":
            return found & ~call.along_keys(call.tokens.named("first"), False)[:, None]
        # The released code spares the first sink it meets, also where the first token is none.
        return found & (found.long().cumsum(-1) > 1)
