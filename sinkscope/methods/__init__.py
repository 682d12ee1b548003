"""Procedures of the literature and our own, made of runs, sweeps, edits and metrics alone."""

from sinkscope.methods import sads, var, vhr
from sinkscope.methods.profiling import profile_heads

__all__ = ["profile_heads", "sads", "var", "vhr"]
