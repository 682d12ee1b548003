"""Cross-attention of a decoder to the features of an image, as a tower of its own (Mllama, IDEFICS)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from sinkscope.attention import seam
from sinkscope.attention.call import Call
from sinkscope.models.backends.base import AttentionSite, Tower
from sinkscope.models.backends.blocks import find_blocks
from sinkscope.models.backends.trial import ModuleCall, Record, Seen

NAME = "cross"


def cross_tower(
    model: torch.nn.Module, record: Record, text: Tower, own: Sequence[Seen], crossing: Sequence[Seen]
) -> Tower | None:
    """Make the tower of calls with queries of the text and keys of an image; None where there are none.

    Its blocks are those of the decoder, under the same numbers. A gated block that stands between two of them
    (IDEFICS) has the number of the one that it runs before. The stream is left to the tower of the text.

    Args:
        model: the model.
        record: its trial run with an image.
        text: the tower of its self-attention.
        own: the calls of that tower.
        crossing: the calls with other keys.
    """
    entries, _ = find_blocks(model, record, own)
    sites: list[AttentionSite] = []
    made: Counter[int] = Counter()
    for call in crossing:
        layer = _layer_of(call, entries)
        if layer is None:  # a connector's
            continue
        output = None if call.output is None else record.paths[id(call.output)]
        sites.append(
            AttentionSite(
                layer, call.by.path, call.heads, call.kv_heads, call.head_dim, False, call.implicit_sink, output,
                made[layer],
            )
        )  # fmt: skip
        made[layer] += 1
    if not sites:
        return None
    blocks = tuple(replace(block, kind=NAME) if made[block.layer] else block for block in text.blocks)
    return Tower(NAME, tuple(sites), (), text.d_model, blocks, text.name)


class _ImageReached(Exception):
    """Ends a pass at the first attention to an image."""


@torch.no_grad()
def count_keys(model: torch.nn.Module, tower: Tower, run: Callable[[], Any]) -> int:
    """Run the model up to its first attention to an image, and return how many keys that has; 0 where it makes none."""
    modules = {id(model.get_submodule(site.path)) for site in tower.attention}
    found: list[int] = []

    def observe(module: torch.nn.Module, call: Call) -> None:
        if id(module) in modules:
            found.append(call.key.shape[2])
            raise _ImageReached

    try:
        with seam.entered(model, seam.Session(observe=observe)):
            run()
    except _ImageReached:
        pass
    return found[0] if found else 0


def _layer_of(call: Seen, entries: Sequence[ModuleCall]) -> int | None:
    """Number of the block that a call is made in, or else of the next one that runs behind it in the same stack."""
    inside = {id(entry) for entry in call.by.chain}
    for layer, entry in enumerate(entries):
        if id(entry) in inside:
            return layer
    parent = entries[0].parent
    siblings = [] if parent is None else [id(entry) for entry in parent.inside]
    place = next((siblings.index(each) for each in inside if each in siblings), None)
    if place is None:
        return None
    return next((n for n, entry in enumerate(entries) if siblings.index(id(entry)) > place), None)
