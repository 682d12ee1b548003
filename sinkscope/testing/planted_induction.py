"""A model that copies, built by hand: one head looks one token back, one finds where the last token stood before.

The mechanism is that of induction heads: a head of block 0 writes each token's predecessor beside it, a head of block 1
looks for the token whose predecessor is the last one, and writes that token as the next one. A constructed model is
truth for detectors, never evidence about trained ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sinkscope.testing.tiny import BOS, EOS, PAD, VOCAB

if TYPE_CHECKING:
    from sinkscope.models.handle import Model

_HEADS, _DIM, _SLOW, _THETA = 4, 256, 64, 1e6
_SHARP = 60.0
"""Heads of a block, their width, the rotary pair from which on nothing turns over 128 tokens, and the planted gain."""


@dataclass(frozen=True)
class InductionTruth:
    """What was planted.

    Attributes:
        previous: (layer, head) of the head that looks one token back.
        induction: (layer, head) of the head that copies; None for the twin.
    """

    previous: tuple[int, int] | None
    induction: tuple[int, int] | None


def planted_induction(seed: int = 0, shuffled: bool = False) -> tuple[Model, InductionTruth]:
    """Build a Llama of two blocks that continues what it has seen before, and say which head does it.

    Prompts start with ``model.config.bos_token_id``, where the copying head looks when there is nothing to copy. Good
    for prompts of up to 128 tokens. The other heads are random and write little.

    Args:
        seed: chooses the two heads and the weights of the others.
        shuffled: give the twin: every matrix of attention keeps its entries but loses their order; nothing is copied.
    """
    from sinkscope.models.handle import load_model

    generator = torch.Generator().manual_seed(seed)
    network, truth = _plant(generator)
    if shuffled:
        with torch.no_grad():
            for name, weight in network.named_parameters():
                if "self_attn" in name:
                    weight.copy_(weight.flatten()[torch.randperm(weight.numel(), generator=generator)].view_as(weight))
        truth = InductionTruth(None, None)
    network.name_or_path = f"planted-induction-{seed}" + ("-shuffled" if shuffled else "")
    return load_model(network), truth


@torch.no_grad()
def _plant(generator: torch.Generator) -> tuple[LlamaForCausalLM, InductionTruth]:
    width = 3 * VOCAB + _HEADS
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=width, intermediate_size=8, num_hidden_layers=2, num_attention_heads=_HEADS,
        num_key_value_heads=_HEADS, head_dim=_DIM, max_position_embeddings=1024, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": _THETA}, bos_token_id=BOS, eos_token_id=EOS,
        pad_token_id=PAD, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        network = LlamaForCausalLM(config).float().eval()
    for parameter in network.parameters():
        if parameter.ndim == 2:
            parameter.zero_()
    # The stream: which token it is, which one stood before, what comes next, and a constant.
    token, before, after = (slice(part * VOCAB, (part + 1) * VOCAB) for part in range(3))
    inner: Any = network.model
    inner.embed_tokens.weight[:, token] = torch.eye(VOCAB)
    inner.embed_tokens.weight[:, -1] = 1.0
    network.lm_head.weight[:, after] = 4.0 * torch.eye(VOCAB)
    first, second = torch.randint(_HEADS, (2,), generator=generator).tolist()
    for block in inner.layers:
        for reader in (block.self_attn.q_proj, block.self_attn.k_proj):
            reader.weight.copy_(0.05 * torch.randn(reader.weight.shape, generator=generator))
        value, output = block.self_attn.v_proj.weight, block.self_attn.o_proj.weight
        value.copy_(0.05 * torch.randn(value.shape, generator=generator))
        output.copy_(0.003 * torch.randn(output.shape, generator=generator))
    _look_back(inner.layers[0].self_attn, first, token, before)
    _find(inner.layers[1].self_attn, second, (token, before, after))
    return network, InductionTruth((0, first), (1, second))


def _look_back(attention: Any, head: int, token: slice, before: slice) -> None:
    """Fast rotary pairs that agree at a distance of one token; the value is the token."""
    rows = slice(head * _DIM, (head + 1) * _DIM)
    attention.q_proj.weight[rows] = 0.0
    attention.k_proj.weight[rows] = 0.0
    turn = _THETA ** (-torch.arange(0, _DIM, 2) / _DIM)[:_SLOW]
    pairs = head * _DIM + torch.arange(_SLOW)
    attention.q_proj.weight[pairs, -1] = torch.cos(-turn) * _SHARP
    attention.q_proj.weight[pairs + _DIM // 2, -1] = torch.sin(-turn) * _SHARP
    attention.k_proj.weight[pairs, -1] = 1.0
    _copy(attention, head, token, before)


def _find(attention: Any, head: int, parts: tuple[slice, slice, slice]) -> None:
    """Slow pairs match this token with the one before another; the first token, which has none, is the way out."""
    token, before, after = parts
    attention.q_proj.weight[head * _DIM : (head + 1) * _DIM] = 0.0
    attention.k_proj.weight[head * _DIM : (head + 1) * _DIM] = 0.0
    half = _DIM // 2
    slow = torch.cat([torch.arange(_SLOW, half), torch.arange(half + _SLOW, _DIM)]) + head * _DIM
    places, last = slow[:VOCAB], slow[VOCAB]
    attention.q_proj.weight[places, torch.arange(token.start, token.stop)] = _SHARP
    attention.k_proj.weight[places, torch.arange(before.start, before.stop)] = 1.0
    attention.q_proj.weight[last, -1] = _SHARP / 2
    attention.k_proj.weight[last, token.start + BOS] = 1.0
    _copy(attention, head, token, after)
    attention.v_proj.weight[head * _DIM : (head + 1) * _DIM, token.start + BOS] = 0.0


def _copy(attention: Any, head: int, source: slice, target: slice) -> None:
    attention.v_proj.weight[head * _DIM : (head + 1) * _DIM] = 0.0
    attention.o_proj.weight[:, head * _DIM : (head + 1) * _DIM] = 0.0
    rows = torch.arange(VOCAB) + head * _DIM
    attention.v_proj.weight[rows, torch.arange(source.start, source.stop)] = 1.0 / math.sqrt(2)
    attention.o_proj.weight[torch.arange(target.start, target.stop), rows] = 1.0
