"""The ways of reading a model that are compared; each does one forward pass without the output head.

A way is made ready outside the measurement and returns what is measured. The ways that keep maps end with the same
statistics of attention weights as sinkscope's: key mass, entropy, row sums, role shares and the largest weight on the
first key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from subjects import Subject, Way

import sinkscope as sk

MAPS = ("transformers: output_attentions", "TransformerLens: pattern cache")


def attention_probes() -> list[Any]:
    """Every attention statistic."""
    return [
        sk.KeyMass(), sk.RoleShare(queries="all"), sk.Entropy(), sk.MaxAttention(keys="first", queries="all"),
        sk.RowSum(), sk.ValueNorm(), sk.KeyNorm(), sk.Contribution(),
    ]  # fmt: skip


def residual_probes() -> list[Any]:
    """Every statistic of the residual stream."""
    return [sk.ResidualNorm(), sk.MassiveActivations(), sk.SinkDims()]


def plain(subject: Subject) -> Callable[[], Any]:
    """The forward pass alone."""
    cache = {} if subject.name == "minilm" else {"use_cache": False}
    return lambda: subject.forward(**cache)


def reading(*probes: Any) -> Way:
    """A run of sinkscope."""

    def way(subject: Subject) -> Callable[[], Any]:
        prompts = subject.prompts
        return lambda: sk.run(subject.handle, prompts, list(probes))

    return way


def one_edit(subject: Subject) -> Callable[[], Any]:
    """The forward pass under one attention edit in every layer."""
    prompts, once = subject.prompts, plain(subject)
    edit = sk.ScaleKeys(0.5, keys="first")

    def measured() -> Any:
        with sk.applied(subject.handle, [edit], prompts):
            return once()

    return measured


def eager_maps(subject: Subject) -> Callable[[], Any]:
    """transformers' output_attentions, then the statistics from the maps."""
    own = subject.eager()
    reduce = _reduction(own)
    cache = {} if subject.name == "minilm" else {"use_cache": False}
    return lambda: reduce(own.forward(output_attentions=True, **cache).attentions)


def lens_cache(subject: Subject) -> Callable[[], Any]:
    """TransformerLens run_with_cache of the attention patterns, then the statistics from them."""
    bridge = subject.handle.to_bridge()
    # It has no way to leave the output head out, which other ways do: a third of the weights of a small model.
    bridge.unembed.forward = lambda hidden, *_, **__: hidden
    reduce = _reduction(subject)

    def once() -> Any:
        with torch.no_grad():
            _, cache = bridge.run_with_cache(
                subject.tokens.to(subject.handle.device),
                names_filter=lambda name: name.endswith("hook_pattern"),
                return_type=None,
            )
        return reduce(cache.values())

    return once


def _reduction(subject: Subject) -> Callable[[Iterable[torch.Tensor]], list[Any]]:
    """The statistics of every map."""
    length = subject.tokens.shape[1]
    causal = subject.handle.backend.towers[subject.handle.backend.default_tower].causal
    seen = torch.arange(length, 0, -1) if causal else torch.full((length,), length)
    roles = torch.from_numpy(subject.prompts.roles[0]).long()
    member = torch.nn.functional.one_hot(roles, int(roles.max()) + 1).float()

    seen, member = (tensor.to(subject.handle.device) for tensor in (seen, member))

    def reduce(maps: Iterable[torch.Tensor]) -> list[Any]:
        found = []
        for weights in (m.float() for m in maps):
            shares = weights.mean(2) @ member
            found.append((
                weights.sum(2) / seen, torch.special.entr(weights).sum(-1), weights.sum(-1), shares, weights[..., 0],
            ))  # fmt: skip
        return found

    return reduce


WAYS: dict[str, Way] = {
    "plain forward pass (SDPA)": plain,
    "sinkscope: first token's share, value norms": reading(sk.KeyMass(keys="first"), sk.ValueNorm()),
    "sinkscope: one edit in every layer": one_edit,
    "sinkscope: key mass": reading(sk.KeyMass()),
    "sinkscope: entropy": reading(sk.Entropy()),
    "sinkscope: all attention statistics": reading(*attention_probes()),
    "sinkscope: attention and residual statistics": reading(*attention_probes(), *residual_probes()),
    MAPS[0]: eager_maps,
    MAPS[1]: lens_cache,
}
