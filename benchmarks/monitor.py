"""What ``monitor`` costs beside the plain forward pass: medians of paired ratios of processor seconds.

python benchmarks/monitor.py --model reference --tokens 1024 --every 1 10 --rounds 5
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time

import torch

import sinkscope as sk
from sinkscope.testing import randomise


def reference() -> sk.Model:
    """A Llama of 8 layers, 8 heads of 64, with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=1000, hidden_size=512, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=8192,
    )  # fmt: skip
    network = LlamaForCausalLM(config).eval()
    randomise(network, 0, std=512**-0.5)
    return sk.load_model(network)


def seconds(model: sk.Model, ids: torch.Tensor, passes: int, every: int) -> float:
    """Processor seconds of some passes, watched or (``every`` 0) not."""
    watching = sk.monitor(model, every=every) if every else contextlib.nullcontext()
    with torch.no_grad(), watching:
        start = time.process_time()
        for _ in range(passes):
            model.model(ids)
        return time.process_time() - start


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--every", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--passes", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = reference() if given.model == "reference" else sk.load_model(given.model)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 990, (1, given.tokens), generator=draw)
    seconds(model, ids, 1, 1)
    ratios: dict[int, list[float]] = {every: [] for every in given.every}
    for _ in range(given.rounds):
        for every in given.every:
            plain = seconds(model, ids, given.passes, 0)
            ratios[every].append(seconds(model, ids, given.passes, every) / plain)
    print("| model | tokens | every | x plain | lowest to highest |\n|---|---|---|---|---|")
    for every, found in ratios.items():
        middle = statistics.median(found)
        print(f"| {given.model} | {given.tokens} | {every} | {middle:.3f} | {min(found):.3f} to {max(found):.3f} |")


if __name__ == "__main__":
    main()
