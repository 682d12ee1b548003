"""The blocks of a stack, from the record of a trial run: the members of the list in which something attends."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from sinkscope.models.backends.trial import ModuleCall, Record, Seen


def find_blocks(
    model: torch.nn.Module, record: Record, calls: Iterable[Seen]
) -> tuple[list[ModuleCall], list[ModuleCall]]:
    """All blocks of a stack in the order in which they run, and the block of each attention call.

    Args:
        model: the model.
        record: its trial run.
        calls: the attention calls of the stack.
    """
    lists = _lists(model)
    attend = {id(entry) for call in record.calls for entry in call.by.chain}
    of_call = [_block_of(call, lists, attend) for call in calls]
    homes = {(id(block.parent), lists.get(id(block.module))) for block in of_call}
    found: dict[int, ModuleCall] = {}
    for block in of_call:
        siblings = block.parent.inside if block.parent is not None else record.outer
        for entry in siblings:
            home = id(block.parent), lists.get(id(entry.module))
            if entry is block or (home[1] is not None and home in homes):
                found.setdefault(id(entry), entry)
    return list(found.values()), of_call


def _lists(model: torch.nn.Module) -> dict[int, int]:
    """The list that each member of a list is in, by identity."""
    return {
        id(member): id(module)
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList)
        for member in module
    }


def _block_of(call: Seen, lists: dict[int, int], attend: set[int]) -> ModuleCall:
    """The outermost list member that a call is made in: the transformer block.

    Where all members of a list further in attend, and are more than the attention module itself, the outer list holds
    stages of blocks.
    """
    members = [entry for entry in call.by.chain if id(entry.module) in lists]
    if not members:
        return call.by
    block = members[0]
    for inner in members[1:]:
        assert inner.parent is not None
        same = [e for e in inner.parent.inside if lists.get(id(e.module)) == lists[id(inner.module)]]
        if inner is call.by or not all(id(entry) in attend for entry in same):
            break
        block = inner
    return block
