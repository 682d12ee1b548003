"""Random attention calls and their dense answers, for the tests of the pass."""

from dataclasses import dataclass

import oracle
import torch
from hypothesis import strategies as st
from transformers.masking_utils import (
    and_masks,
    bidirectional_mask_function,
    causal_mask_function,
    chunked_overlay,
    sliding_window_overlay,
)

from sinkscope.attention.call import Call
from sinkscope.attention.masks import MaskSpec
from sinkscope.attention.view import Ask, Context, Wants

ALL = (
    "key_sum", "key_viewers", "role_share", "entropy", "row_sum", "log_sum_exp", "value_norm", "key_norm", "write_norm",
)  # fmt: skip
"""Every statistic that takes no argument."""
MASKS = ("causal", "full", "window", "chunked", "random", "offset", "window offset")
PADDING = ("none", "left", "right")


@dataclass
class Case:
    """One call, what is visible in it, and which tokens are real."""

    call: Call
    context: Context
    visible: torch.Tensor

    @property
    def dense(self):
        call = self.call
        return oracle.attention(
            call.query, call.key, call.value, self.visible, call.scale, call.softcap, call.sink_logits, call.bias,
            call.normaliser,
        )  # fmt: skip


def rule_of(mask, table):
    """The library's own rules, and a random one."""
    return {
        "causal": causal_mask_function, "offset": causal_mask_function, "full": bidirectional_mask_function,
        "window": and_masks(sliding_window_overlay(5), causal_mask_function),
        "window offset": and_masks(sliding_window_overlay(7), causal_mask_function),
        "chunked": and_masks(chunked_overlay(6, torch.zeros(8, dtype=torch.long)), causal_mask_function),
        "random": lambda b, h, i, j: table[b, i, j],
    }[mask]  # fmt: skip


def render(mask, table, rows, keys, q_offset):
    """What the rules mean, written out."""
    i, j = torch.arange(rows)[:, None] + q_offset, torch.arange(keys)[None]
    causal = j <= i
    return {
        "causal": causal, "offset": causal, "full": torch.ones(rows, keys, dtype=torch.bool),
        "window": causal & (j > i - 5), "window offset": causal & (j > i - 7), "chunked": causal & (i // 6 == j // 6),
        "random": table,
    }[mask].expand(table.shape)  # fmt: skip


def make(
    length=12, batch=2, kv_heads=2, group=2, dim=8, mask="causal", padding="none", spread=1.0, dtype=torch.float32,
    softcap=None, sinks=False, normaliser="softmax", seed=0,
):  # fmt: skip
    """A call with normal queries, keys and values; ``spread`` widens its logits."""
    g = torch.Generator().manual_seed(seed)
    past = 9 if "offset" in mask else 0
    heads, keys = kv_heads * group, length + past
    shapes = ((batch, heads, length, dim), (batch, kv_heads, keys, dim), (batch, kv_heads, keys, dim))
    query, key, value = (torch.randn(shape, generator=g).to(dtype) for shape in shapes)
    table = torch.rand(batch, length, keys, generator=g) < 0.6
    real = torch.ones(batch, keys, dtype=torch.bool)
    if padding != "none" and length > 1:
        for row in range(batch):
            count = int(torch.randint(0, length, (), generator=g))
            real[row, slice(0, count) if padding == "left" else slice(keys - count, keys)] = False
    spec = MaskSpec(
        batch, length, keys, past, 0, rule_of(mask, table), None if bool(real.all()) else real, False,
        torch.device("cpu"),
    )  # fmt: skip
    visible = render(mask, table, length, keys, past) & real[:, None]
    call = Call(
        query, key, value, spec, scale=spread * dim**-0.5, softcap=softcap,
        sink_logits=torch.randn(heads, generator=g) if sinks else None, normaliser=normaliser,
    )  # fmt: skip
    roles = torch.randint(0, 4, (batch, keys), generator=g)
    return Case(call, Context(real, roles, (0, 1, 2, 3)), visible)


cases = st.builds(
    make,
    length=st.sampled_from([1, 2, 5, 17, 127, 128, 129, 300]),
    batch=st.integers(1, 3),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    dim=st.sampled_from([4, 8, 16]),
    mask=st.sampled_from(MASKS),
    padding=st.sampled_from(PADDING),
    spread=st.sampled_from([0.0, 0.3, 1.0, 6.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    softcap=st.sampled_from([None, 3.0]),
    sinks=st.booleans(),
    seed=st.integers(0, 10**6),
)


def half_of_the_keys(case):
    keys = case.context.real.clone()
    keys[:, ::2] = False
    return keys


def wants(case, *, names=ALL, keys=None):
    """Every statistic, the largest weight on half of the keys, and the maps of the first and the last head."""
    keys = half_of_the_keys(case) if keys is None else keys
    heads = tuple({0, case.call.query.shape[1] - 1})
    return Wants(*names, Ask("max_weight", {"keys": keys}), Ask("map", {"heads": heads}))
