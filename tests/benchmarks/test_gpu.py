"""The benchmark for GPUs goes through on a CPU: what is shown here is that it runs, not what anything costs."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def test_a_dry_run_checks_parity_and_writes_a_table(tmp_path):
    """In a process of its own: Triton asks once, when it is imported, whether to interpret."""
    page = tmp_path / "gpu.md"
    command = [sys.executable, str(SCRIPT), "--dry", "--only", "first token", "output", "--output", str(page)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = page.read_text().splitlines()
    assert lines[0] == "## a CPU, dry: these are not results"
    assert [line.split(" | ")[0] for line in lines if "torch.float32" in line] == [
        "| causal", "| window, padding", "| soft cap, learned sinks", "| keys raised, hidden, dropped",
    ]  # fmt: skip
    ways = [line.split(" | ") for line in lines[lines.index("### dry, 24 tokens") + 4 :] if line]
    assert [way[0] for way in ways] == [
        "| plain forward pass (SDPA)", "| sinkscope: first token's share, value norms",
        "| transformers: output_attentions",
    ]  # fmt: skip
    assert ways[1][-1] == "fused |"
    assert page.read_text().strip() == done.stdout.strip()
