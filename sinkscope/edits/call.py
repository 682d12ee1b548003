"""One attention call as an edit sees it: the selectors as masks of the call's shape, and the primitives it may write.

Every intervention on attention in the literature is made of these primitives. They act in the heads and rows that the
edit selects, in list order, and count what they touched. docs/decisions.md says what each costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float

from sinkscope.attention.blockwise import attend
from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits, Part
from sinkscope.attention.primitives import DropWeights, ExtraKey, LogBias, ValueScale
from sinkscope.attention.tile import Tile
from sinkscope.attention.view import Ask, Context, LayerStats, Wants
from sinkscope.edits.context import EditContext
from sinkscope.edits.primitives import ChangedOutput, ChangedWeights
from sinkscope.edits.tokens import TokenMask, place
from sinkscope.edits.values import asked
from sinkscope.prompts.selection import beyond

Weights = Float[torch.Tensor, "flat query key"]
Outputs = Float[torch.Tensor, "batch query head dim"]


@dataclass(eq=False, kw_only=True)
class CallMasks(EditContext):
    """The selectors of an edit, resolved for one attention call.

    Attributes:
        layer: number of the layer.
        call: queries, keys, values and mask.
        given: one number per head to use instead of the edit's own, so that a gradient can be taken; or None.
    """

    layer: int
    call: Call
    given: Float[torch.Tensor, " head"] | None = None

    @property
    def place(self) -> tuple[int, int]:
        """The layer, and which of its attention calls this is: what is remembered of a call is kept under both."""
        return self.layer, self.call.index

    @property
    def diagonal(self) -> int:
        """Key column of query row 0; above 0 at a decoding step, where earlier keys come from a cache."""
        return self.call.mask.q_offset - self.call.mask.kv_offset

    @property
    def head_count(self) -> int:
        """Query heads of the call."""
        return self.call.query.shape[1]

    @property
    def heads(self) -> Bool[torch.Tensor, " head"]:
        """Heads the edit acts on."""
        mask = torch.zeros(self.head_count, dtype=torch.bool, device=self.call.query.device)
        mask[list(self.edit.heads_in(self.layer, self.head_count))] = True
        return mask

    def per_head(self, value: float) -> Float[torch.Tensor, " head"]:
        """Return a number for every head of the call."""
        if self.given is not None:
            return self.given
        return torch.full((self.head_count,), value, device=self.call.query.device)

    def keys(self, name: str = "keys") -> TokenMask:
        """Return the keys that field ``name`` of the edit selects, in the heads the edit acts on."""
        selection = getattr(self.edit, name)
        chosen = self.tokens.choose(selection, lambda: asked(self.edit, name), self.layer, self.head_count)
        return self.along_keys(chosen, beyond(selection, self.tokens.batch)) & self.heads[None, :, None]

    def along_keys(
        self, mask: Bool[torch.Tensor, "batch ... key"], fill: Bool[torch.Tensor, " batch"] | bool
    ) -> torch.Tensor:
        """Return a mask over the prompt's positions on the call's key axis; beyond the prompt stands ``fill``."""
        return self._along(mask, fill, self.call.mask.kv_offset, self.call.key.shape[2])

    def rows(
        self, mask: Bool[torch.Tensor, "batch key"], fill: Bool[torch.Tensor, " batch"] | bool
    ) -> Bool[torch.Tensor, "batch query"]:
        """Return a mask over the prompt's positions on the call's query axis; beyond the prompt stands ``fill``."""
        return self._along(mask, fill, self.call.mask.q_offset, self.call.query.shape[2])

    def queries(self, default: str | None = None) -> Bool[torch.Tensor, "batch query"] | None:
        """Return the rows the edit acts on: the selected ones among real tokens; None where that is all of them.

        ``default`` names the selection of an edit whose ``queries`` is None.
        """
        own = getattr(self.edit, "queries", None)
        selection = own if own is not None else default
        if selection is None:
            real = self.tokens.queries.batch.real
            return None if bool(real.all()) else self.rows(real, True)
        if own is not None:
            chosen = self.tokens.queries.choose(own, lambda: asked(self.edit, "queries")).any(1)
        else:
            chosen = self.tokens.queries.named(selection)
        return self.rows(chosen, beyond(selection, self.tokens.queries.batch))

    def _along(
        self, mask: torch.Tensor, fill: Bool[torch.Tensor, " batch"] | bool, start: int, length: int
    ) -> torch.Tensor:
        if isinstance(fill, bool):
            fill = torch.full((len(mask),), fill, device=mask.device)
        return place(mask, fill, start, length, self.call.query.shape[0])


@dataclass(eq=False, kw_only=True)
class EditedCall(CallMasks):
    """One attention call under an edit: what :meth:`sinkscope.edits.Edit.change_attention` receives.

    ``written`` holds what the edits before this one do to the call.
    """

    written: CallEdits

    def add_log_bias(self, keys: TokenMask, value: float, keep_self: bool = False) -> None:
        """Add ``value`` to the logits of ``keys``: their weight times exp(value), rows renormalised.

        Minus infinity hides the keys; a row that sees no other key is left alone and counted. After an edit of the
        weights the same is done to these. ``keep_self`` leaves each query its own key. Learned sinks and null keys are
        part of the row.
        """
        hide = value == -math.inf
        self.written.add_bias(
            LogBias(
                keys=keys, value=self.per_head(0.0 if hide else value), queries=self.queries(), keep_self=keep_self,
                hide=hide, diagonal=self.diagonal, tally=self.tally,
            )
        )  # fmt: skip

    def scale_weights(self, keys: TokenMask, factor: float, keep_self: bool = False) -> None:
        """Multiply the weights of ``keys`` by ``factor`` after the softmax, without renormalising."""
        self.written.weights.append(
            DropWeights(
                keys=keys, factor=factor, queries=self.queries(), keep_self=keep_self, diagonal=self.diagonal,
                tally=self.tally,
            )
        )  # fmt: skip

    def change_weights(self, function: Callable[[Weights, Tile], Weights], queries: str | None = None) -> None:
        """Put the weights through ``function``, which gets a tile of rows (flat query key) and says what they become.

        Heads of several prompts are flat there: ``tile.batch`` and ``tile.head`` say whose, ``tile.rows`` and
        ``tile.cols`` which queries and keys. Rows and heads that the edit does not select keep their weights.
        ``queries`` names the rows of an edit whose own ``queries`` is None.
        """
        self.written.weights.append(
            ChangedWeights(function, self.heads, self.queries(queries), self.tally, self.edit.conditional)
        )

    def change_values(
        self, keys: TokenMask, scale: float = 0.0, new: Float[torch.Tensor, "batch head_or_kv key vdim"] | None = None
    ) -> None:
        """Multiply the value vectors of ``keys`` by ``scale``, or put ``new`` ones there."""
        per_head = None if new is None else new.repeat_interleave(self.head_count // new.shape[1], 1)
        self.written.values.append(ValueScale(keys, scale, self.tally, per_head))

    def add_key(self, key: Float[torch.Tensor, "head dim"], value: Float[torch.Tensor, "head vdim"]) -> None:
        """Add a key and a value that every query of the heads sees; no position is applied to the key."""
        self.written.shares.append(Part(self.tally, self.heads))
        self.written.extra_keys.append(ExtraKey(key, value, self.heads))

    def add_null_key(self, logit: float) -> None:
        """Add a key that is only a ``logit``: rows sum to less than 1, and what is missing goes nowhere."""
        self.written.shares.append(Part(self.tally, self.heads))
        self.written.add_null(self.per_head(logit).masked_fill(~self.heads, -math.inf))

    def normalise(self, how: str | Callable[[Weights, Tile], Weights]) -> None:
        """Replace the softmax: a known name, or a function from a tile of logits to its weights.

        The logits of hidden keys are ``sinkscope.attention.masks.HIDDEN_LOGIT``, which exp makes 0; their weight is set
        to 0 afterwards. The last normaliser of a head wins, wherever it stands in the list of edits. Learned sinks and
        null keys play no part in it.
        """
        self.written.swap(how, self.heads, self.tally)

    def change_output(self, function: Callable[[Outputs], Outputs]) -> None:
        """Put the heads' outputs (before W_O) through ``function``; heads and rows that are not selected keep theirs.

        A gate for each row and head is a product with a tensor (batch, query, head, 1).
        """
        self.written.gates.append(ChangedOutput(function, self.heads, self.queries(), self.tally))

    def statistics(self, *names: str | Ask) -> LayerStats:
        """Return statistics of this call as the edits before this one leave it, from a pass of its own.

        ``names`` are those of ``sinkscope.registry.names("statistic")``, such as ``"key_sum"``, or an ``Ask`` that
        limits one to some queries or keys.
        """
        real = self.along_keys(self.tokens.batch.real, True)
        context = Context(real, torch.zeros_like(real, dtype=torch.long), (0,))
        with torch.no_grad():
            return attend(self.call, Wants(*names), context, self.written or None)[1]
