"""Edits: every intervention on attention sinks as a value, exact, composable, undone afterwards.

    sk.run(model, prompts, probes=[sk.Logits()], edits=[sk.MaskKeys("first", layers=range(2, 10))])

Edits act in list order. Rows keep their sums unless the edit says otherwise; a query that sees nothing but masked keys
is left unchanged and counted; an edit that changes nothing raises ``EditHasNoEffect``.
"""

from typing import TYPE_CHECKING

from sinkscope.edits.activations import SetActivations
from sinkscope.edits.base import EDITS, AttentionEdit, Edit, ResidualEdit
from sinkscope.edits.calibrate import CalibrateSinks
from sinkscope.edits.call import EditedCall
from sinkscope.edits.gaze import AmplifyGaze
from sinkscope.edits.given import GiveMaps
from sinkscope.edits.heads import AblateHeads, GateHeads, MixIdentity, RouteHeads
from sinkscope.edits.inject import InjectWrites
from sinkscope.edits.keys import DropKeys, MaskKeys, ScaleKeys, ShiftLogits, SteerKeys, ZeroValues
from sinkscope.edits.masks import LimitWindow, OpenKeys
from sinkscope.edits.normalisers import AmplifyLogits, KeyValueBias, NullKey, SwapNormaliser
from sinkscope.edits.patch import Patch, record
from sinkscope.edits.recent import BoostRecent
from sinkscope.edits.redistribute import Redistribute
from sinkscope.edits.reference import mean_activations, mean_outputs
from sinkscope.edits.replace import ReplaceValues
from sinkscope.edits.stream import EditedStream
from sinkscope.edits.text import dumps, loads, parse
from sinkscope.errors import public_names, unknown_name

__all__ = [
    "EDITS", "AblateHeads", "AmplifyGaze", "AmplifyLogits", "AttentionEdit", "BoostRecent", "CalibrateSinks",
    "DropKeys", "Edit", "EditedCall", "EditedStream", "GateHeads", "GiveMaps", "InjectWrites", "KeyValueBias",
    "LimitWindow", "MaskKeys", "MixIdentity", "NullKey", "OpenKeys", "Patch", "Redistribute", "ReplaceValues",
    "ResidualEdit", "RouteHeads", "ScaleKeys", "SetActivations", "ShiftLogits", "SteerKeys", "SwapNormaliser",
    "ZeroValues", "dumps", "loads", "mean_activations", "mean_outputs", "parse", "record",
]  # fmt: skip

if not TYPE_CHECKING:  # a type checker shall complain of a name that does not exist
    __getattr__ = unknown_name(__name__, __all__)
    __dir__ = public_names(globals())
