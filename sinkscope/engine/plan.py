"""Edits resolved against one batch: what to change in each attention call and at each residual site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float

from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.normalise import heads_without_softmax
from sinkscope.attention.primitives import Tally
from sinkscope.edits.base import Edit
from sinkscope.edits.call import EditedCall
from sinkscope.edits.context import Memory
from sinkscope.edits.primitives import require_shape
from sinkscope.edits.stream import EditedStream
from sinkscope.edits.tokens import Tokens
from sinkscope.models.backends.base import ResidualHook, Tower
from sinkscope.prompts import Batch, Prompts


class Plan:
    """What ``edits`` do to one batch of ``prompts`` in ``tower``.

    Identity edits and empty selections are left out, so a model under them runs as it would without. ``neutral`` makes
    the plan that takes the same paths and changes nothing. ``values`` gives, by the place of an edit in the list, a
    tensor (layer, head) to use instead of its own number on the logits, so that a gradient can be taken; such an edit
    is never left out. One plan serves one forward pass, or one generation: ``begin`` says where a pass starts.
    """

    def __init__(
        self, edits: Sequence[Edit], tower: Tower, prompts: Prompts | None, batch: Batch, *, neutral: bool = False,
        values: Mapping[int, Float[torch.Tensor, "layer head"]] | None = None,
    ) -> None:  # fmt: skip
        self.edits, self.tower, self.prompts = tuple(edits), tower, prompts
        self.neutral, self.values = neutral, dict(values or {})
        self.tallies = [Tally() for _ in self.edits]
        # By the place in the list, not by value: the same edit twice has two memories.
        self.memories = [Memory() for _ in self.edits]
        self.tokens = Tokens(batch)
        self.offset = 0
        self._inner = tower.name == "vision" and "input_ids" in batch.inputs
        self._layers: dict[int, list[int]] = {}
        for index in self._active():
            for layer in self.edits[index].layers_in(tower):
                self._layers.setdefault(layer, []).append(index)
        self.residual: dict[str, list[ResidualHook]] = self._residual_hooks()

    @property
    def on_attention(self) -> bool:
        """True where some attention call is changed."""
        return bool(self._layers)

    def begin(self, offset: int) -> None:
        """Say at which position of the padded prompt the next forward pass starts: 0, or what the cache holds."""
        self.offset = offset
        if offset == 0:
            for memory in self.memories:
                memory.clear()

    def call_edits(self, layer: int, call: Call) -> CallEdits | None:
        """Return what is to be changed in one call, or None."""
        if layer not in self._layers:
            return None
        rows, keys = call.query.shape[0], call.key.shape[2]
        tokens = Tokens.all_visual(rows, keys, call.query.device) if self._inner else self.tokens
        edits = CallEdits()
        for index in self._layers[layer]:
            value = self.values.get(index)
            self.edits[index].change_attention(
                EditedCall(
                    edit=self.edits[index], tokens=tokens, tally=self.tallies[index], memory=self.memories[index],
                    layer=layer, call=call, given=None if value is None else value[layer], written=edits,
                )
            )  # fmt: skip
        if not edits:
            return None
        if edits.swaps or edits.shares:
            edits.settle(heads_without_softmax(call, edits).values())
        return edits.neutral() if self.neutral else edits

    def _active(self) -> list[int]:
        return [
            i for i, edit in enumerate(self.edits) if i in self.values or not (edit.identity or edit.selects_nothing)
        ]

    def _residual_hooks(self) -> dict[str, list[ResidualHook]]:
        """Hooks that change the stream in list order, then those that watch it, so these see what the layer gets."""
        hooks: dict[str, list[ResidualHook]] = {}
        # A conditional edit must judge the stream that its layer will read, all changes of other edits included.
        for hook in (self._change, self._watch) if not self.neutral else (self._watch,):
            for index in self._active():
                for site in self.edits[index].sites_in(self.tower):
                    hooks.setdefault(site, []).append(hook(index, site))
        return hooks

    def _change(self, index: int, site: str) -> ResidualHook:
        def hook(hidden: torch.Tensor) -> torch.Tensor | None:
            tally = self.tallies[index]
            new = self.edits[index].change_residual(hidden, self._stream(index, site, hidden))
            if new is not None:
                require_shape(new, hidden, f"change_residual of {self.edits[index]!r}")
            # An edit may count for itself; where it did not, what differs is counted, for the guard needs a number.
            if new is not None and not tally.touched:
                tally.touched = int((new != hidden).any(-1).sum())
            return new

        return hook

    def _watch(self, index: int, site: str) -> ResidualHook:
        def hook(hidden: torch.Tensor) -> None:
            self.edits[index].watch_residual(hidden, self._stream(index, site, hidden))

        return hook

    def _stream(self, index: int, site: str, hidden: torch.Tensor) -> EditedStream:
        rows, length = hidden.shape[:2]
        tokens = Tokens.all_visual(rows, length, hidden.device) if self._inner else self.tokens
        return EditedStream(
            edit=self.edits[index], tokens=tokens, tally=self.tallies[index], memory=self.memories[index], site=site,
            offset=self.offset, rows=rows, length=length,
        )  # fmt: skip
