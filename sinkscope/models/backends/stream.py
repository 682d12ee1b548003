"""Where the residual stream of a stack of blocks can be read: before, in and behind each block.

The place between attention and MLP is the first module of the block that reads neither the block's input nor the raw
attention output. Parallel blocks have no such place. In a decoder with cross-attention it lies before that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from sinkscope.models.backends.base import ResidualSite
from sinkscope.models.backends.trial import ModuleCall, Record, Seen

MID_CANDIDATES = (
    "pre_feedforward_layernorm", "post_attention_layernorm", "pre_ff_layernorm", "channel_pre_norm", "ffn_norm",
    "pre_mlp_layernorm", "ln_2", "layernorm_after", "norm2", "layer_norm2", "final_layer_norm", "intermediate",
    "feed_forward", "mlp",
)  # fmt: skip
"""Children of a block that read the stream between attention and MLP, tried in this order and then checked."""


def residual_sites(
    record: Record,
    entries: list[ModuleCall],
    calls: list[list[Seen]],
    decoder: bool = False,
    optional: Sequence[bool] = (),
) -> Iterable[ResidualSite]:
    """Find the sites of a stack, in order.

    Args:
        record: the trial run.
        entries: the runs of its blocks.
        calls: the attention calls made in each block.
        decoder: whether the blocks attend to a source behind their self-attention.
        optional: for each block whether the model may leave it out; the stream then passes by it unchanged, so
            nothing is read from inside it.
    """
    yield _before(record, "embed", entries[0])
    for layer, entry in enumerate(entries):
        mine, next_may = (layer + n < len(optional) and optional[layer + n] for n in (0, 1))
        mid = None if decoder or mine else _mid_of(entry, calls[layer])
        carry = "behind"
        if mid is None and not mine:
            mid, carry = _next_part(entry, calls[layer], decoder)
        if mid is not None:
            yield replace(_before(record, f"{layer}.mid", mid), carry=carry)
        after = entries[layer + 1] if layer + 1 < len(entries) else None
        if after is not None and after.given is not None and entry.made is not None:
            fits = after.given.shape == entry.made.shape
        else:
            fits = after is not None
        if after is not None and fits and not next_may:
            yield _before(record, f"{layer}.post", after)
        else:
            streams = _streams(entry.made)
            yield ResidualSite(f"{layer}.post", entry.path, False, turn_of(record, entry), streams=streams)


def turn_of(record: Record, entry: ModuleCall) -> int | None:
    """Return which run of its module an entry is; None where the module runs once."""
    return entry.number if record.runs[id(entry.module)] > 1 else None


def _before(record: Record, name: str, entry: ModuleCall) -> ResidualSite:
    return ResidualSite(name, entry.path, True, turn_of(record, entry), entry.argument, _streams(entry.given))


def _streams(state: torch.Tensor | None) -> int | None:
    """Axis of parallel streams: of one prompt of one token, the only one of a 4-D state that is longer than 1."""
    if state is None or state.ndim != 4:
        return None
    longer = [axis for axis, size in enumerate(state.shape[:3]) if size > 1]
    return longer[0] if len(longer) == 1 else None


def _mid_of(block: ModuleCall, calls: list[Seen]) -> ModuleCall | None:
    """First candidate whose input is neither the block's input nor the mixer's input or raw output.

    A block with two attention modules has a stream between every two of its parts, and no one middle.
    """
    if len({id(call.by) for call in calls}) > 1 or block.given is None:
        return None
    children = {entry.path.rsplit(".", 1)[-1]: entry for entry in block.inside}
    others = _mixer_ends(block, calls)
    if "fc1" in children and block.inside.index(children["fc1"]) < _place(block, children.get("final_layer_norm")):
        children["final_layer_norm"] = children["fc1"]  # a post-norm block: that norm is behind the MLP
    for name in MID_CANDIDATES:
        candidate = children.get(name)
        if candidate is None or candidate.given is None:
            continue
        if _same(candidate.given, block.given):
            return None
        if any(_same(candidate.given, other) for other in others):
            if name in ("mlp", "feed_forward", "intermediate"):
                return None
            continue
        return candidate
    return None


def _place(block: ModuleCall, part: ModuleCall | None) -> int:
    return -1 if part is None else block.inside.index(part)


def _next_part(block: ModuleCall, calls: list[Seen], decoder: bool) -> tuple[ModuleCall | None, str]:
    """The part of a block that reads the stream next behind its one attention call, and what becomes of a change there.

    T5's parts hold their norm and add to the stream themselves, so they hand a change on. Elsewhere, in a decoder, two
    branches read the stream behind self-attention, and a change of one is not a change of the other.
    """
    holder = next((entry for entry in block.inside for call in calls[:1] if entry in call.by.chain), None)
    if holder is None or block.given is None or len({id(call.by) for call in calls}) > 1:
        return None, ""
    behind = block.inside[block.inside.index(holder) + 1 :]
    if holder is not calls[0].by and behind and behind[0].given is not None and _same(behind[0].given, holder.made):
        return behind[0], "along"
    if not decoder:
        return None, ""
    ends = _mixer_ends(block, calls)
    post_norm = _same(block.given, holder.given)
    for part in behind:
        norm = "norm" in type(part.module).__name__.lower()
        if part.given is None or (norm and post_norm) or any(_same(part.given, end) for end in ends):
            continue
        return part, "never"
    return None, ""


def _mixer_ends(block: ModuleCall, calls: list[Seen]) -> list[torch.Tensor | None]:
    """What goes into and comes out of what mixes the tokens, before it is added to the stream."""
    if calls:
        output = calls[0].output
        made = [entry.made for entry in _all_inside(block) if entry.module is output]
        return [calls[0].by.given, *made]
    mixers = [
        entry
        for entry in block.inside
        if "norm" not in type(entry.module).__name__.lower() and entry.path.rsplit(".", 1)[-1] not in MID_CANDIDATES
    ]
    return [tensor for entry in mixers[:1] for tensor in (entry.given, entry.made)]


def _all_inside(entry: ModuleCall) -> Iterable[ModuleCall]:
    for each in entry.inside:
        yield each
        yield from _all_inside(each)


def _same(a: torch.Tensor, b: torch.Tensor | None) -> bool:
    return b is not None and a.numel() == b.numel() and torch.allclose(a.reshape(-1), b.reshape(-1), atol=1e-6)
