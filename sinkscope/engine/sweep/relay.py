"""Running a model from the stored input of a block: the blocks before it are passed over.

One pass keeps the input of the blocks that variants start from. Later passes call the model as always, but the blocks
before the start hand their input through untouched, and the start block gets the stored tensor. Masks, positions, final
norm and head are the model's own code, so nothing about the architecture is assumed; that the result is the same is
checked once per sweep.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from sinkscope.models.backends.base import Instruments, Output, Tower
from sinkscope.models.backends.discovery import block_path

SAME = 1e-6
"""Largest difference, relative to the largest final activation, at which a relayed pass counts as the full pass."""


class Relay:
    """The blocks of one tower, and how to start in the middle of them.

    ``why_not`` is empty where the model can be re-entered; otherwise full passes are run, and it says why.
    """

    def __init__(self, network: torch.nn.Module, tower: Tower, backend: str = "transformers") -> None:
        self.why_not = ""
        self.blocks: list[torch.nn.Module] = []
        if backend != "transformers":
            self.why_not = f"the {backend} backend runs whole passes"
            return
        paths = [block_path(network, site.path) for site in tower.attention]
        if len(set(paths)) < len(paths):
            self.why_not = "several layers share one block"
            return
        self.blocks = [network.get_submodule(path) for path in paths]
        self._forms: dict[int, tuple[Any, ...] | None] = {}

    @property
    def usable(self) -> bool:
        """True where passes may start at a later block."""
        return not self.why_not

    @contextmanager
    def recording(self, starts: Sequence[int]) -> Iterator[dict[int, torch.Tensor]]:
        """Keep the inputs of the blocks ``starts`` and the form of every block's output while a pass runs."""
        kept: dict[int, torch.Tensor] = {}
        handles = []
        try:
            for layer, block in enumerate(self.blocks):
                if layer in starts:
                    handles.append(block.register_forward_pre_hook(_keeper(kept, layer), with_kwargs=True))
                handles.append(block.register_forward_hook(self._form_keeper(layer)))
            yield kept
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def entered(self, start: int, hidden: torch.Tensor) -> Iterator[None]:
        """Inside, a pass goes over the blocks before ``start`` and gives that block ``hidden``."""
        saved: list[tuple[torch.nn.Module, Any]] = []
        handle = self.blocks[start].register_forward_pre_hook(_giver(hidden), with_kwargs=True)
        try:
            for layer in range(start):
                block = self.blocks[layer]
                saved.append((block, vars(block).get("forward")))
                block.forward = _passing(self._forms.get(layer))
            yield
        finally:
            handle.remove()
            for block, forward in saved:
                if forward is None:
                    del block.forward
                else:
                    block.forward = forward

    def verify(self, backend: Any, inputs: Mapping[str, torch.Tensor], tower: Tower, start: int) -> None:
        """Compare a pass that starts at ``start`` with the full pass; sets ``why_not`` where they differ."""
        with self.recording([start]) as kept:
            whole: Output = backend.forward(inputs, tower, Instruments())
        if start not in kept:
            self.why_not = f"block {start} was not called with its hidden state"
            return
        try:
            with self.entered(start, kept[start]):
                relayed: Output = backend.forward(inputs, tower, Instruments())
        except Exception as error:  # whatever a model's own code makes of blocks that do nothing
            self.why_not = f"the model failed without its first {start} blocks ({type(error).__name__}: {error})"
            return
        if relayed.hidden.shape != whole.hidden.shape:
            self.why_not = f"the model's output has another shape without its first {start} blocks"
            return
        scale = float(whole.hidden.abs().max())
        worst = float((relayed.hidden - whole.hidden).abs().max())
        if not worst <= SAME * scale:
            self.why_not = f"starting at block {start} gave another result (largest difference {worst:.2g})"

    def _form_keeper(self, layer: int) -> Any:
        def hook(_: torch.nn.Module, __: Any, output: Any) -> None:
            self._forms[layer] = tuple(None for _ in output[1:]) if isinstance(output, tuple) else None

        return hook


def _keeper(kept: dict[int, torch.Tensor], layer: int) -> Any:
    def hook(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs.get("hidden_states")
        if isinstance(hidden, torch.Tensor):
            kept[layer] = hidden.detach().clone()

    return hook


def _giver(hidden: torch.Tensor) -> Any:
    def hook(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # A copy: some blocks add to their input in place.
        if args:
            return (hidden.clone(), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": hidden.clone()}

    return hook


def _passing(form: tuple[Any, ...] | None) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return hidden if form is None else (hidden, *form)

    return forward
