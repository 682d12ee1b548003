"""Launches the Triton kernels on one call, and the library's forward kernel where it knows the call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float

from sinkscope.attention import fused
from sinkscope.attention.call import Call
from sinkscope.attention.logit_terms import LogitTerms
from sinkscope.attention.spans import Spans


@dataclass(frozen=True)
class Tiling:
    """Queries and keys of one tile, and the warps that compute it."""

    queries: int = 64
    keys: int = 64
    warps: int = 4

    @staticmethod
    def of(call: Call, kernel: str) -> Tiling:
        """Return what registers and shared memory of a GPU since Ampere hold; the tests compile it for two."""
        wide = max(call.query.shape[-1], call.value.shape[-1]) > 128
        if call.query.dtype == torch.float32:
            return Tiling(16, 16) if wide else Tiling(32, 32, 8)
        # The forward pass keeps an output beside its tile: with four warps it would not fit their registers.
        return Tiling(64, 32, 8) if wide else Tiling(64, 64, 8 if kernel == "forward" else 4)


@dataclass(frozen=True)
class RowNumbers:
    """What one walk over the keys gives of each row, (batch, head, query); None where it was not asked for."""

    row_sum: Float[torch.Tensor, "batch head query"]
    entropy: Float[torch.Tensor, "batch head query"]
    max_logit: Float[torch.Tensor, "batch head query"]
    max_weight: Float[torch.Tensor, "batch head query"] | None
    top_column: Float[torch.Tensor, "batch head query"] | None
    shares: Float[torch.Tensor, "batch head query role"] | None


class Launcher:
    """One call as the kernels take it.

    ``spans`` is the run of keys that each query sees, ``terms`` what edits add to the logits. ``value`` takes the place
    of the call's own values where they are edited, of more heads than the keys where those of a group came to differ.
    """

    def __init__(
        self, call: Call, spans: Spans, tiling: Tiling | None = None, terms: LogitTerms | None = None,
        value: Float[torch.Tensor, "batch kv_or_head key vdim"] | None = None,
    ) -> None:  # fmt: skip
        self.call, self.spans, self.tiling, self.terms = call, spans, tiling, terms
        value = call.value if value is None else value
        # Kernels walk along the numbers of a vector one by one.
        self.query, self.key, self.value = (
            t if t.stride(-1) == 1 else t.contiguous() for t in (call.query, call.key, value)
        )
        self.first, self.stop = spans.first.contiguous(), spans.stop.contiguous()
        self.real = self.first if spans.real is None else spans.real.to(torch.int8).contiguous()

    def forward(self) -> tuple[Float[torch.Tensor, "batch query head vdim"], Float[torch.Tensor, "batch head query"]]:
        """Return output and log-sum-exp over the keys, by the library's kernel where it knows this call."""
        call = self.call
        alike = self.terms is None and self.value.shape[1] == self.key.shape[1]
        if alike and call.plain_on_keys and fused.has_log_sum_exp(call):
            out, lse = fused.flash(call.query, call.key, self.value, call.causal, call.scale)
            return out.transpose(1, 2), lse
        return self.own_forward()

    def own_forward(
        self,
    ) -> tuple[Float[torch.Tensor, "batch query head vdim"], Float[torch.Tensor, "batch head query"]]:
        """Return output and log-sum-exp by this project's kernel."""
        batch, heads, queries, _ = self.query.shape
        vdim, device = self.value.shape[-1], self.query.device
        out = torch.empty(batch, queries, heads, vdim, dtype=self.value.dtype, device=device)
        lse = torch.empty(batch, heads, queries, device=device)
        self._launch(
            "forward", (self.query, self.key, self.value, out, lse), (self.query, self.key, self.value),
            (heads // self.value.shape[1],), VDIM=vdim, VDIM2=_power(vdim),
        )  # fmt: skip
        return out, lse

    def rows(
        self, total: Float[torch.Tensor, "batch head query"],
        one_hot: Float[torch.Tensor, "batch_or_one key role"] | None,
        chosen: Bool[torch.Tensor, "batch_or_one key"] | None, top: bool,
    ) -> RowNumbers:  # fmt: skip
        """Walk over the keys of each row; ``total`` is the logarithm of its denominator."""
        shape, device = total.shape, total.device
        roles = 0 if one_hot is None else one_hot.shape[-1]
        numbers = torch.empty(4, *shape, device=device)
        column = torch.empty(shape, dtype=torch.int32, device=device) if top else None
        shares = torch.empty(*shape, roles, device=device) if roles else None
        mine = None if chosen is None else chosen.expand(shape[0], -1).to(torch.int8).contiguous()
        member = numbers if one_hot is None else one_hot.contiguous()
        self._launch(
            "rows",
            (self.query, self.key, total.contiguous(), member, _or(mine, numbers), numbers, _or(column, numbers),
             _or(shares, numbers)),
            (self.query, self.key), (_batch_stride(member), total.numel()),
            ROLES=roles, ROLES2=max(16, _power(roles)), CHOSEN=mine is not None, TOP=top,
            SPLIT=self.query.dtype != torch.float32,
        )  # fmt: skip
        most = None if mine is None else numbers[3]
        best = None if column is None else column.float()
        return RowNumbers(numbers[0], numbers[1].clamp_(min=0.0), numbers[2], most, best, shares)

    def columns(
        self, total: Float[torch.Tensor, "batch head query"], counted: Float[torch.Tensor, "batch_or_one query"]
    ) -> Float[torch.Tensor, "batch head key"]:
        """Return for each key the sum of its weights over the ``counted`` queries."""
        sums = torch.empty(*total.shape[:2], self.key.shape[2], device=total.device)
        counted = counted.contiguous()
        self._launch(
            "columns", (self.query, self.key, total.contiguous(), counted, sums), (self.query, self.key),
            (_batch_stride(counted),),
        )  # fmt: skip
        return sums

    def _launch(
        self, name: str, tensors: tuple[torch.Tensor, ...], strided: tuple[torch.Tensor, ...], more: tuple[int, ...],
        **constants: Any,
    ) -> None:  # fmt: skip
        from sinkscope.attention import kernels  # Triton is an extra

        kernel: Any = getattr(kernels, name)
        call, tiling = self.call, self.tiling or Tiling.of(self.call, name)
        batch, heads, queries, dim = self.query.shape
        keys = self.key.shape[2]
        if name == "columns":
            blocks = self.spans.by_key_block(tiling.keys, tiling.queries)
        else:
            blocks = self.spans.by_query_block(tiling.queries)
        terms = self.terms
        edits = (self.first,) * 3 if terms is None else (terms.step, terms.acts, terms.own)
        strides = [step for tensor in strided for step in tensor.stride()[:3]]
        # A model over several devices: Triton launches on the current one, not on that of its arguments.
        with torch.cuda.device_of(self.query):
            kernel[len(blocks[0]), batch * heads](
                *tensors, self.first, self.stop, *blocks, self.real, *edits, *strides,
                call.scale, call.softcap or 1.0, heads, call.group, queries, keys, *more,
                DIM=dim, DIM2=_power(dim), CAPPED=call.softcap is not None, PADDED=self.spans.real is not None,
                TERMS=0 if terms is None else len(terms.step), BEFORE=0 if terms is None else terms.before,
                BM=tiling.queries, BN=tiling.keys, num_warps=tiling.warps, **constants,
            )  # fmt: skip


def _power(number: int) -> int:
    """Return the next power of two, at least the 16 that tensor cores take."""
    return max(16, 1 << (number - 1).bit_length())


def _or(tensor: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor:
    """Return what is there: a kernel takes a pointer for what it does not touch."""
    return other if tensor is None else tensor


def _batch_stride(tensor: torch.Tensor) -> int:
    """Return the step from prompt to prompt: none where one row serves all of them."""
    return tensor.stride(0) if len(tensor) > 1 else 0
