"""Edits of the mask itself: keys behind a query are shown to it, or keys far from it are hidden."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from jaxtyping import Bool

from sinkscope.attention.masks import BLOCK, MaskSpec, with_opened, with_window
from sinkscope.edits.base import AttentionEdit
from sinkscope.edits.call import EditedCall
from sinkscope.edits.selectors import tokens_of
from sinkscope.errors import EditError
from sinkscope.models.backends.base import Tower


@dataclass(frozen=True, repr=False)
class MaskEdit(AttentionEdit, abstract=True):
    """An edit that gives all heads of a layer another mask."""

    def __post_init__(self) -> None:
        """Check the selectors.

        Raises:
            EditError: heads, which share one mask.
        """
        super().__post_init__()
        if self.heads is not None:
            raise EditError(
                f"{self._asked('heads')}: the heads of a layer share one mask. Use layers, or leave it out."
            )

    @abstractmethod
    def new_mask(self, call: EditedCall, before: MaskSpec, queries: Bool[torch.Tensor, "batch query"]) -> MaskSpec:
        """Return the mask that the selected ``queries`` get in place of ``before``."""

    def change_attention(self, call: EditedCall) -> None:
        """Put the new mask in, and count the blocks of rows in which it differs."""
        queries = call.queries()
        if queries is None:
            queries = call.rows(call.tokens.queries.batch.real, True)
        before = call.written.mask or call.call.mask
        after = self.new_mask(call, before, queries)
        columns, every = slice(0, before.kv_length), torch.ones((), dtype=torch.bool, device=before.device)
        for start in range(0, before.q_length, BLOCK):
            rows = slice(start, min(start + BLOCK, before.q_length))
            seen, now = (every if m is None else m for m in (x.visible(rows, columns) for x in (before, after)))
            # Rows of padding do not count.
            if bool(((now ^ seen) & queries[:, rows, None]).any()):
                call.tally.touched += 1
        call.written.mask = after


@dataclass(frozen=True, repr=False)
class OpenKeys(MaskEdit):
    """Show the selected keys to the selected queries though the causal mask, or a window, hides them.

    ``OpenKeys("text", queries="image")`` lets visual tokens read the question behind them, as modality-mutual attention
    does (AKI, arXiv 2503.02597); ``OpenKeys("image", queries="image")`` makes attention among visual tokens
    bidirectional; ``OpenKeys([0, 1, 2])`` is a prefix LM's mask (Gu et al. 2025). All heads of a layer share one mask.
    It acts on the prompt: what is generated stands behind it and sees all of it anyway. A model that was trained with a
    causal mask has never had such keys; the papers train with theirs. A token that an earlier query sees can be copied
    into its prediction, so the loss on opened text is no measure of prediction.

    ``key_mass`` then averages over all queries that see a key, the opened ones included.
    """

    papers = ("gu2025", "aki")
    keys: Any

    def check(self, tower: Tower) -> None:
        """Refuse what sees every key already."""
        super().check(tower)
        if tower.cross:
            raise EditError(
                f"{self._asked('keys')}: in cross-attention no key stands behind its query. Use "
                f"tower={tower.queried_by!r}."
            )

    def new_mask(self, call: EditedCall, before: MaskSpec, queries: Bool[torch.Tensor, "batch query"]) -> MaskSpec:
        """Open the mask."""
        return with_opened(before, call.keys().any(1), queries)


@dataclass(frozen=True, repr=False)
class LimitWindow(MaskEdit):
    """Let each query see only the last ``window`` keys, its own among them, and the ``keep`` keys (StreamingLLM).

    ``LimitWindow(64)`` is window attention, ``LimitWindow(64, keep=range(4))`` window attention with four sink tokens
    (Xiao et al. 2024): ``keep`` takes what ``MaskKeys`` takes, such as ``"first"``. Positions stay those of the text,
    where StreamingLLM renumbers them by the place in its cache. A query without mask (an encoder's) sees as many keys
    on both sides. All heads of a layer share one mask; ``window`` counts positions, so a layer with a window of its own
    keeps the smaller one.

    ``key_mass`` then averages over the queries that still see a key.
    """

    papers = ("xiao2024",)
    window: int
    _: KW_ONLY
    keep: Any = None

    def __post_init__(self) -> None:
        """Check the window and the selectors.

        Raises:
            EditError: a window under 1, or heads, which share one mask.
        """
        self._count("window")
        super().__post_init__()
        if self.keep is not None:
            self._set("keep", tokens_of(self.keep, self._asked("keep")))

    def check(self, tower: Tower) -> None:
        """Refuse cross-attention, whose queries and keys are positions of different sequences."""
        super().check(tower)
        if tower.cross:
            raise EditError(
                f"{self._asked('window')}: in cross-attention no key is near its query. Use "
                f"tower={tower.queried_by!r}, or MaskKeys."
            )

    def new_mask(self, call: EditedCall, before: MaskSpec, queries: Bool[torch.Tensor, "batch query"]) -> MaskSpec:
        """Hide what is out of the window."""
        kept = torch.zeros(call.call.query.shape[0], before.kv_length, dtype=torch.bool, device=before.device)
        if self.keep is not None:
            kept = call.keys("keep").any(1)
        return with_window(before, self.window, kept, queries)
