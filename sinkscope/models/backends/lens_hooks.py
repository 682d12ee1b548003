"""What sinkscope does at the hook points of a TransformerBridge: read one layer's map, reduce it, drop it; or edit it.

Reconstructed attention fires values, keys, scores, pattern and output in this order, so a pattern can be edited before
it is used. Delegated attention fires the pattern after the fact: it can be read, and nothing can be changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float

from sinkscope.attention.blockwise import attend
from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.dense import reduce_map
from sinkscope.attention.masks import from_call
from sinkscope.attention.rows import RowEdits
from sinkscope.attention.view import Ask, Context, LayerStats, Wants
from sinkscope.errors import EditError, UnsupportedModelError
from sinkscope.models.backends.base import AttentionSite, Instruments, ResidualHook
from sinkscope.models.backends.projections import Factor, write_norms
from sinkscope.models.backends.written import HeadOutputs, add_written

NamedHook = tuple[str, Callable[..., Any]]
"""Name of a hook point and the function that goes there, as ``run_with_hooks`` takes them."""


@dataclass(frozen=True)
class Seat:
    """One attention layer of a bridge: the site, the module, and which of its hook points can be relied on.

    ``live`` is True where the pattern is used after its hook has run, so that an edit takes effect; ``key_hook`` is the
    hook point that holds the keys as attention sees them, up to a rotation.
    """

    site: AttentionSite
    module: Any
    live: bool
    key_hook: str
    value_limit: float | None = None

    def point(self, name: str) -> str:
        """Full name of one of the layer's hook points."""
        return f"{self.site.path}.{name}"


def residual_hook(hooks: Sequence[ResidualHook]) -> Callable[..., torch.Tensor | None]:
    """Chain the hooks of one residual-stream site into one function for a hook point."""

    def run(tensor: Float[torch.Tensor, "batch key d_model"], hook: Any) -> torch.Tensor | None:
        hidden = tensor
        for each in hooks:
            new = each(hidden)
            hidden = hidden if new is None else new
        return None if hidden is tensor else hidden

    return run


def attention_hooks(
    seats: Sequence[Seat], instruments: Instruments, factor_of: Callable[[AttentionSite], Factor | None]
) -> list[NamedHook]:
    """Hooks that read and edit the attention of every layer that some probe or edit concerns.

    ``factor_of`` gives what W_O does to each head's output, see :mod:`sinkscope.models.backends.written`.
    """
    hooks: list[NamedHook] = []
    for seat in seats:
        wants = instruments.wants.get(seat.site.layer, Wants())
        if wants.anything or instruments.edits is not None:
            hooks += _Layer(seat, wants, instruments, factor_of).hooks()
    return hooks


