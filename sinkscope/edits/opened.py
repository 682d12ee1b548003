"""An edit of the mask itself: keys that stand behind a query are shown to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sinkscope.attention.masks import BLOCK, with_opened
from sinkscope.edits.base import AttentionEdit
from sinkscope.edits.call import EditedCall
from sinkscope.errors import EditError
from sinkscope.models.backends.base import Tower


@dataclass(frozen=True, repr=False)
class OpenKeys(AttentionEdit):
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

    def check(self, tower: Tower) -> None:
        """Refuse what sees every key already."""
        super().check(tower)
        if tower.cross:
            raise EditError(
                f"{self._asked('keys')}: in cross-attention no key stands behind its query. Use "
                f"tower={tower.queried_by!r}."
            )

    def change_attention(self, call: EditedCall) -> None:
        """Open the mask."""
        queries = call.queries()
        if queries is None:
            queries = call.rows(call.tokens.queries.batch.real, True)
        before = call.written.mask or call.call.mask
        after = with_opened(before, call.keys().any(1), queries)
        # What is open already counts as nothing.
        columns = slice(0, before.kv_length)
        for start in range(0, before.q_length, BLOCK):
            rows = slice(start, min(start + BLOCK, before.q_length))
            seen, now = before.visible(rows, columns), after.visible(rows, columns)
            if seen is not None and now is not None and bool((now & ~seen).any()):
                call.tally.touched += 1
        call.written.mask = after
