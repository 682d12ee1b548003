"""What reading attention costs on a GPU: parity of the kernels first, then time and peak memory, as Markdown.

    python benchmarks/gpu.py --output gpu.md

Models of the shapes of Llama 3 with 1 and 8 billion weights, random weights, random tokens, bfloat16, a batch of one,
without the output head. Ways take turns and are compared pair by pair with the plain pass. Nothing is timed where a
kernel's numbers differ from those of the blockwise pass by more than 1e-3 (1e-5 in float32). ``--dry`` goes through
everything on a CPU with tiny shapes, kernels in Triton's interpreter: it shows that the script runs, not what it costs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

SHAPES = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "dry": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
}
"""The shapes of Llama 3.2 1B and Llama 3 8B; 8 key-value heads (2 in the dry one)."""

LIMIT = {"half": 1e-3, "float32": 1e-5}


def parity(device: str, dry: bool) -> Iterator[str]:
    """Yield a line for each kind of call: how far the kernels are from the blockwise pass, of every statistic."""
    import torch
    from transformers.masking_utils import and_masks, causal_mask_function, sliding_window_overlay

    from sinkscope.attention import blockwise, gpu
    from sinkscope.attention.call import Call
    from sinkscope.attention.masks import MaskSpec
    from sinkscope.attention.view import Ask, Context, Wants

    dtypes = [torch.float32] if dry else [torch.float32, torch.float16, torch.bfloat16]
    length, heads, dims = (20, 2, [16]) if dry else (1000, 16, [64, 128, 256])
    window = and_masks(sliding_window_overlay(length // 3), causal_mask_function)
    kinds = {
        "causal": (causal_mask_function, False, None, ""), "window, padding": (window, True, None, ""),
        "soft cap, learned sinks": (causal_mask_function, False, 30.0, "sinks"),
        "keys raised, hidden, dropped": (causal_mask_function, False, None, "edits"),
    }  # fmt: skip
    for dtype, dim, group, (name, kind) in product(dtypes, dims, [1] if dry else [1, 4, 16], kinds.items()):
        rule, padded, cap, more = kind
        draw = torch.Generator(device).manual_seed(0)
        query, key, value = (
            torch.randn(2, n, length, dim, generator=draw, device=device).to(dtype)
            for n in (heads, heads // group, heads // group)
        )
        real = torch.ones(2, length, dtype=torch.bool, device=device)
        real[1, : length // 4] = not padded
        mask = MaskSpec(2, length, length, 0, 0, rule, real if padded else None, False, torch.device(device))
        learned = torch.randn(heads, generator=draw, device=device) if more == "sinks" else None
        call = Call(query, key, value, mask, dim**-0.5, softcap=cap, sink_logits=learned)
        roles = torch.randint(0, 5, (2, length), generator=draw, device=device)
        context = Context(real, roles, tuple(range(5)))
        wants = Wants("key_sum", "entropy", "row_sum", "log_sum_exp", "role_share", Ask("max_weight", {"keys": real}))
        with torch.no_grad():
            out, found = gpu.attend(call, wants, context, edits_of(call) if more == "edits" else None)
            other, wanted = blockwise.attend(call, wants, context, edits_of(call) if more == "edits" else None)
        for stats in (found, wanted):  # a row that sees none of the keys has none, or 0 from a tile that holds others
            stats["max_weight"] = stats["max_weight"].clamp(min=0.0)
        worst = {label: _far(found[label], wanted[label]) for label in wanted.values}
        label, far = max(worst.items(), key=lambda item: item[1])
        most = LIMIT["float32" if dtype == torch.float32 else "half"]
        rounding = _far(out, other)
        if not (far <= most and rounding <= max(most, 2e-2 * (dtype != torch.float32))):
            raise SystemExit(f"{name}, {dtype}, {dim} wide, group {group}: {worst}, output {rounding:.1e}. Not timed.")
        yield f"| {name} | {dtype} | {dim} | {group} | {far:.1e} ({label}) | {rounding:.1e} |"


def edits_of(call: Any) -> Any:
    """Return edits of three keys: the first raised, the second hidden, the third's weight dropped, its value halved."""
    import torch

    from sinkscope.attention.call_edits import CallEdits
    from sinkscope.attention.primitives import DropWeights, LogBias, ValueScale

    batch, heads, _, _ = call.query.shape
    device = call.query.device
    first, second, third = (
        (torch.arange(call.key.shape[2], device=device) == place).expand(batch, heads, -1) for place in range(3)
    )
    raised = LogBias(keys=first, value=torch.full((heads,), 1.5, device=device))
    hidden = LogBias(keys=second, value=torch.zeros(heads, device=device), hide=True)
    return CallEdits([raised, hidden], [DropWeights(keys=third)], [ValueScale(third, 0.5)])


