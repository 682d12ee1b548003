"""One attention call as a model makes it, before any path is chosen for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float

from sinkscope.attention.masks import MaskSpec


@dataclass
class Call:
    """One attention call as a model makes it: keys and values un-repeated, rotary positions already applied.

    ``bias`` is added to the scaled logits (ALiBi, T5's relative positions). ``softcap`` is Gemma 2's c tanh(t / c).
    ``sink_logits`` are learned logits in the denominator alone (GPT-OSS); ``extra_key`` is a learned key,
    ``extra_value`` its value (None: zeros), ``value_bias`` a vector added to every output. ``normaliser`` is
    ``"softmax"`` or what :mod:`sinkscope.attention.normalise` knows.
    """

    query: Float[torch.Tensor, "batch head query dim"]
    key: Float[torch.Tensor, "batch kv_head key dim"]
    value: Float[torch.Tensor, "batch kv_head key vdim"]
    mask: MaskSpec
    scale: float
    bias: torch.Tensor | None = None
    softcap: float | None = None
    sink_logits: Float[torch.Tensor, " head"] | None = None
    extra_key: Float[torch.Tensor, "head dim"] | None = None
    extra_value: Float[torch.Tensor, "head vdim"] | None = None
    value_bias: Float[torch.Tensor, "head vdim"] | None = None
    normaliser: str = "softmax"
    index: int = 0
    """Which call of its block this is, where a block attends more than once."""

    @property
    def plain(self) -> bool:
        """True where softmax(q k^T x scale) v under a causal mask or none is the whole of it.

        The one question every fast path asks first: only then may a library's kernel compute the call. The head sizes
        must agree too, because PyTorch's CPU kernel with log-sum-exp refuses a value of another width.
        """
        return self.plain_on_keys and self.sink_logits is None

    @property
    def plain_on_keys(self) -> bool:
        """True where a call is plain but for learned sinks: over the keys alone a library's kernel may compute it."""
        return (
            self.mask.plain and self.bias is None and self.softcap is None and self.extra_key is None
            and self.value_bias is None and self.normaliser == "softmax"
            and self.query.shape[-1] == self.value.shape[-1]
        )  # fmt: skip

    @property
    def causal(self) -> bool:
        """True where a kernel must be told so: a single query of a plain call sees its one key either way."""
        return self.mask.kind == "causal" and self.query.shape[2] > 1

    @property
    def group(self) -> int:
        """Return how many query heads share one key-value head."""
        return self.query.shape[1] // self.key.shape[1]
