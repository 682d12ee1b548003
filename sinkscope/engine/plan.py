"""Edits resolved against one batch: what to change in each attention call and at each residual site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float

from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.primitives import Tally
from sinkscope.edits.activations import SetActivations
from sinkscope.edits.base import AttentionEdit, Edit
from sinkscope.edits.conditional import Redistribute
from sinkscope.edits.site import CallSite, Tokens
from sinkscope.models.backends.base import ResidualHook, Tower
from sinkscope.prompts import Batch, Prompts
from sinkscope.roles import ROLE_INDEX


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
        self.tokens = Tokens(batch)
        self.offset = 0
        self._memory: dict[tuple[int, Any], dict[str, Any]] = {}
        self._inner = tower.name == "vision" and "input_ids" in batch.inputs
        self._layers: dict[int, list[int]] = {}
        for index in self._active():
            edit = self.edits[index]
            if isinstance(edit, AttentionEdit):
                for layer in edit.layers_in(tower):
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
            self._memory.clear()

    def call_edits(self, layer: int, call: Call) -> CallEdits | None:
        """Give what is to be changed in one call, or None."""
        if layer not in self._layers:
            return None
        tokens = _tokens_of_call(call) if self._inner else self.tokens
        edits = CallEdits()
        for index in self._layers[layer]:
            value = self.values.get(index)
            edit = self.edits[index]
            assert isinstance(edit, AttentionEdit)
            memory = self._remember(index, layer)
            numbers = None if value is None else value[layer]
            edit.build(edits, CallSite(edit, layer, call, tokens, self.tallies[index], memory, numbers))
        if not edits:
            return None
        return edits.neutral() if self.neutral else edits

    def _active(self) -> list[int]:
        return [
            i for i, edit in enumerate(self.edits) if i in self.values or not (edit.identity or edit.selects_nothing)
        ]

    def _remember(self, index: int, where: Any) -> dict[str, Any]:
        return self._memory.setdefault((index, where), {})

    def _residual_hooks(self) -> dict[str, list[ResidualHook]]:
        """Hooks of activation edits in list order; those that only look come last, so they see what the layer gets."""
        hooks: dict[str, list[ResidualHook]] = {}
        for index in self._active():
            edit = self.edits[index]
            if isinstance(edit, SetActivations) and not self.neutral:
                hooks.setdefault(edit.site, []).append(self._setter(index, edit))
        for index in self._active():
            edit = self.edits[index]
            if isinstance(edit, Redistribute):
                for layer in edit.layers_in(self.tower):
                    name = f"{layer - 1}.post" if layer > 0 else "embed"
                    hooks.setdefault(name, []).append(self._watcher(index, edit, layer))
        return hooks

    def _setter(self, index: int, edit: SetActivations) -> ResidualHook:
        def hook(hidden: torch.Tensor) -> torch.Tensor | None:
            tokens = _all_real(hidden.shape[0], hidden.shape[1], hidden.device) if self._inner else self.tokens
            return edit.change(hidden, tokens, self.offset, self._remember(index, edit.site), self.tallies[index])

        return hook

    def _watcher(self, index: int, edit: Redistribute, layer: int) -> ResidualHook:
        def hook(hidden: torch.Tensor) -> None:
            memory = self._remember(index, layer)
            found: Bool[torch.Tensor, "batch key"] = edit.sinks(hidden)
            known = memory.get("sinks")
            memory["sinks"] = found if self.offset == 0 or known is None else torch.cat([known, found], dim=1)

        return hook


def _tokens_of_call(call: Call) -> Tokens:
    """Tokens of a vision tower inside a larger model: each call's keys are all real, and all visual."""
    return _all_real(call.query.shape[0], call.key.shape[2], call.query.device)


def _all_real(rows: int, length: int, device: torch.device) -> Tokens:
    real = torch.ones(rows, length, dtype=torch.bool, device=device)
    roles = torch.full((rows, length), ROLE_INDEX["image"], dtype=torch.int8, device=device)
    return Tokens(Batch({}, real, roles, tuple(range(rows))))
