"""Models with a known answer: tiny random ones of every architecture, and ones with a planted sink.

Public, so that a probe, an edit or a metric of your own can be tested as the built-in ones are.
"""

from __future__ import annotations

from sinkscope.errors import public_names
from sinkscope.testing.inputs import inputs, pixels, text_ids
from sinkscope.testing.planted import PlantedTruth, planted_sink
from sinkscope.testing.planted_induction import InductionTruth, planted_induction
from sinkscope.testing.planted_vlm import VisualTruth, planted_visual_sink
from sinkscope.testing.tiny import names, randomise, tiny

__all__ = [
    "InductionTruth", "PlantedTruth", "VisualTruth", "inputs", "names", "pixels", "planted_induction", "planted_sink",
    "planted_visual_sink", "randomise", "text_ids", "tiny",
]  # fmt: skip

__dir__ = public_names(globals())
