"""The residual stream of a transformers model, read and written at named sites while a pass runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from sinkscope.models.backends.base import ResidualHook, ResidualSite, Tower, carried


@contextmanager
def residual_hooks(
    model: torch.nn.Module, tower: Tower, hooks: Mapping[str, Sequence[ResidualHook]], rows: int
) -> Iterator[None]:
    """Give ``hooks`` (by the name of a site) the stream of ``tower`` at their sites, and put back what they return.

    ``rows`` is the number of sequences of a batch, for modules that flatten sequences and tokens.
    """
    handles: list[Any] = []
    try:
        residual = carried(hooks, tower)
        for site in tower.residual:
            here = residual.get(site.name, ())
            if here:
                handles.append(_hook(model.get_submodule(site.path), site, here, rows))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(module: torch.nn.Module, site: ResidualSite, hooks: Sequence[ResidualHook], rows: int) -> Any:
    turns = itertools.count()

    def changed(hidden: torch.Tensor) -> torch.Tensor:
        return hidden if site.turn is not None and next(turns) != site.turn else read(hidden)

    def read(hidden: torch.Tensor) -> torch.Tensor:
        if hidden.ndim == 2:  # OPT flattens batch and tokens before its MLP
            return read(hidden.view(rows, -1, hidden.shape[-1])).flatten(0, 1)
        if hidden.ndim == 4 and site.streams is not None:
            mean = hidden.mean(site.streams)
            new = read(mean)
            return hidden if new is mean else hidden + (new - mean).unsqueeze(site.streams)
        for hook in hooks:
            new = hook(hidden)
            hidden = hidden if new is None else new
        return hidden

    def before(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if site.argument is None or site.argument not in kwargs:
            return (changed(args[0]), *args[1:]), kwargs
        return args, kwargs | {site.argument: changed(kwargs[site.argument])}

    def after(_: torch.nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (changed(output[0]), *output[1:])
        return changed(output)

    if site.before:
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)
