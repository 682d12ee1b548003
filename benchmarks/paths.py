"""What each path of ``sinkscope/attention`` costs beside the library's kernel, one call at a time: a table on stdout.

    python benchmarks/paths.py --lengths 512 2048 --repeats 15

Float32, one prompt, 8 heads of 64 on 8 and on 2 key-value heads, causal, one thread. Repeats are interleaved, ratios
are medians of pairs; processor seconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from sinkscope import registry
from sinkscope.attention import augdim, blockwise, fused, merged, paths
from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.masks import from_call
from sinkscope.attention.primitives import LogBias
from sinkscope.attention.view import Ask, Context, Wants

HEADS, DIM = 8, 64


def call_of(length: int, kv_heads: int) -> Call:
    """A causal call with normal queries, keys and values."""
    draw = torch.Generator().manual_seed(length)
    query, key, value = (torch.randn(1, heads, length, DIM, generator=draw) for heads in (HEADS, kv_heads, kv_heads))
    return Call(query, key, value, from_call(None, query, key, True)[0], scale=DIM**-0.5)


def ways(call: Call) -> dict[str, Callable[[], object]]:
    """The library's kernel, and every path with what it is for."""
    length = call.query.shape[2]
    first = torch.zeros(1, length, dtype=torch.bool)
    first[:, 0] = True
    context = Context(torch.ones_like(first), torch.randint(0, 3, (1, length)), (0, 1, 2))
    plain = [name for name in registry.names("statistic") if name not in ("max_weight", "map")]
    everything = Wants(*plain, Ask("max_weight", {"keys": first}))
    few = Wants(Ask("key_sum", {"keys": first}), "key_viewers", "log_sum_exp")

    def edit() -> CallEdits:
        keys = first[:, None].expand(-1, HEADS, -1)
        return CallEdits(biases=[LogBias(keys=keys, value=torch.full((HEADS,), -0.7))])

    def kernel() -> object:
        return torch.nn.functional.scaled_dot_product_attention(
            call.query, call.key, call.value, is_causal=True, scale=call.scale, enable_gqa=call.group > 1
        )

    assert fused.serves(call, few, None)
    assert merged.first_keys(call, Wants(), edit()) == 1
    assert augdim.serves(call, Wants(), edit())
    return {
        "the library's kernel": kernel,
        "fused: one key's mass and the log-sum-exp": lambda: paths.attend(call, few, context),
        "merged: one log-bias on the first key": lambda: merged.attend(call, edit(), 1),
        "augdim: the same": lambda: augdim.attend(call, edit()),
        "blockwise: the same": lambda: blockwise.attend(call, Wants(), context, edit()),
        "blockwise: key mass": lambda: blockwise.attend(call, Wants("key_sum", "key_viewers"), context),
        "blockwise: entropy": lambda: blockwise.attend(call, Wants("entropy"), context),
        "blockwise: every statistic": lambda: blockwise.attend(call, everything, context),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    columns: dict[str, list[str]] = {}
    heading = []
    for kv_heads in (HEADS, 2):
        for length in given.lengths:
            heading.append(f"{length} tokens, {kv_heads} kv heads")
            ready = ways(call_of(length, kv_heads))
            taken: dict[str, list[float]] = {name: [] for name in ready}
            with torch.no_grad():
                for turn in range(given.repeats + 2):
                    for name, once in ready.items():
                        begun = time.process_time()
                        once()
                        if turn > 1:
                            taken[name].append(time.process_time() - begun)
            base = taken["the library's kernel"]
            for name, seconds in taken.items():
                ratio = statistics.median(a / b for a, b in zip(seconds, base, strict=True))
                columns.setdefault(name, []).append(f"{ratio:.2f}")
    print("| path | " + " | ".join(heading) + " |\n|" + "---|" * (len(heading) + 1))
    for name, cells in columns.items():
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
