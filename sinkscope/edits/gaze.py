"""GIFT: attention to the image multiplied by where the gaze moved, and to the question by the same factor."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float

from sinkscope.attention.tile import Tile
from sinkscope.attention.view import Ask
from sinkscope.edits.base import AttentionEdit
from sinkscope.edits.call import EditedCall
from sinkscope.edits.selectors import tokens_of
from sinkscope.edits.values import Numbers
from sinkscope.errors import EditError
from sinkscope.prompts.selection import positions

Rows = Float[torch.Tensor, "batch head key"]
Keys = Bool[torch.Tensor, "batch key"]


def amplified(rows: Rows, factor: Float[torch.Tensor, "batch key"], image: Keys, question: Keys, beta: float) -> Rows:
    """Return one row of each head as GIFT makes it.

    The half of the heads with most attention on the image multiply it by ``factor``; the half with most on the question
    multiply that by ``beta`` times what the image gained in the first half; rows then sum to what they did. Of heads
    equal to six digits the last.
    """
    count = max(1, rows.shape[1] // 2)
    before, asked = (torch.einsum("bhk,bk->bh", rows, mask.to(rows.dtype)) for mask in (image, question))
    looks, reads = (_largest(mass, count) for mass in (before, asked))
    new = torch.where(looks[..., None] & image[:, None], rows * factor[:, None], rows)
    after = torch.einsum("bhk,bk->bh", new, image.to(rows.dtype))
    gain = (after * looks).sum(-1) / (before * looks).sum(-1).clamp(min=1e-30)
    new = torch.where(reads[..., None] & question[:, None], new * (beta * gain)[:, None, None], new)
    return new * (rows.sum(-1, keepdim=True) / new.sum(-1, keepdim=True).clamp(min=1e-30))


def _largest(mass: Float[torch.Tensor, "batch head"], count: int) -> Bool[torch.Tensor, "batch head"]:
    chosen = torch.sort(mass.round(decimals=6), dim=-1, stable=True).indices[:, -count:]
    return torch.zeros_like(mass, dtype=torch.bool).scatter(-1, chosen, True)


@dataclass(frozen=True, repr=False)
class AmplifyGaze(AttentionEdit):
    """Multiply attention to the image by ``exp(alpha S)`` and to the question by what the image gained (GIFT).

    ``saliency`` S is an array (prompt, key), 0 outside the image, such as ``sk.metrics.gaze_shift`` at the image's
    tokens; one row serves every prompt. In the last row alone, of the prompt and then of each step; all heads together
    choose the halves that look and that read, so ``heads`` and ``queries`` do not apply. ``question`` selects the
    question's tokens. The paper uses alpha 5 in layers 12 to 22 of LLaVA-1.5-7B.
    """

    papers = ("gift2026",)
    saliency: Any
    _: KW_ONLY
    alpha: float = 5.0
    beta: float = 1.0
    question: Any = field(default="after_image")

    def __post_init__(self) -> None:
        """Check the numbers and the selectors."""
        self._number("alpha")
        self._number("beta", low=0.0)
        self._set("saliency", Numbers.of(self.saliency, "AmplifyGaze(saliency=...)"))
        if len(self.saliency.shape) != 2:
            raise EditError(f"AmplifyGaze(saliency=...): its shape is {self.saliency.shape}. Give (prompt, key).")
        self._set("question", tokens_of(self.question, self._asked("question")))
        super().__post_init__()
        self._refuse_queries("the last row alone is changed. Leave queries out")
        if self.heads is not None:
            raise EditError(f"{self._asked('heads')}: all heads together choose which look. Leave heads out.")

    @property
    def identity(self) -> bool:
        """Nothing is multiplied by anything but 1."""
        return self.alpha == 0.0 and self.beta == 1.0

    def change_attention(self, call: EditedCall) -> None:
        """Put the new last row in the place of the old one."""
        real = call.along_keys(call.tokens.batch.real, True)
        last = real & (positions(real) == real.sum(-1, keepdim=True) - 1)
        image = call.along_keys(call.tokens.named("image"), False)
        asked = call.tokens.choose(self.question, lambda: self._asked("question"))[:, 0]
        question = call.along_keys(asked, False) & real
        rows = call.statistics(Ask("key_sum", {"queries": last}))["key_sum"]
        factor = torch.exp(self.alpha * self._saliency(call))
        new = amplified(rows, factor, image, question, self.beta)
        count = call.call.query.shape[2]

        def put(weights: torch.Tensor, tile: Tile) -> torch.Tensor:
            here = last[:, -count:][tile.batch][:, tile.rows]
            return torch.where(here[..., None], new[tile.batch, tile.head][:, None, tile.cols], weights)

        call.change_weights(put)

    def _saliency(self, call: EditedCall) -> Float[torch.Tensor, "batch key"]:
        numbers = torch.as_tensor(self.saliency.array(), device=call.call.query.device)
        batch = call.tokens.batch
        if len(numbers) > 1 and max(batch.indices) >= len(numbers):
            raise EditError(f"AmplifyGaze(saliency=...): it holds {len(numbers)} prompts, fewer than there are here.")
        numbers = numbers[list(batch.indices)] if len(numbers) > 1 else numbers.expand(len(batch.real), -1)
        place = positions(batch.real)
        inside = (place >= 0) & (place < numbers.shape[1])
        found = numbers.gather(1, place.clamp(0, numbers.shape[1] - 1)) * inside
        # Beyond the prompt, where generated tokens stand, nothing is salient.
        start, count = call.call.mask.kv_offset, call.call.key.shape[2]
        part = found[:, start : start + count]
        part = torch.nn.functional.pad(part, (0, count - part.shape[1]))
        return part.repeat_interleave(call.call.query.shape[0] // len(part), 0)
