"""A small Llama with two kinds of secondary sinks built in by hand: truth for the detector, no evidence about models.

Block 1 writes 200 along one residual dimension at the first token and block 9 takes it away. The tokens of ``LEVELS``
get a smaller write along the same dimension in the middle and lose it again, by neurons that read a flag in the token's
embedding. All else is random and small.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import sinkscope as sk

LAYERS, WIDTH, HEADS, BOS, VOCAB = 10, 64, 4, 1, 96
PRIMARY = (BOS, 1, 200.0, 9)
LEVELS = ((7, 3, 60.0, 6), (9, 4, 40.0, 8))
"""(token id, block that writes, size, block that takes it away); the sink lives in the blocks between."""


def build(seed: int = 0) -> sk.Model:
    """Build the model."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, bos_token_id=BOS, eos_token_id=2, pad_token_id=0, max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    network = LlamaForCausalLM(config).float().eval()
    massive, constant, *flags = torch.randperm(WIDTH)[: 3 + len(LEVELS)].tolist()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.1)
        _plant(network, massive, constant, flags)
    network.name_or_path = f"constructed secondary sinks {seed}"
    return sk.load_model(network)


def _plant(network: Any, massive: int, constant: int, flags: list[int]) -> None:
    kept = [massive, constant, *flags]
    embedding, width = network.model.embed_tokens.weight, WIDTH // HEADS
    embedding.mul_(3.0)
    embedding[:, kept] = 0.0
    embedding[:, constant] = 3.0
    for block in network.model.layers:
        attention, mlp = block.self_attn, block.mlp
        for reader in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            reader.weight[:, kept] = 0.0
        for writer in (attention.o_proj, mlp.down_proj):
            writer.weight.mul_(0.5)
            writer.weight[kept] = 0.0
        for head in range(0, HEADS, 2):  # every other head looks for the massive dimension, by the slowest rotary pair
            row = head * width + width // 2 - 1
            for projection, dim, size in ((attention.q_proj, constant, 0.8), (attention.k_proj, massive, 1.0)):
                projection.weight[[row, row + width // 2]] = 0.0
                projection.weight[row, dim] = size
    sinks = list(zip((PRIMARY, *LEVELS), flags, strict=True))
    for (token, *_), flag in sinks:
        embedding[token, flag] = 8.0
    jobs = [(start, token, flag, size) for (token, start, size, _), flag in sinks]
    jobs += [(end, token, flag, -size) for (token, _, size, end), flag in sinks]
    for number, (block, token, flag, size) in enumerate(sorted(jobs)):
        _write(network, (block, number), token, flag, (massive, size))


def _write(network: Any, place: tuple[int, int], token: int, flag: int, target: tuple[int, float]) -> None:
    """Make one neuron of a block write a number to a dimension wherever the flag is set, on average over a prompt."""
    block, neuron = place
    mlp = network.model.layers[block].mlp
    for projection in (mlp.gate_proj, mlp.up_proj):
        projection.weight[neuron] = 0.0
        projection.weight[neuron, flag] = 4.0
    mlp.down_proj.weight[:, neuron] = 0.0
    ids = torch.as_tensor(token_ids(1, 64, 0))
    seen: list[torch.Tensor] = []
    hook = mlp.register_forward_pre_hook(lambda _module, args: seen.append(args[0][ids == token][:, flag]))
    network.model(ids)
    hook.remove()
    level = 4.0 * seen[0]
    mlp.down_proj.weight[target[0], neuron] = target[1] / (torch.nn.functional.silu(level) * level).mean()


def token_ids(count: int, length: int, seed: int) -> list[list[int]]:
    """Random prompts with the first token in front and each special token at four random places, far from the start."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(20, VOCAB, size=(count, length))
    ids[:, 0] = BOS
    for row in ids:
        row[rng.permutation(np.arange(8, length - 4))[: 4 * len(LEVELS)]] = np.repeat([t for t, *_ in LEVELS], 4)
    return ids.tolist()