def _far(found: Any, wanted: Any) -> float:
    """Largest difference over the largest value; the log-sum-exp of a row that sees nothing is left out."""
    live = (wanted > -1e29).logical_and(wanted.isfinite())
    return float((found[live] - wanted[live]).abs().max() / wanted[live].abs().max().clamp(min=1.0))


def subject_of(shape: str, length: int, device: str) -> Any:
    """Return a random model of one of :data:`SHAPES`, on the library's fused attention, and its tokens."""
    import torch
    from subjects import VOCAB, Subject
    from transformers import LlamaConfig, LlamaForCausalLM

    import sinkscope as sk

    dry = shape == "dry"
    config = LlamaConfig(
        vocab_size=VOCAB, num_key_value_heads=2 if dry else 8, max_position_embeddings=1 << 18, bos_token_id=1,
        **SHAPES[shape],
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32 if dry else torch.bfloat16)
    with torch.device(device):
        network = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    network.set_attn_implementation("sdpa")
    tokens = torch.randint(3, VOCAB, (1, length), generator=torch.Generator().manual_seed(length))
    tokens[0, 0] = 1
    return Subject(shape, sk.load_model(network), tokens)


def measured(once: Any, device: str) -> tuple[float, float]:
    """Return seconds and peak GiB above what was allocated; the peak is NaN on a CPU."""
    import torch

    if device == "cpu":
        begun = time.process_time()
        once()
        return time.process_time() - begun, float("nan")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, begun = torch.cuda.memory_allocated(), time.perf_counter()
    once()
    torch.cuda.synchronize()
    return time.perf_counter() - begun, (torch.cuda.max_memory_allocated() - before) / 2**30


def section(shape: str, length: int, device: str, given: argparse.Namespace) -> Iterator[str]:
    """Yield the table of one model at one length."""
    import torch
    from ways import MAPS, WAYS

    subject = subject_of(shape, length, device)
    base = next(iter(WAYS))
    names = [w for w in WAYS if w == base or not given.only or any(word in w for word in given.only)]
    size = subject.map_bytes / 2**30
    yield f"### {shape}, {length} tokens\n\n| way | seconds | x plain (middle half) | peak GiB | x plain | path |"
    yield "|" + "---|" * 6
    ready, taken, paths = {}, {}, {}
    for name in names:
        if name in MAPS and size > given.limit:
            yield f"| {name} | | maps would take {size:.0f} GiB | | | |"
            continue
        with _room(name) as failed:
            once = WAYS[name](subject)
            found = once()  # compiles, and is not measured
            ready[name], taken[name] = once, []
            paths[name] = getattr(found, "attrs", {}).get("path", "")
            del found
        if failed:
            yield f"| {name} | | {failed[0]} | | | |"
            ready.pop(name, None)
        if device != "cpu":
            torch.cuda.empty_cache()
    for _ in range(given.repeats):
        for name, once in ready.items():
            taken[name].append(measured(once, device))
    for name in ready:
        ratios = sorted(mine[0] / plain[0] for mine, plain in zip(taken[name], taken[base], strict=True))
        peak, own = (statistics.median(each[1] for each in taken[way]) for way in (name, base))
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        seconds = statistics.median(each[0] for each in taken[name])
        yield (
            f"| {name} | {seconds:.3f} | {statistics.median(ratios):.2f} ({low:.2f} to {high:.2f}) | {peak:.2f} | "
            f"{peak / own:.2f} | {paths[name]} |"
        )
    yield ""


@contextlib.contextmanager
def _room(name: str) -> Iterator[list[str]]:
    """Note where a way does not fit the device, and go on."""
    import torch

    failed: list[str] = []
    try:
        yield failed
    except torch.OutOfMemoryError:
        failed.append("out of memory")


def main() -> None:
    """Check, measure and print; write to a file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["1b", "8b"], choices=("1b", "8b"))
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192, 32768, 131072])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--limit", type=float, default=24.0, help="GiB of maps beyond which a way is left out")
    parser.add_argument("--only", nargs="+", help="words; ways whose name holds one of them, besides the plain pass")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU, without a GPU")
    given = parser.parse_args()
    if given.dry:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
        given.models, given.lengths, given.repeats = ["dry"], [24], 2
    import torch

    device = "cpu" if given.dry else "cuda"
    if not given.dry and not torch.cuda.is_available():
        raise SystemExit("no GPU that torch can use. --dry goes through the script on a CPU.")
    card = "a CPU, dry: these are not results" if given.dry else torch.cuda.get_device_name()
    names = ("torch", "triton", "transformers", "sinkscope")
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    say(f"## {card}\n\nMeasured {date.today()}, {', '.join(f'{name} {version(name)}' for name in names)}.\n")
    say("| call | dtype | width | group | kernels against blockwise, worst statistic | output |\n" + "|---" * 6 + "|")
    for line in parity(device, given.dry):
        say(line)
    say("")
    for shape, length in product(given.models, given.lengths):
        for line in section(shape, length, device, given):
            say(line)
    if given.output:
        given.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
