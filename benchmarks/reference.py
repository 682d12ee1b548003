"""The reference model of the benchmarks, and the ways of reading its attention that are compared.

Llama architecture, 8 layers, width 512, 8 heads, random weights; batch 1, one thread. Every way does one forward pass
over the same tokens and, but for the plain pass, ends with the same statistics or a stated part of them.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import sinkscope as sk

LAYERS, WIDTH, HEADS, VOCAB = 8, 512, 8, 1024


@functools.cache
def model(dtype: str) -> LlamaForCausalLM:
    """The model on the library's fused attention, as a user of transformers runs it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, intermediate_size=1408, max_position_embeddings=1 << 16, bos_token_id=1,
    )  # fmt: skip
    network = LlamaForCausalLM(config).eval().to(getattr(torch, dtype))
    network.set_attn_implementation("sdpa")
    return network


def ids(length: int) -> torch.Tensor:
    """Random tokens behind a beginning-of-sequence token, shape (1, length)."""
    drawn = torch.randint(3, VOCAB, (1, length), generator=torch.Generator().manual_seed(length))
    drawn[0, 0] = 1
    return drawn


def attention_probes() -> list[Any]:
    """Every attention statistic."""
    return [
        sk.KeyMass(), sk.RoleShare(), sk.Entropy(), sk.MaxAttention(keys="first", queries="all"), sk.RowSum(),
        sk.ValueNorm(), sk.KeyNorm(), sk.Contribution(),
    ]  # fmt: skip


def residual_probes() -> list[Any]:
    """Every statistic of the residual stream."""
    return [sk.ResidualNorm(), sk.MassiveActivations(), sk.SinkDims()]


def plain(dtype: str, length: int) -> Callable[[], Any]:
    """The forward pass alone."""
    network, tokens = model(dtype).model, ids(length)

    def once() -> Any:
        with torch.no_grad():
            return network(tokens, use_cache=False)

    return once


def _run(dtype: str, length: int, probes: list[Any]) -> Callable[[], Any]:
    handle = sk.load_model(model(dtype))
    prompts = sk.Prompts.from_ids(ids(length).tolist(), handle)
    return lambda: sk.run(handle, prompts, probes)


def all_attention(dtype: str, length: int) -> Callable[[], Any]:
    """sinkscope, all attention statistics."""
    return _run(dtype, length, attention_probes())


def everything(dtype: str, length: int) -> Callable[[], Any]:
    """sinkscope, all attention and residual-stream statistics."""
    return _run(dtype, length, attention_probes() + residual_probes())


def few_keys(dtype: str, length: int) -> Callable[[], Any]:
    """sinkscope, attention on the first token and value norms."""
    return _run(dtype, length, [sk.KeyMass(keys="first"), sk.ValueNorm()])


def one_edit(dtype: str, length: int) -> Callable[[], Any]:
    """The forward pass under one attention edit in every layer."""
    handle = sk.load_model(model(dtype))
    tokens = ids(length)
    prompts = sk.Prompts.from_ids(tokens.tolist(), handle)
    edit = sk.ScaleKeys(0.5, keys="first")

    def once() -> Any:
        with torch.no_grad(), sk.applied(handle, [edit], prompts):
            return handle.model.model(tokens, use_cache=False)

    return once


def eager_maps(dtype: str, length: int) -> Callable[[], Any]:
    """transformers' output_attentions, then key mass and entropy from the maps."""
    network, tokens = copy.deepcopy(model(dtype).model), ids(length)
    network.set_attn_implementation("eager")

    def once() -> Any:
        with torch.no_grad():
            maps = network(tokens, use_cache=False, output_attentions=True).attentions
        seen = torch.arange(length, 0, -1)
        return [(m.float().sum(2) / seen, torch.special.entr(m.float()).sum(-1)) for m in maps]

    return once


def lens_cache(dtype: str, length: int) -> Callable[[], Any]:
    """TransformerLens run_with_cache of the attention patterns, then key mass and entropy from them."""
    bridge = sk.load_model(model(dtype)).to_bridge()
    tokens = ids(length)

    def once() -> Any:
        with torch.no_grad():
            _, cache = bridge.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"))
        seen = torch.arange(length, 0, -1)
        return [(m.float().sum(2) / seen, torch.special.entr(m.float()).sum(-1)) for m in cache.values()]

    return once


WAYS: dict[str, Callable[[str, int], Callable[[], Any]]] = {
    "plain forward pass (SDPA)": plain,
    "sinkscope: first token's share, value norms": few_keys,
    "sinkscope: one edit in every layer": one_edit,
    "sinkscope: all attention statistics": all_attention,
    "sinkscope: attention and residual statistics": everything,
    "transformers: output_attentions": eager_maps,
    "TransformerLens: pattern cache": lens_cache,
}
