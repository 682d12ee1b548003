"""Which keys a query may see, without ever building a (query, key) tensor.

transformers asks a registered mask function for a mask and hands what it gives to the attention function. Ours returns
a :class:`MaskSpec`: lengths, offsets and the library's own index rule. A block of rows is rendered on demand, so
absolute positions are known, sliding windows and caches work, and memory stays linear in the number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

from sinkscope.errors import UnsupportedModelError

BLOCK = 128
"""Query rows per block. Measured best on CPU (docs/decisions.md)."""

HIDDEN_LOGIT = -1e30
"""Logit of a hidden key. Finite, so 0 x logit stays 0 in the entropy; exp of it is exactly 0 in float32."""


class EmptyCacheError(UnsupportedModelError):
    """A step of generation behind a cache that says it holds no token."""


@dataclass(eq=False)
class MaskSpec:
    """The library's mask rule for one attention call, kept as a rule.

    ``kind`` is ``"causal"``, ``"full"`` or ``"rule"``; the first two need no rendering where nothing is padded.
    """

    batch_size: int
    q_length: int
    kv_length: int
    q_offset: int
    kv_offset: int
    rule: Callable[..., Any]
    padding: Bool[torch.Tensor, "batch key"] | None
    use_vmap: bool
    device: torch.device
    dtype: torch.dtype = torch.float32
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def kind(self) -> str:
        """``"causal"``, ``"full"`` or ``"rule"``."""
        if self.rule is causal_mask_function:
            return "causal"
        return "full" if self.rule is bidirectional_mask_function else "rule"

    @property
    def plain(self) -> bool:
        """True where the mask is exactly causal or full: no padding, no window, no cache offset."""
        aligned = self.q_length == self.kv_length and self.q_offset == self.kv_offset
        return self.padding is None and (self.kind == "full" or (self.kind == "causal" and aligned))

    def contiguous(self) -> MaskSpec:
        """Refuse: transformers asks this of a mask that it has made for a static cache, ahead of the pass.

        Raises:
            UnsupportedModelError: always.
        """
        raise UnsupportedModelError(
            "a static cache fixes the mask before the pass, and edits and probes need it within. Leave "
            "cache_implementation out: a dynamic cache gives the same tokens."
        )

    def repeat(self, *sizes: int) -> torch.Tensor:
        """Render the mask whole, as eager attention has it, for a module that repeats it by head (SigLIP 2's pooling).

        Returns:
            (batch, 1, query, key), repeated: 0 where a key is seen, the lowest number of the type elsewhere.
        """
        seen = self.visible(slice(0, self.q_length), slice(0, self.kv_length))
        shape = (self.batch_size, 1, self.q_length, self.kv_length)
        added = torch.zeros(shape, dtype=self.dtype, device=self.device)
        if seen is not None:
            added = added.masked_fill(~seen[:, None], torch.finfo(self.dtype).min)
        return added.repeat(*sizes)

    def visible(self, rows: slice, cols: slice) -> Bool[torch.Tensor, "batch query key"] | None:
        """Render one block; None where every query of the block sees every key of it."""
        first = rows.start + self.q_offset
        if self.padding is None and (
            self.kind == "full" or (self.kind == "causal" and cols.stop - 1 + self.kv_offset <= first)
        ):
            return None
        q = torch.arange(rows.start, rows.stop, device=self.device) + self.q_offset
        kv = torch.arange(cols.start, cols.stop, device=self.device) + self.kv_offset
        seen = self._apply(q, kv)
        if self.padding is not None:
            seen = seen & self.padding[:, None, cols]
        return seen

    def hidden(self, rows: slice, cols: slice) -> tuple[int, Bool[torch.Tensor, "batch query key"]] | None:
        """Keys hidden from some query of a block: the first such column (from ``cols.start``) and the block from there.

        A causal mask without padding hides only the corner past the first row's own position, which is all that is
        rendered, once per size; the leading axis is then 1.
        """
        if self.kind != "causal" or self.padding is not None:
            seen = self.visible(rows, cols)
            return None if seen is None else (0, ~seen)
        edge = max(0, rows.start + self.q_offset - self.kv_offset + 1 - cols.start)
        width = cols.stop - cols.start - edge
        if width <= 0:
            return None
        lead = rows.start + self.q_offset - self.kv_offset + 1 - cols.start - edge
        key = ("corner", rows.stop - rows.start, width, lead)
        if key not in self._cache:
            row = torch.arange(rows.stop - rows.start, device=self.device)[:, None]
            col = torch.arange(width, device=self.device)[None, :]
            self._cache[key] = (col >= row + lead)[None]
        return edge, self._cache[key]

    def _apply(
        self, q: Int[torch.Tensor, " query"], kv: Int[torch.Tensor, " key"]
    ) -> Bool[torch.Tensor, "batch query key"]:
        shape = (self.batch_size, len(q), len(kv))
        if self.kind == "causal":
            return (kv[None, :] <= q[:, None]).expand(shape)
        if self.kind == "full":
            return torch.ones(shape, dtype=torch.bool, device=self.device)
        batch = torch.arange(self.batch_size, device=self.device)
        # Rules of transformers look at batch row and positions alone, so head 0 stands for all of them.
        head = torch.zeros(1, dtype=torch.long, device=self.device)
        if self.use_vmap:
            # The library's own way to evaluate rules that index tensors (packed sequences, image blocks): one vmap per
            # argument, with item access turned into indexing so that vmap can follow it.
            with TransformGetItemToIndex():
                rule = self.rule
                for dims in (
                    (None, None, None, 0),
                    (None, None, 0, None),
                    (None, 0, None, None),
                    (0, None, None, None),
                ):
                    rule = torch.vmap(rule, in_dims=dims, out_dims=0)
                seen = rule(batch, head, q, kv)
        else:
            seen = self.rule(
                batch[:, None, None, None], head[None, :, None, None], q[None, None, :, None], kv[None, None, None, :]
            )
        return seen.expand(self.batch_size, 1, len(q), len(kv))[:, 0]

    def extent(self, rows: slice) -> slice:
        """Smallest run of keys that holds every key some query of ``rows`` can see."""
        if self.kind == "full":
            return slice(0, self.kv_length)
        if self.kind == "causal":
            stop = rows.stop + self.q_offset - self.kv_offset
            return slice(0, max(1, min(self.kv_length, stop)))
        key = ("extent", rows.start, rows.stop)
        if key not in self._cache:
            seen = self.visible(rows, slice(0, self.kv_length))
            hits = torch.ones(self.kv_length, device=self.device) if seen is None else seen.any(0).any(0)
            where = hits.nonzero()[:, 0]
            found = (int(where[0]), int(where[-1]) + 1) if len(where) else (0, 1)
            self._cache[key] = slice(*found)
        return self._cache[key]

    def viewers(self, real_queries: Bool[torch.Tensor, "batch query"]) -> Float[torch.Tensor, "batch key"]:
        """Number of real queries that can see each key. Cached: layers that share a mask share the count."""
        kept = ("viewers", id(real_queries))
        if kept not in self._cache:
            total = torch.zeros(self.batch_size, self.kv_length, device=self.device)
            for start in range(0, self.q_length, BLOCK):
                rows = slice(start, min(start + BLOCK, self.q_length))
                cols = self.extent(rows)
                weight = real_queries[:, rows].float()
                seen = self.visible(rows, cols)
                if seen is None:
                    total[:, cols] += weight.sum(1, keepdim=True)
                else:
                    total[:, cols] += torch.einsum("bq,bqk->bk", weight, seen.float())
            self._cache[kept] = real_queries, total  # the mask is kept, so that its id is not given to another
        return self._cache[kept][1]

    def dead_rows(self) -> Bool[torch.Tensor, "batch query"] | None:
        """Queries that see no key at all (left padding); None where there are none."""
        if self.padding is None and self.kind != "rule":
            return None
        if "dead" not in self._cache:
            dead = torch.zeros(self.batch_size, self.q_length, dtype=torch.bool, device=self.device)
            for start in range(0, self.q_length, BLOCK):
                rows = slice(start, min(start + BLOCK, self.q_length))
                seen = self.visible(rows, self.extent(rows))
                if seen is not None:
                    dead[:, rows] = ~seen.any(-1)
            self._cache["dead"] = dead if bool(dead.any()) else None
        return self._cache["dead"]


def is_windowed(mask: MaskSpec) -> bool:
    """True where a query far down would not see the first key: a sliding window, or a chunk."""
    if mask.kind != "rule":
        return False
    far = 1 << 20
    longer = replace(mask, q_length=far, kv_length=far, q_offset=0, kv_offset=0, padding=None, _cache={})
    try:
        seen = longer.visible(slice(far - 1, far), slice(0, 1))
    except (IndexError, RuntimeError):  # a rule that looks tokens up has no answer beyond its own
        return False
    return seen is not None and not bool(seen.any())


def penalty(mask: MaskSpec, rows: slice, cols: slice) -> tuple[int, Float[torch.Tensor, "batch query key"]] | None:
    """Return :meth:`MaskSpec.hidden` as numbers to add to logits: adding is many times faster than filling by a mask.

    In float32 a logit plus -1e30 is -1e30, digit for digit.
    """
    found = mask.hidden(rows, cols)
    if found is None:
        return None
    edge, block = found
    if mask.kind != "causal" or mask.padding is not None:
        return edge, block.float().mul_(HIDDEN_LOGIT)
    # A causal corner is rendered once per size, and so are its numbers.
    key = ("penalty", id(block))
    if key not in mask._cache:
        mask._cache[key] = block.float().mul_(HIDDEN_LOGIT)
    return edge, mask._cache[key]


def sinkscope_mask(  # noqa: PLR0913 - the library fixes this signature
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **more: Any,
) -> MaskSpec:
    """The mask function registered with transformers; the parameters are the library's."""
    padding = None
    if attention_mask is not None:
        padding = attention_mask.bool()
        if (short := kv_length + kv_offset - padding.shape[-1]) > 0:
            padding = torch.nn.functional.pad(padding, (0, short))
        # A static cache is longer than what is in it: keys that do not exist yet are hidden like padding.
        padding = padding[:, kv_offset : kv_offset + kv_length]
        padding = None if bool(padding.all()) else padding
    return MaskSpec(
        batch_size, q_length, kv_length, int(q_offset), int(kv_offset), mask_function, padding, use_vmap,
        torch.device(device), more.get("dtype", torch.float32),
    )  # fmt: skip


def with_opened(
    mask: MaskSpec, keys: Bool[torch.Tensor, "batch key"], queries: Bool[torch.Tensor, "batch query"]
) -> MaskSpec:
    """Show ``keys`` to ``queries`` whatever the rule says of them: keys behind a query are opened to it.

    Both are masks over the axes of the call. Padding stays hidden.
    """
    rule, first_query, first_key = mask.rule, mask.q_offset, mask.kv_offset

    def opened(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return rule(batch, head, query, key) | (queries[batch, query - first_query] & keys[batch, key - first_key])

    return replace(mask, rule=opened, _cache={})


def with_window(
    mask: MaskSpec, window: int, kept: Bool[torch.Tensor, "batch key"], queries: Bool[torch.Tensor, "batch query"]
) -> MaskSpec:
    """Hide from ``queries`` the keys that are ``window`` or more positions away, but for ``kept`` ones.

    Both masks are over the axes of the call. What the rule hides stays hidden.
    """
    rule, first_query, first_key = mask.rule, mask.q_offset, mask.kv_offset

    def near(batch: Any, head: Any, query: Any, key: Any) -> Any:
        seen = ((query - key).abs() < window) | kept[batch, key - first_key] | ~queries[batch, query - first_query]
        return rule(batch, head, query, key) & seen

    return replace(mask, rule=near, _cache={})


def with_chosen(
    mask: MaskSpec | torch.Tensor | None,
    indices: Int[torch.Tensor, "batch query chosen"],
    queries: int,
    keys: int,
) -> Bool[torch.Tensor, "batch one query key"] | Float[torch.Tensor, "batch one query key"]:
    """Hide all keys but the chosen ones of each query, on top of a mask (DeepSeek-V3.2's sparse attention).

    A negative index stands for no key.
    """
    picked = torch.zeros(*indices.shape[:2], keys + 1, dtype=torch.bool, device=indices.device)
    picked.scatter_(-1, torch.where(indices < 0, keys, indices).long(), True)
    picked = picked[:, None, :, :keys]
    if isinstance(mask, MaskSpec):
        seen = mask.visible(slice(0, queries), slice(0, keys))
        mask = None if seen is None else seen[:, None]
    if mask is None or mask.dtype == torch.bool:
        return picked if mask is None else mask & picked
    return mask.masked_fill(~picked, torch.finfo(mask.dtype).min)


def from_call(
    mask: MaskSpec | torch.Tensor | None, query: torch.Tensor, key: torch.Tensor, causal: bool
) -> tuple[MaskSpec, torch.Tensor | None]:
    """Turn whatever a model passed as its mask into a spec and, for additive masks, a bias.

    A missing mask means full attention, or top-left aligned causal attention where ``causal`` is set, as in PyTorch.

    Raises:
        UnsupportedModelError: the call has other queries or keys than its mask was made for.
    """
    batch, q_length, kv_length = query.shape[0], query.shape[2], key.shape[2]
    if isinstance(mask, MaskSpec):
        if (mask.q_length, mask.kv_length) != (q_length, kv_length):
            if (mask.q_length, mask.kv_length, q_length) == (1, 1, 1):
                raise EmptyCacheError(
                    f"this model takes a step to {kv_length} keys under a mask made for 1: its cache says that it "
                    "holds no token, as where the first block keeps none (MiniMax). Generate with use_cache=False."
                )
            raise UnsupportedModelError(
                f"this model attends from {q_length} queries to {kv_length} keys under a mask made for "
                f"{mask.q_length} and {mask.kv_length}: it has keys of its own beside the tokens' (compressed ones, a "
                "memory), and which of them a query sees is not known. Read it by transformers' own "
                "output_attentions=True."
            )
        return mask, None
    rule: Callable[..., Any] = causal_mask_function if causal and q_length > 1 else bidirectional_mask_function
    spec = MaskSpec(batch, q_length, kv_length, 0, 0, rule, None, False, query.device)
    if mask is None:
        return spec, None
    if causal:  # rows behind a cache are the last positions of the keys
        spec.q_offset = max(0, kv_length - q_length)
    # Some models hand over a mask as long as their position table (GPT-2's buffer), not as their keys.
    mask = mask[..., :kv_length]
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    seen = seen.expand(batch, seen.shape[1], q_length, kv_length)[:, 0]
    # A mask with a head axis is taken to hide the same keys from every head; what differs by head is a bias.
    first = spec.q_offset
    spec.rule = lambda b, h, i, j: seen[b, i - first, j]
    if mask.dtype == torch.bool:
        return spec, None
    # What is left after the hidden entries may still be a bias: ALiBi and T5 fold theirs into the mask.
    bias = mask.float().masked_fill(mask <= torch.finfo(mask.dtype).min / 2, 0.0)
    return spec, bias if bool((bias != 0).any()) else None
