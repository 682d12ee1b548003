"""A per-head gamma sweep against the plain loop over ``run``: interleaved in one process, medians, largest difference.

    python benchmarks/sweep.py --tokens 128 --width 256 --repeats 3 --every 6

The loop is timed on every sixth variant and scaled up; both read the loss per token. Processor seconds, one process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import sinkscope as sk
from sinkscope.testing import randomise

LAYERS, HEADS, GAMMAS = 8, 8, [0.3, 0.6, 1.5]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Time of a per-head gamma sweep against the loop over run.")
    for name, value in {"tokens": 128, "width": 256, "repeats": 3, "every": 6, "prompts": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--append", type=Path, help="page of results that gets a section")
    given = parser.parse_args()
    config = LlamaConfig(
        vocab_size=1000, hidden_size=given.width, intermediate_size=4 * given.width, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=4096,
    )  # fmt: skip
    network = LlamaForCausalLM(config).eval()
    randomise(network, 0, std=given.width**-0.5)
    model = sk.load_model(network)
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(3, 990, (given.prompts, given.tokens), generator=draw)
    prompts = sk.Prompts.from_ids(rows.tolist(), model)
    grid = sk.grid(sk.ScaleKeys, gamma=GAMMAS, layers=range(LAYERS), heads=range(HEADS))
    chosen = list(grid.values())[:: given.every]
    shared, loop, worst = [], [], 0.0
    for _ in range(given.repeats):
        begun = time.process_time()
        found = sk.sweep(model, prompts, grid, [sk.TokenLoss()], executor="serial")["token_loss"].values
        shared.append(time.process_time() - begun)
        begun = time.process_time()
        alone = np.stack([sk.run(model, prompts, [sk.TokenLoss()], edits)["token_loss"].values for edits in chosen])
        loop.append((time.process_time() - begun) * len(grid) / len(chosen))
        rows_of = found.reshape(len(grid), *alone.shape[1:])[:: given.every]
        worst = max(worst, float(np.nanmax(np.abs(rows_of - alone))))
    ratio = statistics.median(a / b for a, b in zip(shared, loop, strict=True))
    lines = [
        "## A per-head gamma sweep against the plain loop over `run`", "",
        f"{len(grid)} variants, {given.prompts} prompts of {given.tokens} tokens, {LAYERS} layers of {given.width}, "
        f"{torch.get_num_threads()} threads, {given.repeats} interleaved repeats.", "",
        "| way | processor seconds | x loop |", "|---|---|---|",
        f"| loop over run (scaled up from every {given.every}th) | {statistics.median(loop):.1f} | 1.00 |",
        f"| sweep | {statistics.median(shared):.1f} | {ratio:.2f} |", "",
        f"Largest difference of the loss: {worst:.1e} nat.", "",
    ]  # fmt: skip
    print("\n".join(lines))
    if given.append:
        with given.append.open("a", encoding="utf-8") as page:
            page.write("\n".join(["", *lines]))


if __name__ == "__main__":
    main()
