"""Which way of driving a model reads it: transformers, TransformerLens, or the maps that the model returns itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def choose(
    network: torch.nn.Module, asked: str, bridge: Any, to_bridge: Callable[[], Any]
) -> Any:  # a Backend; which class it is, nobody needs to know
    """Return the backend that was asked for, or with ``"auto"`` the first that can read the model.

    Args:
        network: the model.
        asked: ``"transformers"``, ``"lens"`` or ``"auto"``.
        bridge: what the model came as, if that was a ``TransformerBridge``.
        to_bridge: makes a bridge of a copy of the model.

    Raises:
        UnsupportedModelError: ``"lens"`` was asked for and the model cannot be read through it.
    """
    from sinkscope.models.backends.transformers import TransformersBackend

    if bridge is not None or asked == "lens":
        return _through_lens(bridge if bridge is not None else to_bridge())
    backend = TransformersBackend(network)
    if backend.reading != "none" or asked != "auto":
        return backend
    try:
        return _through_lens(to_bridge())
    except Exception as error:  # whatever a bridge raises while it is built for an architecture it does not know
        # Without the advice to load it with the backend that has just refused it, and the name that stands there.
        told = str(error).partition(" Load it with backend=")[0].removeprefix(f"{type(network).__name__}: ")
        backend.why_not = f"{backend.why_not} TransformerLens cannot serve it either: {told}"
    return _returned_maps(network, backend.why_not)


def _through_lens(bridge: Any) -> Any:
    from sinkscope.models.backends import lens

    return lens.LensBackend(bridge)


def _returned_maps(network: torch.nn.Module, why: str) -> Any:
    from sinkscope.models.backends import own_maps

    return own_maps.OwnMapsBackend(network, why)
