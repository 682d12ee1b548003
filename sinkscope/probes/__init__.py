"""Probes: what to read from a run. Each is a frozen dataclass; ``base`` says how to add one."""

from sinkscope.probes.attention import AttentionMap, Entropy, KeyMass, LogSumExp, MaxAttention, RoleShare, RowSum
from sinkscope.probes.base import Probe
from sinkscope.probes.output import Logits, TokenLoss
from sinkscope.probes.residual import MassiveActivations, ResidualNorm, SinkDims
from sinkscope.probes.vectors import Contribution, KeyNorm, ValueNorm

__all__ = [
    "AttentionMap", "Contribution", "Entropy", "KeyMass", "KeyNorm", "LogSumExp", "Logits", "MassiveActivations",
    "MaxAttention", "Probe", "ResidualNorm", "RoleShare", "RowSum", "SinkDims", "TokenLoss", "ValueNorm",
]  # fmt: skip
