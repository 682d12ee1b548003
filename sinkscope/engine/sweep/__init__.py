"""Sweeps: many edits on the same prompts in one dataset, with the work they share done once.

sk.sweep(model, prompts, {"none": [], "masked": [sk.MaskKeys("first")]}, probes=[sk.TokenLoss()])
sk.sweep(model, prompts, sk.grid(sk.ScaleKeys, gamma=[0.5, 2.0], layers=range(8), heads=range(8)), probes=[...])
"""

from sinkscope.engine.sweep.driver import sweep
from sinkscope.engine.sweep.variants import EditGrid, grid

__all__ = ["EditGrid", "grid", "sweep"]
