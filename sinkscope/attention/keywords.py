"""What a model tells its attention function besides queries, keys, values and mask: what of it counts, what is refused.

A keyword that is dropped in silence is a wrong number: models say learned sinks, biases and sparse patterns that way.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sinkscope.errors import UnsupportedModelError

HONOURED = frozenset({"indices", "position_bias", "softcap", "s_aux"})
"""Keywords that :func:`sinkscope.attention.seam.sinkscope_attention` makes part of the call."""

INERT = frozenset({
    "dropout",  # off: a model is read in evaluation mode
    "sliding_window",  # for kernels without a mask; the mask's own rule has it
    "position_ids", "cache_position", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k",  # for kernels
})  # fmt: skip
"""Keywords that change nothing where there is a mask."""

HANDED_DOWN = frozenset({"input_ids", "pixel_values", "image_sizes", "image_grid_thw", "token_type_ids"})
"""What the model itself was given and hands to every part; nothing, unless its eager function reads it."""


def check_keywords(module: torch.nn.Module, keywords: Mapping[str, Any]) -> None:
    """Refuse a call that says something which would be left out.

    Flags and counts that a model hands down to every part count as nothing, unless its own eager function reads them;
    an unknown tensor or real number never does.

    Raises:
        UnsupportedModelError: a keyword is neither honoured nor known to be without effect.
    """
    for name, value in keywords.items():
        if value is None or name in HONOURED or name in INERT:
            continue
        unknown = isinstance(value, torch.Tensor | float) and name not in HANDED_DOWN
        if unknown or _read_by_eager(module, name):
            kind = getattr(getattr(module, "config", None), "model_type", "") or "this architecture"
            raise UnsupportedModelError(
                f"{type(module).__name__} ({kind}) hands its attention function {name}= ({type(value).__name__}), "
                "which sinkscope does not know: weights without it would not be the model's. Read this model by "
                "transformers' own output_attentions=True."
            )


def check_functions(configs: list[Any]) -> None:
    """Refuse a model whose attention is computed by a function that somebody registered: ours would take its place.

    Raises:
        UnsupportedModelError: a configuration names such a function.
    """
    for config in configs:
        name = config._attn_implementation_internal
        function = ALL_ATTENTION_FUNCTIONS.get(name) if isinstance(name, str) else None
        # A name with a slash is a kernel of the hub, which computes the same attention.
        if function is None or "/" in name or _home(function) in ("transformers", "sinkscope"):
            continue
        where = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', type(function).__name__)}"
        raise UnsupportedModelError(
            f"this model's attention is {name!r} ({where}), a function that is registered with transformers by others. "
            "sinkscope computes attention itself and would replace it. Call "
            "model.set_attn_implementation('sdpa') first if softmax attention is what you want to read."
        )


def check_eager(modules: Iterable[torch.nn.Module]) -> None:
    """Refuse modules beside whose class an ``eager_attention_forward`` of somebody else's was put, where it is in use.

    Raises:
        UnsupportedModelError: a module that is set to eager attention would run it.
    """
    for kind in {type(m) for m in modules if getattr(vars(m).get("config"), "_attn_implementation", "") == "eager"}:
        function = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
        if (
            function is None
            or function.__module__ == kind.__module__
            or _home(function) in ("transformers", "sinkscope")
        ):
            continue
        raise UnsupportedModelError(
            f"eager_attention_forward of {kind.__module__} was replaced by {function.__module__}."
            f"{function.__qualname__}. sinkscope computes attention itself and would replace it again. Put the "
            "library's own function back if softmax attention is what you want to read."
        )


def _home(function: Any) -> str:
    return str(getattr(function, "__module__", "")).split(".")[0]


def _read_by_eager(module: torch.nn.Module, name: str) -> bool:
    """True where the eager function beside the module's class has a parameter, or looks up a keyword, of that name."""
    home = sys.modules.get(type(module).__module__)
    code = getattr(inspect.unwrap(getattr(home, "eager_attention_forward", _nothing)), "__code__", _nothing.__code__)
    return name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] or name in code.co_consts


def _nothing() -> None: ...
