"""LocoRE: the last words that the model has written get more attention while it writes the next one."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch

from sinkscope.attention.tile import Tile
from sinkscope.edits.base import AttentionEdit
from sinkscope.edits.call import EditedCall


@dataclass(frozen=True, repr=False)
class BoostRecent(AttentionEdit):
    """Multiply attention to the last ``window`` generated tokens by ``1 + beta`` (LocoRE, Zhang et al. 2026).

    Of each row the generated tokens less than ``window`` before it, its own among them; the prompt's keys keep their
    weight, so the first step, which has no generated token, is as it was. Rows then sum to what they did;
    ``renormalise=False`` leaves them larger: the paper does not say which. Its tables have beta at .15 to .2; its
    window was not found, 10 is this package's own.
    """

    conditional: ClassVar[bool] = True
    papers = ("zhang2026",)
    beta: float = 0.15
    _: KW_ONLY
    window: int = 10
    renormalise: bool = True

    def __post_init__(self) -> None:
        """Check the numbers and the selectors."""
        self._number("beta", low=-1.0, hint="Use MaskKeys('generated') to hide what was generated.")
        self._count("window")
        super().__post_init__()

    @property
    def identity(self) -> bool:
        """Beta 0."""
        return self.beta == 0.0

    def change_attention(self, call: EditedCall) -> None:
        """Multiply the weights of what was generated lately."""
        written = call.along_keys(call.tokens.named("generated"), True)
        if not bool(written.any()):
            return
        device = written.device
        rows = torch.arange(call.call.query.shape[2], device=device) + call.diagonal
        columns = torch.arange(written.shape[1], device=device)

        def boosted(weights: torch.Tensor, tile: Tile) -> torch.Tensor:
            before = rows[tile.rows][:, None] - columns[tile.cols][None]
            near = (before >= 0) & (before < self.window)
            chosen = near & written[tile.batch][:, None, tile.cols]
            new = torch.where(chosen, weights * (1 + self.beta), weights)
            if not self.renormalise:
                return new
            return new * (weights.sum(-1, keepdim=True) / new.sum(-1, keepdim=True).clamp(min=1e-30))

        call.change_weights(boosted)
