"""Procedures of the literature and our own, made of runs, sweeps, edits and metrics alone."""

from sinkscope.methods import sads, secondary_mlp, secondary_sinks, var, vhr, zerotuning
from sinkscope.methods.profiling import profile_heads
from sinkscope.methods.zerotuning import zerotune

__all__ = ["profile_heads", "sads", "secondary_mlp", "secondary_sinks", "var", "vhr", "zerotune", "zerotuning"]
