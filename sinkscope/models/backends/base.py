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
    """One attention call: the block it is made in, the module's path, its shape, and the path of its W_O.

    ``layer`` is the block's own number; ``call`` counts the calls of one block (DiffLlama and LongCat make two).
    """

    layer: int
    path: str
    heads: int
    kv_heads: int
    head_dim: int
    causal: bool
    implicit_sink: bool = False
    output_path: str | None = None
    call: int = 0


@dataclass(frozen=True)
class Block:
    """One block of a tower: its number, its path, and what mixes the tokens in it.

    ``kind`` is ``attention``, ``sliding`` (a window), ``linear``, ``ssm``, ``conv``, ``recurrent``, ``cross``
    (attention to an image alone) or ``mlp`` (nothing does); ``attention+ssm`` where both do. ``turn`` counts the runs
    of a module that stands for several blocks (ALBERT); None where each block has its own.
    """

    layer: int
    path: str
    kind: str = "attention"
    turn: int | None = None


@dataclass(frozen=True)
class ResidualSite:
    """A place in the residual stream (``embed``, ``3.mid``, ``3.post``), and the module whose input or output it is.

    ``turn`` counts the calls of a module that several layers share (ALBERT); None where each layer has its own.
    ``argument`` names the keyword by which the model hands the stream to the module; None where it stands first.
    ``streams`` is the axis of parallel streams (Gemma-3n, DeepSeek-V4): their mean is read, and what an edit changes of
    it is added to each of them. None where there is one stream. ``carry`` says what becomes of a change between two
    parts of a block: ``behind`` (the module sees a branch of the stream: the change is added again behind the MLP),
    ``along`` (the module is handed the stream and passes it on), ``never`` (several branches read the stream).
    """

    name: str
    path: str
    before: bool
    turn: int | None = None
    argument: str | None = None
    streams: int | None = None
    carry: str = "behind"

    @property
    def layer(self) -> int:
        """Block whose input (``embed``), middle or output this is."""
        return 0 if self.name == "embed" else int(self.name.split(".")[0])

    @property
    def lens_name(self) -> str:
        """TransformerLens's name of the same place."""
        if self.name == "embed":
            return "blocks.0.hook_resid_pre"
        return f"blocks.{self.layer}.hook_resid_{self.name.split('.')[1]}"

    @property
    def post_norm(self) -> bool:
        """True between attention and MLP of a post-norm block, where a change cannot be carried past the MLP."""
        return self.name.endswith(".mid") and self.path.endswith((".intermediate", ".hook_in", ".fc1"))


@dataclass(frozen=True)
class Tower:
    """One stack of blocks: the language model, an encoder, or the vision part of a larger model.

    ``blocks`` holds all of them; ``attention`` the attention calls, in the blocks that make any. An encoder-decoder has
    three: ``encoder``, ``decoder`` (self-attention), and ``cross``, whose blocks are the decoder's and whose stream is
    left to that tower. A decoder with cross-attention to an image has ``text`` and ``cross``. ``queried_by`` is the
    tower whose tokens are the queries of ``cross``.
    """

    name: str
    attention: tuple[AttentionSite, ...]
    residual: tuple[ResidualSite, ...]
    d_model: int
    blocks: tuple[Block, ...]
    queried_by: str = "decoder"

    @property
    def depth(self) -> int:
        """Number of blocks; layers are numbered 0 to this."""
        return len(self.blocks)

    @property
    def cross(self) -> bool:
        """True for cross-attention: keys of the source, queries of the target."""
        return self.name == "cross"

    @property
    def calls(self) -> int:
        """Attention calls of the block that makes most; 1 in nearly every model."""
        return max((site.call + 1 for site in self.attention), default=0)

    def kind(self, layer: int) -> str:
        """Return what mixes the tokens in one block."""
        return self.blocks[layer].kind

    def sites_of(self, layer: int) -> tuple[AttentionSite, ...]:
        """Attention calls of one block, in order; none where it has no attention."""
        return tuple(site for site in self.attention if site.layer == layer)

    @property
    def causal(self) -> bool:
        """True for a decoder."""
        return any(site.causal for site in self.attention)

    @property
    def decodes(self) -> bool:
        """True where a next token is predicted: by a decoder, or by the one that reads this encoder."""
        return self.causal or self.name in ("encoder", "cross")

    @property
    def site_names(self) -> tuple[str, ...]:
        """Residual-stream sites in order, ``embed`` first."""
        return tuple(site.name for site in self.residual)


def bare(tower: Tower, layer: int) -> str:
    """Say of a block that makes no attention call in ``tower`` what it has instead."""
    if tower.cross:
        return f"block {layer} has no attention to the image (its attention to the text: tower={tower.queried_by!r})"
    if tower.kind(layer) == "cross":
        return f"block {layer} attends to the image alone, which is another tower: tower='cross'"
    return f"block {layer} has no attention, it is of kind {tower.kind(layer)!r}"


def streams_elsewhere(tower: Tower) -> str:
    """For cross-attention: which towers have a residual stream, as the end of a sentence."""
    if tower.queried_by == "decoder":
        return "the decoder's with tower='decoder', or the encoder's with tower='encoder'"
    return f"the text's with tower={tower.queried_by!r}"


ResidualHook = Callable[[Float[torch.Tensor, "batch key d_model"]], Float[torch.Tensor, "batch key d_model"] | None]
"""Gets the residual stream at a site; returns None to leave it, or the tensor to use instead."""


@dataclass
class Instruments:
    """What one forward pass of a tower shall read and change.

    ``wants`` and ``edits`` are asked by layer; ``collect`` receives the statistics of each attention call;
    ``residual`` maps a site name to hooks, run in order.
    """

    wants: Mapping[int, Wants] = field(default_factory=dict)
    context: Context | None = None
    edits: Callable[[int, Call], CallEdits | RowEdits | None] | None = None
    collect: Callable[[AttentionSite, LayerStats], None] = lambda _site, _stats: None
    residual: Mapping[str, Sequence[ResidualHook]] = field(default_factory=dict)


def carried(residual: Mapping[str, Sequence[ResidualHook]], tower: Tower) -> dict[str, Sequence[ResidualHook]]:
    """The hooks by site, with what is changed between attention and MLP added again behind the MLP."""
    hooks = dict(residual)
    along = {site.name for site in tower.residual if site.carry != "behind"}
    for name in [name for name in hooks if name.endswith(".mid") and name not in along]:
        carry, post = _Carry(hooks[name]), name.replace(".mid", ".post")
        hooks[name], hooks[post] = [carry.change], [carry.add, *hooks.get(post, ())]
    return hooks


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
