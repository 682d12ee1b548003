"""What training puts around a transformers model, read through: PEFT adapters, ``torch.compile``, data-parallel shells.

An adapter lives inside the modules of the model under the wrapper, so reading that model reads it with the adapters
that are on. What a wrapper adds in a forward pass of its own would be lost, and is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from sinkscope.errors import UnsupportedModelError

SHELLS = {"OptimizedModule": "_orig_mod", "DistributedDataParallel": "module", "DataParallel": "module"}
"""Classes of torch that call another module and change nothing of what it computes, and where that module is."""


def unwrapped(source: torch.nn.Module) -> tuple[torch.nn.Module, str]:
    """Return the transformers model inside ``source``, and a line on the adapters that it has (empty for none).

    A module that is no known wrapper comes back as it is.

    Raises:
        UnsupportedModelError: the wrapper puts virtual tokens before each prompt (prompt tuning, prefix tuning).
    """
    inside: Any = source
    origin = ""
    while not isinstance(inside, PreTrainedModel):
        home, inner = type(inside).__module__.split(".")[0], None
        if home == "peft":
            origin = origin or _adapters(inside)
            inner = inside.get_base_model() if hasattr(inside, "get_base_model") else getattr(inside, "model", None)
        elif home == "torch":
            inner = getattr(inside, SHELLS.get(type(inside).__name__, ""), None)
        if not isinstance(inner, torch.nn.Module) or inner is inside:
            break
        inside = inner
    return inside, origin


def _adapters(source: Any) -> str:
    """Name the adapters that are on, and their kinds."""
    known = dict(getattr(source, "peft_config", {}))
    active = [name for name in _listed(getattr(source, "active_adapter", None)) if name in known]
    for name in active:
        if getattr(known[name], "is_prompt_learning", False):
            raise UnsupportedModelError(
                f"load_model: adapter {name!r} ({_kind(known[name])}) puts virtual tokens before each prompt, which "
                "have no ids and no roles, so what it does cannot be read. Pass model.get_base_model() to read the "
                "model without it."
            )
    return "" if not active else "with PEFT adapter " + ", ".join(f"{name} ({_kind(known[name])})" for name in active)


def _kind(config: Any) -> str:
    kind = getattr(config, "peft_type", "")
    return str(getattr(kind, "value", kind))


def _listed(names: Any) -> list[str]:
    return [names] if isinstance(names, str) else list(names or [])
