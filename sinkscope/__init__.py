"""sinkscope: measure, test and explain attention sinks in transformers.

    import sinkscope as sk

    model = sk.load_model("smollm2-135m")
    prompts = sk.Prompts.from_texts(sk.tasks.corpora.texts(), model)
    readings = sk.run(model, prompts, probes=[sk.KeyMass(), sk.ValueNorm()])
    print(sk.metrics.sink_rate(readings))

Names are imported when they are first used, so that ``import sinkscope`` costs nothing and a reading can be opened on a
machine without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sinkscope import definitions as definitions
    from sinkscope import edits as edits
    from sinkscope import errors as errors
    from sinkscope import methods as methods
    from sinkscope import metrics as metrics
    from sinkscope import plot as plot
    from sinkscope import probes as probes
    from sinkscope import registry as registry
    from sinkscope import report as report
    from sinkscope import schema as schema
    from sinkscope import tasks as tasks
    from sinkscope import testing as testing
    from sinkscope import training as training
    from sinkscope import zoo as zoo
    from sinkscope.definitions import cite as cite
    from sinkscope.edits import AblateHeads as AblateHeads
    from sinkscope.edits import AmplifyGaze as AmplifyGaze
    from sinkscope.edits import AmplifyLogits as AmplifyLogits
    from sinkscope.edits import BoostRecent as BoostRecent
    from sinkscope.edits import CalibrateSinks as CalibrateSinks
    from sinkscope.edits import DropKeys as DropKeys
    from sinkscope.edits import GateHeads as GateHeads
    from sinkscope.edits import GiveMaps as GiveMaps
    from sinkscope.edits import InjectWrites as InjectWrites
    from sinkscope.edits import KeyValueBias as KeyValueBias
    from sinkscope.edits import LimitWindow as LimitWindow
    from sinkscope.edits import MaskKeys as MaskKeys
    from sinkscope.edits import MixIdentity as MixIdentity
    from sinkscope.edits import NullKey as NullKey
    from sinkscope.edits import OpenKeys as OpenKeys
    from sinkscope.edits import Patch as Patch
    from sinkscope.edits import Redistribute as Redistribute
    from sinkscope.edits import ReplaceValues as ReplaceValues
    from sinkscope.edits import RouteHeads as RouteHeads
    from sinkscope.edits import ScaleKeys as ScaleKeys
    from sinkscope.edits import SetActivations as SetActivations
    from sinkscope.edits import ShiftLogits as ShiftLogits
    from sinkscope.edits import SteerKeys as SteerKeys
    from sinkscope.edits import SwapNormaliser as SwapNormaliser
    from sinkscope.edits import ZeroValues as ZeroValues
    from sinkscope.engine.applied import applied as applied
    from sinkscope.engine.generation import generate as generate
    from sinkscope.engine.monitor import monitor as monitor
    from sinkscope.engine.run import run as run
    from sinkscope.engine.survey import SurveySettings as SurveySettings
    from sinkscope.engine.survey import merge as merge
    from sinkscope.engine.survey import survey as survey
    from sinkscope.engine.sweep import grid as grid
    from sinkscope.engine.sweep import sweep as sweep
    from sinkscope.errors import EditError as EditError
    from sinkscope.errors import EditHasNoEffect as EditHasNoEffect
    from sinkscope.errors import MetricError as MetricError
    from sinkscope.errors import ModelError as ModelError
    from sinkscope.errors import OutputError as OutputError
    from sinkscope.errors import ProbeError as ProbeError
    from sinkscope.errors import PromptError as PromptError
    from sinkscope.errors import SchemaError as SchemaError
    from sinkscope.errors import SinkscopeError as SinkscopeError
    from sinkscope.errors import UnsupportedModelError as UnsupportedModelError
    from sinkscope.hooks import fwd_hooks as fwd_hooks
    from sinkscope.methods import ExplainSettings as ExplainSettings
    from sinkscope.methods import explain_image as explain_image
    from sinkscope.models.handle import Model as Model
    from sinkscope.models.handle import load_model as load_model
    from sinkscope.models.handle import minilm_path as minilm_path
    from sinkscope.probes import *
    from sinkscope.prompts import Prompts as Prompts
    from sinkscope.prompts import label_tokens as label_tokens
    from sinkscope.schema import concat as concat
    from sinkscope.schema import open as open
    from sinkscope.schema import save as save
    from sinkscope.schema import to_dataframe as to_dataframe

__version__ = "0.1.0"

_SUBMODULES = (
    "definitions", "edits", "errors", "methods", "metrics", "plot", "probes", "registry", "report", "schema", "tasks",
    "testing", "training", "zoo",
)  # fmt: skip

_NAMES: dict[str, tuple[str, ...]] = {
    "models.handle": ("Model", "load_model", "minilm_path"),
    "prompts": ("Prompts", "label_tokens"),
    "engine.monitor": ("monitor",),
    "engine.run": ("run",),
    "engine.applied": ("applied",),
    "engine.generation": ("generate",),
    "engine.survey": ("SurveySettings", "merge", "survey"),
    "engine.sweep": ("grid", "sweep"),
    "methods": ("ExplainSettings", "explain_image"),
    "hooks": ("fwd_hooks",),
    "schema": ("concat", "open", "save", "to_dataframe"),
    "definitions": ("cite",),
    "edits": (
        "AblateHeads", "AmplifyGaze", "AmplifyLogits", "BoostRecent", "CalibrateSinks", "DropKeys", "GateHeads",
        "GiveMaps", "InjectWrites", "KeyValueBias", "LimitWindow", "MaskKeys", "MixIdentity", "NullKey", "OpenKeys",
        "Patch", "Redistribute", "ReplaceValues", "RouteHeads", "ScaleKeys", "SetActivations", "ShiftLogits",
        "SteerKeys", "SwapNormaliser", "ZeroValues",
    ),
    "errors": (
        "EditError", "EditHasNoEffect", "MetricError", "ModelError", "OutputError", "ProbeError", "PromptError",
        "SchemaError", "SinkscopeError", "UnsupportedModelError",
    ),
}  # fmt: skip
"""Where each public name lives, those of the probes apart: a probe is named in its own file alone."""

_HOME = {name: module for module, names in _NAMES.items() for name in names}


def _probe_names() -> list[str]:
    """Return what the modules of ``probes`` list in ``__all__``."""
    return _listed("probes/[!_]*.py")


def _listed(pattern: str) -> list[str]:
    """Return the ``__all__`` of files of this package, read from their source: nothing is imported."""
    import ast
    from pathlib import Path

    names = []
    for path in sorted(Path(__file__).parent.glob(pattern)):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                names += ast.literal_eval(node.value)
    return names


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"sinkscope.{name}")
    home = _HOME.get(name) or ("probes" if name[:1].isupper() and name in _probe_names() else None)
    if home is not None:
        value = getattr(import_module(f"sinkscope.{home}"), name)
        globals()[name] = value
        return value
    inside = "" if name.startswith("_") else next((m for m in _SUBMODULES if name in _listed(f"{m}/__init__.py")), "")
    if inside:  # sk.sink_rate for sk.metrics.sink_rate
        said = f"module {__name__!r} has no attribute {name!r}. It is {__name__}.{inside}.{name}."
        raise AttributeError(said, name=name)
    from sinkscope.errors import unknown_name

    return unknown_name(__name__, (*_SUBMODULES, *_HOME, *_probe_names()))(name)


def __dir__() -> list[str]:
    # Not what globals() holds: every module that was imported meanwhile is there, private ones too.
    return sorted({*_SUBMODULES, *_HOME, *_probe_names(), "__version__"})
