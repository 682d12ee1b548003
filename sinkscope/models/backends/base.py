"""What a backend offers: towers of attention sites, sites of the residual stream, and one instrumented forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float

from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.rows import RowEdits
from sinkscope.attention.view import Context, LayerStats, Wants


@dataclass(frozen=True)
class AttentionSite:
    """One attention layer: its number in the tower, the module's path, its shape, and the path of its W_O."""

    layer: int
    path: str
    heads: int
    kv_heads: int
    head_dim: int
    causal: bool
    implicit_sink: bool = False
    output_path: str | None = None


@dataclass(frozen=True)
class ResidualSite:
    """A place in the residual stream (``embed``, ``3.mid``, ``3.post``), and the module whose input or output it is.

    ``turn`` counts the calls of a module that several layers share (ALBERT); None where each layer has its own.
    """

    name: str
    path: str
    before: bool
    turn: int | None = None

    @property
    def lens_name(self) -> str:
        """TransformerLens's name of the same place."""
        if self.name == "embed":
            return "blocks.0.hook_resid_pre"
        layer, place = self.name.split(".")
        return f"blocks.{layer}.hook_resid_{place}"

    @property
    def post_norm(self) -> bool:
        """True between attention and MLP of a post-norm block, where a change cannot be carried past the MLP."""
        return self.name.endswith(".mid") and self.path.endswith((".intermediate", ".hook_in"))


@dataclass(frozen=True)
class Tower:
    """One stack of attention layers: the language model, an encoder, or the vision part of a larger model."""

    name: str
    attention: tuple[AttentionSite, ...]
    residual: tuple[ResidualSite, ...]
    d_model: int

    @property
    def causal(self) -> bool:
        """True for a decoder."""
        return any(site.causal for site in self.attention)

    @property
    def site_names(self) -> tuple[str, ...]:
        """Residual-stream sites in order, ``embed`` first."""
        return tuple(site.name for site in self.residual)


ResidualHook = Callable[[Float[torch.Tensor, "batch key d_model"]], Float[torch.Tensor, "batch key d_model"] | None]
"""Gets the residual stream at a site; returns None to leave it, or the tensor to use instead."""


@dataclass
class Instruments:
    """What one forward pass of a tower shall read and change.

    ``wants`` and ``edits`` are asked by layer; ``collect`` receives each layer's statistics; ``residual`` maps a site
    name to hooks, run in order.
    """

    wants: Mapping[int, Wants] = field(default_factory=dict)
    context: Context | None = None
    edits: Callable[[int, Call], CallEdits | RowEdits | None] | None = None
    collect: Callable[[int, LayerStats], None] = lambda _layer, _stats: None
    residual: Mapping[str, Sequence[ResidualHook]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        hooks = dict(self.residual)
        for name in [name for name in hooks if name.endswith(".mid")]:
            carry, post = _Carry(hooks[name]), name.replace(".mid", ".post")
            hooks[name], hooks[post] = [carry.change], [carry.add, *hooks.get(post, ())]
        self.residual = hooks


class _Carry:
    """Takes a change made between attention and MLP past the MLP: its module sees only the branch, not the stream."""

    def __init__(self, hooks: Sequence[ResidualHook]) -> None:
        self.hooks, self.step = hooks, None

    def change(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """Run the hooks at the site and remember what they changed."""
        new = hidden
        for hook in self.hooks:
            found = hook(new)
            new = new if found is None else found
        self.step = None if new is hidden else new - hidden
        return None if new is hidden else new

    def add(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """Add the change to the stream behind the MLP."""
        step, self.step = self.step, None
        return None if step is None else hidden + step


@dataclass
class Output:
    """Result of a pass: the final hidden state of the tower's model, logits where asked for, and the paths taken."""

    hidden: torch.Tensor
    logits: torch.Tensor | None
    paths: frozenset[str]


class Backend(Protocol):
    """A way to drive a model. ``towers`` is empty and ``why_not`` says why where nothing can be read."""

    name: str
    reading: str
    edits: bool
    why_not: str
    towers: Mapping[str, Tower]
    default_tower: str

    def forward(
        self, inputs: Mapping[str, torch.Tensor], tower: Tower, instruments: Instruments, logits: str | None = None
    ) -> Output:
        """Run the model once. ``logits`` is None, ``"last"`` or ``"all"``."""
        ...

    def write_factor(self, site: AttentionSite) -> Float[torch.Tensor, "head rank dim"] | None:
        """Per head a matrix R with |R v| = |W_O v|; None where the model has no output projection."""
        ...
