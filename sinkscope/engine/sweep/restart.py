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

SAME = 1e-6
"""Largest difference, relative to the largest final activation, at which a restarted pass counts as the full pass."""

Extras = dict[int, tuple[Any, ...] | None]
"""By block, what its output holds beside the hidden state, emptied; None for blocks that return the bare tensor."""


def find_blocks(network: torch.nn.Module, tower: Tower, backend: str) -> tuple[list[torch.nn.Module], str]:
    """Return the blocks of a tower in order, and why passes cannot start in the middle of them (empty: they can)."""
    if backend != "transformers":
        return [], f"the {backend} backend runs whole passes"
    if tower.cross and tower.queried_by != "decoder":
        return [], "attention to an image is read in whole passes"
    if tower.name in ("encoder", "decoder", "cross"):
        return [], "an encoder-decoder has two stacks of blocks"
    paths = [block.path for block in tower.blocks]
    if len(set(paths)) < len(paths):
        return [], "several layers share one block"
    return [network.get_submodule(path) for path in paths], ""


@contextmanager
def recording(
    blocks: Sequence[torch.nn.Module], starts: Sequence[int]
) -> Iterator[tuple[dict[int, torch.Tensor], Extras]]:
    """While a pass runs inside, keep the inputs of the blocks ``starts`` and the form of every block's output."""
    inputs: dict[int, torch.Tensor] = {}
    extras: Extras = {}
    handles = []
    try:
        for layer, block in enumerate(blocks):
            if layer in starts:
                handles.append(block.register_forward_pre_hook(_keep_input(inputs, layer), with_kwargs=True))
            handles.append(block.register_forward_hook(_keep_form(extras, layer)))
        yield inputs, extras
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def restarted(blocks: Sequence[torch.nn.Module], start: int, hidden: torch.Tensor, extras: Extras) -> Iterator[None]:
    """Inside, a pass goes over the blocks before ``start`` and gives that block ``hidden``."""
    saved: list[tuple[torch.nn.Module, Any]] = []
    handle = blocks[start].register_forward_pre_hook(_give(hidden), with_kwargs=True)
    try:
        for layer in range(start):
            block = blocks[layer]
            saved.append((block, vars(block).get("forward")))
            block.forward = _pass_through(extras.get(layer))
        yield
    finally:
        handle.remove()
        for block, forward in saved:
            if forward is None:
                del block.forward
            else:
                block.forward = forward


def check_restart(
    backend: Any, inputs: Mapping[str, torch.Tensor], tower: Tower, blocks: Sequence[torch.nn.Module], start: int
) -> str:
    """Compare a pass that starts at ``start`` with the full pass; return why they differ, empty where they do not."""
    with recording(blocks, [start]) as (kept, extras):
        whole: Output = backend.forward(inputs, tower, Instruments())
    if start not in kept:
        return f"block {start} was not called with its hidden state"
    try:
        with restarted(blocks, start, kept[start], extras):
            again: Output = backend.forward(inputs, tower, Instruments())
    except Exception as error:  # whatever a model's own code makes of blocks that do nothing
        return f"the model failed without its first {start} blocks ({type(error).__name__}: {error})"
    if again.hidden.shape != whole.hidden.shape:
        return f"the model's output has another shape without its first {start} blocks"
    worst = float((again.hidden - whole.hidden).abs().max())
    if not worst <= SAME * float(whole.hidden.abs().max()):
        return f"starting at block {start} gave another result (largest difference {worst:.2g})"
    return ""


def _keep_input(inputs: dict[int, torch.Tensor], layer: int) -> Any:
    def hook(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs.get("hidden_states")
        if isinstance(hidden, torch.Tensor):
            inputs[layer] = hidden.detach().clone()

    return hook


def _keep_form(extras: Extras, layer: int) -> Any:
    def hook(_: torch.nn.Module, __: Any, output: Any) -> None:
        extras[layer] = tuple(None for _ in output[1:]) if isinstance(output, tuple) else None

    return hook


def _give(hidden: torch.Tensor) -> Any:
    def hook(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # A copy: some blocks add to their input in place.
        if args:
            return (hidden.clone(), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": hidden.clone()}

    return hook


def _pass_through(extra: tuple[Any, ...] | None) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return hidden if extra is None else (hidden, *extra)

    return forward
