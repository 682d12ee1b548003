"""Procedures of the literature and our own, made of runs, sweeps, edits and metrics; ``base`` says their shape."""

from sinkscope.methods import (
    sads,
    secondary_mlp,
    secondary_sinks,
    sink_heads,
    tracing,
    var,
    vhr,
    zerotuning,
    zerotuning_compare,
)
from sinkscope.methods.base import MethodResult
from sinkscope.methods.profiling import HeadProfileSettings, profile_heads
from sinkscope.methods.zerotuning import zerotune

__all__ = [
    "HeadProfileSettings", "MethodResult", "profile_heads", "sads", "secondary_mlp", "secondary_sinks", "sink_heads",
    "tracing", "var", "vhr", "zerotune", "zerotuning", "zerotuning_compare",
]  # fmt: skip
