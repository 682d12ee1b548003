"""The kernels of the GPU path in Triton's interpreter, on the CPU, against dense attention in float64."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import oracle
import pytest
import torch

import sinkscope.attention
from attention.calls import ALL
from attention.calls import make as make_call
from sinkscope.attention import fused, gpu, paths
from sinkscope.attention.launch import Tiling
from sinkscope.attention.spans import Spans
from sinkscope.attention.view import Ask, Wants

pytest.importorskip("triton")


def _without_the_check_of_shapes():
    """Import the kernels by the ordinary loader: wrapped by the check of annotations they hide their source."""
    name = "sinkscope.attention.kernels"
    spec = importlib.util.spec_from_file_location(name, Path(gpu.__file__).with_name("kernels.py"))
    sys.modules[name] = sinkscope.attention.kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


_without_the_check_of_shapes()
SMALL = Tiling(16, 16)
"""Tiles so small that a short call has several."""


def make(batch=1, kv_heads=1, group=2, **options):
    """A small call: the interpreter takes a thousand times as long as a GPU."""
    return make_call(batch=batch, kv_heads=kv_heads, group=group, **options)


@pytest.fixture(autouse=True)
def _products_of_bfloat16(monkeypatch):
    """The interpreter keeps bfloat16 as integers and multiplies those; a GPU multiplies exactly and adds in float32."""
    from triton.language import core
    from triton.runtime import interpreter

    own = interpreter.InterpreterBuilder.create_dot

    def create_dot(self, a, b, d, *more):
        if a.dtype.scalar == core.bfloat16:
            a, b = (self.create_fp_to_fp(each, core.float32, None) for each in (a, b))
        return own(self, a, b, d, *more)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def everything(case):
    """All statistics that the kernels give, two of them of more than one set."""
    real = case.context.real
    odd = real.clone()
    odd[:, ::2] = False
    late = torch.ones_like(real)
    late[:, : real.shape[1] // 2] = False
    return Wants(
        *ALL, "max_logit", "top_column", Ask("max_weight", {"keys": odd}), Ask("max_weight", {"keys": real}),
        Ask("key_sum", {"queries": late}),
    )  # fmt: skip


def check(case):
    """Output and every statistic of one call."""
    call, dense, asked = case.call, case.dense, everything(case)
    assert gpu.knows(call, asked, case.context)
    with torch.no_grad():
        out, stats = gpu.attend(call, asked, case.context, tiling=SMALL)
    half = call.query.dtype != torch.float32
    close(out.transpose(1, 2), dense.output, 1.6e-2 if half else 1e-5)
    assert stats.path == "triton"
    rows = dense.weights.shape[2]
    real = case.context.real[:, -rows:].double()
    second = next(label for label in asked.asks if label.startswith("key_sum#"))
    late = asked.asks[second].of["queries"][:, -rows:].double() * real
    # In half precision too: products of the operands are exact, and sums are float32. But the library's kernel for
    # half precision on a CPU takes a quick exponential, so that its log-sum-exp is off by some 1e-5.
    near = 2e-4 if half and call.plain_on_keys and fused.has_log_sum_exp(call) else 1e-5
    close(stats["key_sum"], torch.einsum("bhqk,bq->bhk", dense.weights, real), near)
    close(stats[second], torch.einsum("bhqk,bq->bhk", dense.weights, late), near)
    close(stats["key_viewers"], torch.einsum("bqk,bq->bk", case.visible.double(), real))
    shares = torch.stack([oracle.role_share(w, r, 4) for w, r in zip(dense.weights, case.context.roles, strict=True)])
    close(stats["role_share"], shares, max(near, 2e-5 if half else 1e-5))
    # Entropy is a difference of two numbers of the size of the logits: float32 near 120 has steps of 7.6e-6.
    finite = dense.logits[dense.logits.isfinite()].abs()
    rounded = 2 * torch.finfo(torch.float32).eps * (float(finite.max()) if len(finite) else 0.0)
    close(stats["entropy"], oracle.entropy(dense.weights), max(near, rounded))
    close(stats["row_sum"], dense.weights.sum(-1), near)
    live = seeing(case, stats["log_sum_exp"])
    close(stats["log_sum_exp"][live], dense.log_sum_exp[live], near)
    for label, ask in asked.asks.items():
        if ask.name == "max_weight":
            wanted = torch.stack([oracle.largest(w, k) for w, k in zip(dense.weights, ask.of["keys"], strict=True)])
            close(stats[label].clamp(min=0.0), wanted, near)
    column = torch.where(case.visible.any(-1)[:, None], dense.weights.argmax(-1), -1)
    assert torch.equal(stats["top_column"].long(), column)
    largest = dense.logits.amax(-1) if call.sink_logits is None else torch.full_like(dense.log_sum_exp, torch.nan)
    close(stats["max_logit"][live], largest[live])


def seeing(case, like):
    """Rows that see a key, by head."""
    return case.visible.any(-1)[:, None].expand(like.shape)


def close(found, wanted, tolerance=1e-5):
    size = max(1.0, float(wanted.nan_to_num().abs().max())) if wanted.numel() else 1.0
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance * size, equal_nan=True)


CALLS = {
    "causal": {"length": 33},
    "one token": {"length": 1},
    "one more than a tile": {"length": 17, "group": 1},
    "exactly two tiles": {"length": 32, "group": 1},
    "two kv groups": {"length": 20, "kv_heads": 2},
    "eight kv groups": {"length": 18, "kv_heads": 8, "group": 1},
    "full": {"length": 20, "mask": "full", "padding": "right", "batch": 2, "group": 1},
    "window": {"length": 40, "mask": "window", "group": 1},
    "window after a cache": {"length": 12, "mask": "window offset"},
    "one query after a cache": {"length": 1, "mask": "offset"},
    "chunks": {"length": 21, "mask": "chunked", "group": 1},
    "left padding": {"length": 20, "padding": "left", "batch": 2, "group": 1},
    "soft cap": {"length": 20, "softcap": 3.0, "spread": 6.0},
    "learned sinks": {"length": 20, "sinks": True},
    "learned sinks, soft cap, window, padding": {
        "length": 20, "sinks": True, "softcap": 3.0, "mask": "window", "padding": "left", "batch": 2,
    },
    "vectors that are no power of two": {"length": 20, "dim": 20},
    "logits far from zero": {"length": 20, "spread": 30.0},
    "float16": {"length": 20, "dtype": torch.float16},
    "bfloat16": {"length": 20, "dtype": torch.bfloat16},
    "bfloat16, soft cap, window, padding": {
        "length": 20, "dtype": torch.bfloat16, "softcap": 3.0, "mask": "window", "padding": "right", "batch": 2,
        "group": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_output_and_statistics_equal_the_oracle(name):
    check(make(seed=len(name), **CALLS[name]))


@pytest.mark.parametrize("name", ["causal", "two kv groups", "float16", "bfloat16"])
def test_the_forward_pass_of_this_project_equals_the_oracle(name, monkeypatch):
    """These calls have one from the library where there is one."""
    monkeypatch.setattr(fused, "has_log_sum_exp", lambda call: False)
    check(make(seed=3, **CALLS[name]))


def test_a_row_that_sees_nothing_is_zero_and_never_nan():
    case = make(length=20, padding="left", batch=2, seed=3)
    gone = ~case.visible.any(-1)
    assert gone.any()
    out, stats = gpu.attend(case.call, everything(case), case.context, tiling=SMALL)
    assert (out[gone] == 0).all()
    nothing = gone[:, None].expand(stats["row_sum"].shape)
    for name in ("row_sum", "entropy", "role_share"):
        assert (stats[name][nothing] == 0).all(), name
    assert (stats["log_sum_exp"][nothing] < -1e29).all()
    assert all(torch.isfinite(stats[name]).all() for name in ("key_sum", "row_sum", "entropy", "role_share"))


def test_a_rule_that_leaves_holes_is_left_to_the_blockwise_pass():
    case = make(length=20, mask="random")
    assert Spans.of(case.call.mask) is None
    assert not gpu.knows(case.call, Wants("entropy"), case.context)


def test_runs_of_keys_are_those_that_the_mask_renders():
    for mask in ("causal", "full", "window", "chunked", "offset", "window offset"):
        call = make(length=300, mask=mask, batch=1).call
        spans = Spans.of(call.mask)
        keys = torch.arange(call.key.shape[2])
        seen = (keys >= spans.first[..., None]) & (keys < spans.stop[..., None])
        rows, cols = slice(0, 300), slice(0, call.key.shape[2])
        wanted = call.mask.visible(rows, cols)
        assert torch.equal(seen, torch.ones_like(seen) if wanted is None else wanted), mask
        first, stop = spans.by_key_block(32, 16)
        for block in range(len(first)):
            who = seen[0, :, block * 32 : block * 32 + 32].any(-1).nonzero()[:, 0]
            assert first[block] <= who[0], mask
            assert who[-1] < stop[block], mask
        assert Spans.of(call.mask) is spans


NOT = {
    "a bias": lambda call: replace(call, bias=torch.zeros(1, 2, 12, 12)),
    "an extra key": lambda call: replace(call, extra_key=torch.zeros(2, 8)),
    "no softmax": lambda call: replace(call, normaliser="sigmoid"),
}


@pytest.mark.parametrize("reason", NOT)
def test_it_stands_back(reason):
    case = make(length=12)
    assert gpu.knows(case.call, everything(case), case.context)
    assert not gpu.knows(NOT[reason](case.call), everything(case), case.context)
    assert not gpu.knows(case.call, Wants("entropy", Ask("map", {"heads": (0,)})), case.context)


def test_the_chooser_takes_it_where_the_device_has_it(monkeypatch):
    case = make(length=12, batch=1)
    asked = Wants("entropy", "key_sum")
    chosen = lambda: paths.attend(case.call, asked, case.context)[1].path  # noqa: E731
    assert chosen() == "blockwise"
    monkeypatch.setattr(gpu, "available", lambda device: True)
    assert chosen() == "triton"
    case.call.query.requires_grad_()
    assert chosen() == "blockwise"


def test_the_switch_turns_it_off(monkeypatch):
    device = torch.device("cuda", 7)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.version, "hip", None)
    fused.on_gpu.cache_clear()
    assert gpu.available(device)
    fused.on_gpu.cache_clear()
    monkeypatch.setenv(fused.SWITCH, "0")
    assert not gpu.available(device)
    fused.on_gpu.cache_clear()


def test_kernels_of_the_library_have_these_names_and_shapes():
    """Without a GPU their shapes can be asked of the meta device."""
    query, key = (torch.empty(2, heads, 40, 64, dtype=torch.bfloat16, device="meta") for heads in (8, 2))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention(query, key, key, 0.0, True, scale=0.1)[:2]
    assert (out.shape, lse.shape, lse.dtype) == (query.shape, (2, 8, 40), torch.float32)
    query = query.float()
    out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(query, query, query, None, True, 0.0, True)[:2]
    assert out.shape == query.shape
    assert lse.shape[:2] == (2, 8)
    assert lse.shape[2] >= 40


def test_every_kernel_compiles_for_gpus_and_fits_their_memory():
    """The compiler needs no GPU: it refuses what the interpreter lets pass."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    script = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 12
    # The least that a GPU since Ampere lets one program have.
    assert max(found.values()) <= 99 * 1024, found
