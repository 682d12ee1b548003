"""Models with a sink built in by hand, so that a detector can be checked against an exact answer.

A constructed model is truth for detectors, never evidence about trained ones. The mechanism is the one trained models
are reported to use (Sun et al. 2024, section 4; Gu et al. 2025, section 3.3): the first block writes one very large
residual entry at the first token, later heads read that entry through their key, and the token's value is nearly zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sinkscope.testing.tiny import BOS, EOS, PAD, VOCAB

if TYPE_CHECKING:
    from sinkscope.models.handle import Model

LAYERS, HEADS, KV_HEADS, HEAD_DIM, WIDTH, MLP_WIDTH = 4, 4, 2, 16, 64, 96
FLAG, _CONSTANT = 8.0, 3.0
"""Embedding entries: the flag of the first token, and the constant every token carries for queries to read."""
_GATE, _QUERY, _KEY = 4.0, 1.5, 1.0
_TWIN_TRIES = 16


@dataclass(frozen=True)
class PlantedTruth:
    """What was planted.

    Attributes:
        heads: (layer, head) of every head that attends to the sink; empty for the shuffled twin.
        position: token position of the sink.
        dims: residual dimensions that hold the massive activation.
        value: largest magnitude of the residual stream at ``position``, exact up to float32 rounding.
    """

    heads: list[tuple[int, int]]
    position: int
    dims: list[int]
    value: float


def planted_sink(seed: int = 0, shuffled: bool = False) -> tuple[Model, PlantedTruth]:
    """Build a small Llama with a planted sink, and say what was planted.

    Prompts have to start with ``model.config.bos_token_id``. The planted heads give the first token at least 0.9 of
    their attention, the others about what uniform attention would; the value vectors of the first token there are
    nearly zero; one residual dimension holds ``truth.value`` from the first block on.

    Args:
        seed: chooses the weights, the heads, the dimension and the value.
        shuffled: give the twin: every weight matrix keeps its entries but loses their order; nothing may be detected.
            ``truth.heads`` and ``truth.dims`` are then empty and ``truth.value`` is not a number.
    """
    from sinkscope.models.handle import load_model

    network, truth = _plant(seed)
    if shuffled:
        network, truth = _shuffle(network, seed), PlantedTruth([], 0, [], float("nan"))
    network.name_or_path = f"planted-sink-{seed}" + ("-shuffled" if shuffled else "")
    return load_model(network), truth


@torch.no_grad()
def _plant(seed: int) -> tuple[LlamaForCausalLM, PlantedTruth]:
    generator = torch.Generator().manual_seed(seed)
    network = _random_llama(generator)
    flag, constant, massive = torch.randperm(WIDTH, generator=generator)[:3].tolist()
    target = float(torch.randint(1000, 3000, (), generator=generator))
    count = int(torch.randint(4, 8, (), generator=generator))
    places = torch.randperm((LAYERS - 1) * HEADS, generator=generator)[:count].tolist()
    heads = sorted((1 + place // HEADS, place % HEADS) for place in places)

    reserve(network, [flag, constant, massive])
    embedding = network.model.embed_tokens.weight
    embedding[:, constant] = _CONSTANT
    embedding[BOS, flag] = FLAG
    for layer, head in heads:
        attention: Any = network.model.layers[layer].self_attn
        row = HEAD_DIM // 2 - 1  # the slowest rotary pair: its angle stays near zero over the whole context
        attention.q_proj.weight[head * HEAD_DIM + row, constant] = _QUERY
        attention.k_proj.weight[head * KV_HEADS // HEADS * HEAD_DIM + row, massive] = _KEY
    write_massive(network, flag, massive, target)
    return network, PlantedTruth(heads, 0, [massive], target)


def _random_llama(generator: torch.Generator) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=MLP_WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM, max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, bos_token_id=BOS, eos_token_id=EOS,
        pad_token_id=PAD, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        network = LlamaForCausalLM(config).float().eval()
    for parameter in network.parameters():
        if parameter.ndim == 2:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    blocks: Any = network.model.layers
    for block in blocks:
        block.self_attn.q_proj.weight.mul_(0.5)  # flat heads: what favours a token was planted
    network.model.embed_tokens.weight.mul_(5.0)
    return network


def reserve(network: Any, dims: list[int]) -> None:
    """Keep the residual dims and the slowest rotary pair free of everything but what is planted."""
    network.model.embed_tokens.weight[:, dims] = 0.0
    slow = torch.arange(HEAD_DIM) % (HEAD_DIM // 2) == HEAD_DIM // 2 - 1
    for block in network.model.layers:
        attention, mlp = block.self_attn, block.mlp
        for reader in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            reader.weight[:, dims] = 0.0
        for writer in (attention.o_proj, mlp.down_proj):
            writer.weight[dims] = 0.0
        attention.q_proj.weight[slow.repeat(HEADS)] = 0.0
        attention.k_proj.weight[slow.repeat(KV_HEADS)] = 0.0


def write_massive(network: Any, flag: int, massive: int, target: float) -> None:
    """Make one neuron of block 0 write ``target`` to the massive dim wherever the flag is set."""
    mlp = network.model.layers[0].mlp
    for weight in (mlp.gate_proj.weight, mlp.up_proj.weight):
        weight[0] = 0.0
        weight[0, flag] = _GATE
    mlp.down_proj.weight[:, 0] = 0.0
    read: list[torch.Tensor] = []
    hook = mlp.register_forward_pre_hook(lambda _module, args: read.append(args[0][0, 0, flag]))
    network.model(torch.tensor([[BOS]]))
    hook.remove()
    level = _GATE * read[0]
    mlp.down_proj.weight[massive, 0] = target / (torch.nn.functional.silu(level) * level)


@torch.no_grad()
def _shuffle(network: LlamaForCausalLM, seed: int) -> LlamaForCausalLM:
    """Permute the entries of every weight matrix; of a few permutations take the one least like a sink.

    A random model can favour its first token by chance, and a twin that does so would not be a twin.
    """
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(3, 90, (8, 12), generator=generator)
    prompts[:, 0] = BOS
    network.set_attn_implementation("eager")
    planted = {name: parameter.clone() for name, parameter in network.named_parameters()}
    best, lowest = planted, float("inf")
    for _ in range(_TWIN_TRIES):
        for name, parameter in network.named_parameters():
            order = torch.randperm(parameter.numel(), generator=generator)
            parameter.copy_(planted[name].flatten()[order].reshape(parameter.shape))
        maps = torch.stack(network(prompts, output_attentions=True).attentions)
        mass = maps[..., 0].mean(-1).max().item()
        if mass < lowest:
            best, lowest = {name: parameter.clone() for name, parameter in network.named_parameters()}, mass
    for name, parameter in network.named_parameters():
        parameter.copy_(best[name])
    network.set_attn_implementation("sdpa")
    return network