class _Layer:
    """Holds one layer's tensors from the first of its hooks to the last, and no longer."""

    def __init__(
        self, seat: Seat, wants: Wants, instruments: Instruments, factor_of: Callable[[AttentionSite], Factor | None]
    ) -> None:
        self.seat, self.wants, self.instruments, self.factor_of = seat, wants, instruments, factor_of
        self.value: torch.Tensor | None = None
        self.key: torch.Tensor | None = None
        self.scores: torch.Tensor | None = None
        self.output: torch.Tensor | None = None
        if "log_sum_exp" in wants and not seat.live:
            raise UnsupportedModelError(
                f"LogSumExp: TransformerLens has no attention scores before the softmax for {seat.site.path}, only "
                "weights. Use Entropy() or RowSum(), or load the transformers model instead of the bridge."
            )
        if "log_sum_exp" in wants and type(seat.module).__name__ == "MPTALiBiAttentionBridge":
            raise UnsupportedModelError(
                "LogSumExp: MPT's position biases count from the end of the batch, so the same prompt has another "
                "log-sum-exp in a longer batch. Use Entropy() or MaxAttention(), which do not depend on it."
            )

    def hooks(self) -> list[NamedHook]:
        """Functions for this layer's hook points."""
        named = [("hook_v", self._on_value), ("hook_pattern", self._on_pattern)]
        if "key_norm" in self.wants:
            named.append((self.seat.key_hook, self._on_key))
        if self.seat.live:
            named.append(("hook_attn_scores", self._on_scores))
            if self.instruments.edits is not None:
                named.append(("hook_z", self._on_output))
        return [(self.seat.point(name), function) for name, function in named]

    def _on_value(self, tensor: Float[torch.Tensor, "batch key kv_head dim"], hook: Any) -> None:
        value = tensor.detach() if self.instruments.edits is None else tensor
        limit = self.seat.value_limit
        self.value = (value if limit is None else value.clamp(-limit, limit)).transpose(1, 2)

    def _on_key(self, tensor: Float[torch.Tensor, "batch key kv_head dim"], hook: Any) -> None:
        self.key = tensor.detach().transpose(1, 2)

    def _on_scores(self, tensor: Float[torch.Tensor, "batch head query key"], hook: Any) -> None:
        self.scores = tensor

    def _on_pattern(
        self, weights: Float[torch.Tensor, "batch head query key"], hook: Any
    ) -> Float[torch.Tensor, "batch head query key"] | None:
        assert self.value is not None
        context = self.instruments.context or _all_real(weights)
        visible = self._visible(weights, context)
        call = None if self.instruments.edits is None else self._call(weights, visible)
        edits = None if call is None or self.instruments.edits is None else self._edits(call)
        if call is not None and edits:
            stats, changed = self._edited(call, edits, context)
        else:
            lse = None
            if self.wants.log_sum_exp_needed and self.scores is not None:
                lse = self.scores.detach().float().masked_fill(~visible[:, None], -torch.inf).logsumexp(-1)
            vectors = (self.key, self.value.detach())
            stats, changed = reduce_map(weights, self.wants, context, visible, vectors=vectors, lse=lse), None
            factor = self._factor()
            if factor is not None:
                stats["write_norm"] = write_norms(factor, stats["write_norm"])
        self.value = self.scores = self.key = None
        if self.wants.anything:
            self.instruments.collect(self.seat.site, stats)
        return changed

    def _on_output(self, tensor: torch.Tensor, hook: Any) -> torch.Tensor | None:
        output, self.output = self.output, None
        return None if output is None else output.reshape(tensor.shape).to(tensor.dtype)

    def _edits(self, call: Call) -> CallEdits | RowEdits | None:
        assert self.instruments.edits is not None
        edits = self.instruments.edits(self.seat.site.layer, call)
        parts = [part for _, part in edits.parts] if isinstance(edits, RowEdits) else [edits]
        if any(part is not None and part.extra_keys for part in parts):
            raise EditError(
                "an extra key-value pair is scored against the queries, and a bridge hands over finished scores. "
                "Load the transformers model instead of the bridge."
            )
        if any(part is not None and part.mask is not None for part in parts):
            raise EditError(
                "OpenKeys, LimitWindow: a bridge hands over scores with the hidden keys taken out, so its mask stays. "
                "Load the transformers model instead of the bridge."
            )
        return edits

    def _call(self, weights: Float[torch.Tensor, "batch head query key"], visible: torch.Tensor) -> Call:
        """The layer as one attention call: its bias holds the logits, queries and keys are mere shapes."""
        assert self.value is not None
        assert self.scores is not None
        key = torch.zeros_like(self.value) if self.key is None else self.key
        query = self.value.new_zeros(*weights.shape[:3], key.shape[-1])
        mask, _ = from_call(visible[:, None], query, key, causal=False)
        bias = self.scores.float().masked_fill(~visible[:, None], 0.0)
        sinks = getattr(self.seat.module.original_component, "sinks", None)
        return Call(query, key, self.value, mask, scale=1.0, bias=bias, sink_logits=sinks)

    def _edited(self, call: Call, edits: CallEdits | RowEdits, context: Context) -> tuple[LayerStats, torch.Tensor]:
        """Run the edited call, keep its output for ``hook_z``, and return statistics and the new pattern."""
        every = Ask("map", {"heads": tuple(range(self.seat.site.heads))})
        wants = Wants(*self.wants.asks.values(), every)
        factor, outputs = self._factor(), HeadOutputs(self.seat.site)
        watched = edits if factor is None else outputs.watch(call, edits)
        if isinstance(watched, RowEdits):
            self.output, stats = watched.attend(call, wants, context, attend)
        else:
            self.output, stats = attend(call, wants, context, watched)
        if factor is not None:
            outputs.read = self.output.detach()  # at this hook W_O reads what is put there
            add_written(outputs, stats, factor, context)
        pattern = stats.values.pop(wants.add(every))
        return LayerStats(stats.values, "dense"), pattern.to(call.value.dtype)

    def _factor(self) -> Factor | None:
        return self.factor_of(self.seat.site) if "write_norm" in self.wants else None

    def _visible(
        self, weights: Float[torch.Tensor, "batch head query key"], context: Context
    ) -> Bool[torch.Tensor, "batch query key"]:
        if self.scores is not None:
            assert self.value is not None
            return (self.scores > torch.finfo(self.value.dtype).min / 2).any(1)
        visible = allowed(self.seat, weights, context.real)
        attended = (weights > 0).any(1) & context.real[:, -weights.shape[2] :, None]
        if bool((attended & ~visible).any()):
            raise UnsupportedModelError(
                f"{self.seat.site.path}: a query attends to a key that this layer's mask should hide, so the number of "
                "queries that see a key is not known. Load the transformers model instead of the bridge."
            )
        return visible


def allowed(
    seat: Seat, weights: Float[torch.Tensor, "batch head query key"], real: Bool[torch.Tensor, "batch key"]
) -> Bool[torch.Tensor, "batch query key"]:
    """Keys each query may see in delegated attention, from the layer's own rule: causal order, window, real tokens."""
    rows, keys = weights.shape[2:]
    seen = real[:, None, :keys].expand(-1, rows, -1)
    if not seat.site.causal:
        return seen
    query = torch.arange(keys - rows, keys, device=weights.device)[:, None]
    key = torch.arange(keys, device=weights.device)[None]
    rule = key <= query
    original = seat.module.original_component
    window = getattr(original, "sliding_window", None)
    if isinstance(window, int):
        rule = rule & (key > query - window)
    buffer = getattr(original, "bias", None)
    if isinstance(buffer, torch.Tensor) and buffer.dtype == torch.bool and buffer.ndim == 4:  # GPT-Neo's local layers
        rule = rule & buffer[0, 0, keys - rows : keys, :keys]
    return seen & rule


def _all_real(weights: Float[torch.Tensor, "batch head query key"]) -> Context:
    shape = (weights.shape[0], weights.shape[3])
    real = torch.ones(shape, dtype=torch.bool, device=weights.device)
    return Context(real, torch.zeros(shape, dtype=torch.long, device=weights.device), (0,))
