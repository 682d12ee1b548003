"""Procedures of the literature and our own, made of runs, sweeps, edits and metrics; ``base`` says their shape."""

from typing import TYPE_CHECKING

from sinkscope.errors import public_names, unknown_name
from sinkscope.methods import (
    amplify,
    compression,
    demonstrations,
    gates,
    gradient_sinks,
    head_hunter,
    principles,
    registers,
    retrieval,
    sads,
    saliency,
    secondary_mlp,
    secondary_sinks,
    secondary_sweep,
    sink_heads,
    tracing,
    var,
    vhr,
    zerotuning,
    zerotuning_compare,
    zoom,
)
from sinkscope.methods.base import MethodResult
from sinkscope.methods.explain_image import explain_image
from sinkscope.methods.explain_result import ExplainSettings, ImageExplanation
from sinkscope.methods.profiling import HeadProfileSettings, profile_heads
from sinkscope.methods.zerotuning import zerotune

__all__ = [
    "ExplainSettings", "HeadProfileSettings", "ImageExplanation", "MethodResult", "amplify", "compression",
    "demonstrations", "explain_image", "gates", "gradient_sinks", "head_hunter", "principles", "profile_heads",
    "registers", "retrieval", "sads", "saliency", "secondary_mlp", "secondary_sinks", "secondary_sweep",
    "sink_heads", "tracing", "var", "vhr", "zerotune", "zerotuning", "zerotuning_compare", "zoom",
]  # fmt: skip

if not TYPE_CHECKING:  # a type checker shall complain of a name that does not exist
    __getattr__ = unknown_name(__name__, __all__)
    __dir__ = public_names(globals())
