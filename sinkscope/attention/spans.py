"""What each query sees, as one run of keys: the form in which kernels take a mask.

Causal masks, windows, chunks, caches, packed sequences and image blocks all show a query one unbroken run of keys, so
two numbers a query say everything, and no (query, key) tensor is kept. Padding is a second tensor, of keys alone. A
rule that leaves holes (chosen keys, random patterns) has no such form.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int

from sinkscope.attention.masks import BLOCK, MaskSpec


@dataclass(frozen=True, eq=False)
class Spans:
    """Query i of a prompt sees the keys from ``first`` on and before ``stop``, but for those that ``real`` leaves out.

    ``real`` is None where no key is padding.
    """

    first: Int[torch.Tensor, "batch query"]
    stop: Int[torch.Tensor, "batch query"]
    real: Bool[torch.Tensor, "batch key"] | None
    keys: int

    @staticmethod
    def of(mask: MaskSpec) -> Spans | None:
        """Return the runs of a mask, None where some query sees keys with a hole between them; once for each mask."""
        if "spans" not in mask._cache:
            mask._cache["spans"] = _find(mask)
        return mask._cache["spans"]

    def by_query_block(self, block: int) -> tuple[Int[torch.Tensor, " block"], Int[torch.Tensor, " block"]]:
        """Return the first key that any query of a block sees, and the one after the last; a block may see none."""
        queries = self.first.shape[1]
        empty = self.first >= self.stop
        first = torch.nn.functional.pad(
            self.first.masked_fill(empty, self.keys), (0, -queries % block), value=self.keys
        )
        stop = torch.nn.functional.pad(self.stop.masked_fill(empty, 0), (0, -queries % block))
        first, stop = (each.view(len(each), -1, block) for each in (first, stop))
        return first.amin((0, 2)).int(), stop.amax((0, 2)).int()

    def by_key_block(self, block: int, queries: int) -> tuple[Int[torch.Tensor, " block"], Int[torch.Tensor, " block"]]:
        """Return the first query that may see a key of a block, and the one after the last.

        Both are multiples of ``queries``, the number of queries a program takes at once.
        """
        first, stop = self.by_query_block(queries)
        start = torch.arange(0, self.keys, block, device=first.device)
        seen = (first < start[:, None] + block) & (stop > start[:, None])
        count = seen.shape[1]
        place = torch.arange(count, device=first.device)
        low = torch.where(seen, place, count).amin(1)
        high = torch.where(seen, place + 1, 0).amax(1)
        return (low * queries).int(), (high * queries).int()


def _find(mask: MaskSpec) -> Spans | None:
    shape, device = (mask.batch_size, mask.q_length), mask.device
    if mask.kind == "full":
        first = torch.zeros(shape, dtype=torch.int32, device=device)
        stop = torch.full(shape, mask.kv_length, dtype=torch.int32, device=device)
        return Spans(first, stop, mask.padding, mask.kv_length)
    if mask.kind == "causal":
        last = torch.arange(mask.q_length, device=device) + (mask.q_offset - mask.kv_offset + 1)
        stop = last.clamp(0, mask.kv_length).int().expand(shape).contiguous()
        return Spans(torch.zeros_like(stop), stop, mask.padding, mask.kv_length)
    whole = replace(mask, padding=None, _cache={})
    place = torch.arange(mask.kv_length, dtype=torch.int32, device=device)
    first = torch.zeros(shape, dtype=torch.int32, device=device)
    stop, holes = torch.zeros_like(first), torch.zeros((), dtype=torch.bool, device=device)
    for start in range(0, mask.q_length, BLOCK):
        rows = slice(start, min(start + BLOCK, mask.q_length))
        seen = whole.visible(rows, slice(0, mask.kv_length))
        assert seen is not None  # a rule is always rendered
        low = torch.where(seen, place, mask.kv_length).amin(-1)
        high = torch.where(seen, place + 1, 0).amax(-1)
        first[:, rows], stop[:, rows] = torch.minimum(low, high), high
        holes = holes | (seen.sum(-1) != (high - torch.minimum(low, high))).any()
    return None if bool(holes) else Spans(first, stop, mask.padding, mask.kv_length)
