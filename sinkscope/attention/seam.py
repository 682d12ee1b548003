"""The one place where sinkscope meets transformers: a registered attention function and its mask function.

Registered once under one name. A context variable holds the active session; outside a session the function computes
plain attention, so a model left in an odd state still gives right answers. While a session is entered, every attention
config of the model names our function; on leaving, each config gets back exactly what it had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import torch
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface

from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.keywords import check_eager, check_functions, check_keywords
from sinkscope.attention.masks import from_call, sinkscope_mask, with_chosen
from sinkscope.attention.paths import attend
from sinkscope.attention.rows import RowEdits
from sinkscope.attention.view import Context, LayerStats, Wants

NAME = "sinkscope"
DENSE_MASK = "sinkscope_dense_mask"
"""The same attention function for models that compute with their mask: they get a tensor (batch, 1, query, key)."""

_takes_tensors: WeakSet[torch.nn.Module] = WeakSet()


@dataclass
class Session:
    """What the attention function does during one forward pass.

    ``wants`` and ``edits`` are asked once per call with the attention module (and, for edits, the call); ``collect``
    gets each call's statistics. ``calls`` lists the modules that called, in order: what a model really runs.
    """

    wants: Callable[[torch.nn.Module], Wants] = lambda _: Wants()
    context: Context | None = None
    edits: Callable[[torch.nn.Module, Call], CallEdits | RowEdits | None] = lambda _m, _c: None
    collect: Callable[[torch.nn.Module, LayerStats], None] = lambda _m, _s: None
    observe: Callable[[torch.nn.Module, Call], None] | None = None
    calls: list[torch.nn.Module] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)


_active: ContextVar[Session | None] = ContextVar("sinkscope_session", default=None)


def sinkscope_attention(  # noqa: PLR0913 - the library fixes this signature
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any = None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Return the function registered with transformers: (batch, head, query, dim) in, (batch, query, head, dim) out."""
    place = query.device.type
    if torch.is_autocast_enabled(place):  # in the type of the model's own products, and sums in float32 all the same
        told = torch.get_autocast_dtype(place)
        query, key, value = (t if t.dtype == torch.float64 else t.to(told) for t in (query, key, value))
        with torch.autocast(place, enabled=False):
            return sinkscope_attention(module, query, key, value, attention_mask, scaling, is_causal, **kwargs)
    session = _active.get() or Session()
    check_keywords(module, kwargs)
    if kwargs.get("indices") is not None:
        attention_mask = with_chosen(attention_mask, kwargs["indices"], query.shape[2], key.shape[2])
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", False)
    mask, bias = from_call(attention_mask, query, key, bool(causal))
    if kwargs.get("position_bias") is not None:
        bias = kwargs["position_bias"] if bias is None else bias + kwargs["position_bias"]
    call = Call(
        query, key, value, mask,
        scale=scaling if scaling is not None else query.shape[-1] ** -0.5,
        bias=bias,
        softcap=kwargs.get("softcap"),
        sink_logits=kwargs.get("s_aux"),
        extra_key=getattr(module, "extra_key", None),
        extra_value=getattr(module, "extra_value", None),
        value_bias=getattr(module, "value_bias", None),
        normaliser=getattr(getattr(module, "config", None), "sinkscope_normaliser", None) or "softmax",
    )  # fmt: skip
    session.calls.append(module)
    if session.observe is not None:
        session.observe(module, call)
    context = session.context or everything_real(key)
    wants, edits = session.wants(module), session.edits(module, call)
    if isinstance(edits, RowEdits):
        out, stats = edits.attend(call, wants, context, attend)
    else:
        out, stats = attend(call, wants, context, edits)
    session.paths.update(stats.path.split("+"))
    if wants.anything:
        session.collect(module, stats)
    return out.contiguous(), None


def everything_real(key: torch.Tensor) -> Context:
    """Return the context of a call of which nothing is known: every key is a real token."""
    shape = (key.shape[0], key.shape[2])
    return Context(
        torch.ones(shape, dtype=torch.bool, device=key.device), torch.zeros(shape, device=key.device).long(), (0,)
    )


AttentionInterface.register(NAME, sinkscope_attention)
AttentionMaskInterface.register(NAME, sinkscope_mask)
AttentionInterface.register(DENSE_MASK, sinkscope_attention)
AttentionMaskInterface.register(DENSE_MASK, eager_mask)


def configs(model: torch.nn.Module) -> list[Any]:
    """Every distinct config object of the model and its parts that chooses an attention implementation."""
    return _configs(list(model.modules()))


def _configs(modules: list[torch.nn.Module]) -> list[Any]:
    # Read where a module keeps it: asking every module by name raises in most of them, in each pass.
    kept = (vars(module).get("config") for module in modules)
    found = {id(config): config for config in kept if hasattr(config, "_attn_implementation_internal")}
    return list(found.values())


def give_tensors(model: torch.nn.Module, wanted: bool = True) -> None:
    """Give ``model`` its masks as tensors from now on: memory then grows with the square of the length."""
    _takes_tensors.add(model) if wanted else _takes_tensors.discard(model)


def takes_tensors(model: torch.nn.Module) -> bool:
    """Say whether ``model`` gets its masks as tensors."""
    return model in _takes_tensors


@contextmanager
def entered(model: torch.nn.Module, session: Session) -> Iterator[Session]:
    """Route the model's attention through ``session``; put every config back afterwards, whatever was raised.

    Raises:
        UnsupportedModelError: the model's attention is a function of somebody else's.
    """
    modules = list(model.modules())
    found = _configs(modules)
    check_functions(found)
    check_eager(modules)
    before = [(config, config._attn_implementation_internal) for config in found]
    token = _active.set(session)
    try:
        for config, _ in before:
            config._attn_implementation_internal = DENSE_MASK if takes_tensors(model) else NAME
        with _uncompiled(modules):
            yield session
    finally:
        for config, old in before:
            config._attn_implementation_internal = old
        _active.reset(token)


def _uncompiled(modules: list[torch.nn.Module]) -> AbstractContextManager[Any]:
    """While inside, a model that was compiled in place (``model.compile()``) runs as it was written.

    Tracing the instrument would take minutes, and what it reads would be compiled into the model.
    """
    compiled = any(getattr(module, "_compiled_call_impl", None) is not None for module in modules)
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


@contextmanager
def replaced(session: Session) -> Iterator[Session]:
    """Answer calls by another session inside an entered one: a module asked again what it makes of other outputs."""
    token = _active.set(session)
    try:
        yield session
    finally:
        _active.reset(token)
