"""What may be asked of one attention call, and what comes back.

A probe asks for statistics by name; the runner unites what all probes ask as :class:`Wants`; the pass fills one
:class:`LayerStats` per attention module. Shapes are those of the call: padded, keys and queries as the model has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int

from sinkscope import registry


@dataclass(frozen=True, eq=False)
class Ask:
    """One statistic asked of a call: its name, and what of, where that is not everything.

    ``of`` holds arguments of the statistic: tensors have the batch first and tokens second (a mask of keys or queries,
    a label per token), anything else is the same for the whole batch (a tuple of heads).
    """

    name: str
    of: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def statistic(self) -> Any:
        """Return the class that gathers it, see :class:`sinkscope.attention.statistic.Statistic`.

        Raises:
            ProbeError: there is no such statistic; the message says which there are.
        """
        return registry.get("statistic", self.name)


class Wants:
    """Statistics asked of every attention call of one layer, each under a label.

    A statistic of everything is asked once, whoever asks for it. The first of a name is labelled by that name, further
    ones (of other keys, queries or heads) by the name and a number.
    """

    def __init__(self, *asks: Ask | str) -> None:
        self.asks: dict[str, Ask] = {}
        self._classes: dict[str, Any] = {}
        for ask in asks:
            self.add(ask)

    def add(self, ask: Ask | str) -> str:
        """Take one more statistic and return the label of its result."""
        ask = Ask(ask) if isinstance(ask, str) else ask
        for label, known in self.asks.items():
            if known is ask or (known.name == ask.name and not known.of and not ask.of):
                return label
        label = ask.name if ask.name not in self.asks else f"{ask.name}#{len(self.asks)}"
        self.asks[label], self._classes[label] = ask, ask.statistic
        return label

    def cut(self, how: Callable[[torch.Tensor], torch.Tensor]) -> Wants:
        """Return the same with every tensor among the arguments cut, to rows of the batch or to some tokens."""
        part = Wants()
        part._classes = self._classes
        for label, ask in self.asks.items():
            of = {name: how(value) if isinstance(value, torch.Tensor) else value for name, value in ask.of.items()}
            part.asks[label] = replace(ask, of=of)
        return part

    def __contains__(self, name: str) -> bool:
        return any(ask.name == name for ask in self.asks.values())

    @property
    def names(self) -> frozenset[str]:
        """Return the names of the statistics."""
        return frozenset(ask.name for ask in self.asks.values())

    @property
    def weights_needed(self) -> bool:
        """True where the attention weights themselves must be formed."""
        return any("weights" in cls.reads for cls in self._classes.values())

    @property
    def log_sum_exp_needed(self) -> bool:
        """True where the log-sum-exp of the rows must be known."""
        return any("log_sum_exp" in cls.reads for cls in self._classes.values())

    @property
    def from_kernel(self) -> bool:
        """True where a statistic of the softmax is wanted, which a kernel that returns only the output cannot give."""
        return self.weights_needed or self.log_sum_exp_needed

    @property
    def anything(self) -> bool:
        """True where any statistic is wanted."""
        return bool(self.asks)


@dataclass
class Context:
    """What a call must know of the batch: which tokens are real, and their roles.

    ``real`` and ``roles`` cover every position a key can have in this run; ``role_list`` gives the role indices that
    occur, in the order of the role columns. ``queries`` says which queries are real tokens where they are others than
    the keys (cross-attention).
    """

    real: Bool[torch.Tensor, "batch key"]
    roles: Int[torch.Tensor, "batch key"]
    role_list: tuple[int, ...]
    queries: Bool[torch.Tensor, "batch query"] | None = None
    cache: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What follows from the batch alone, computed by the first layer for all of them."""

    def one_hot(self) -> Float[torch.Tensor, "batch key role"]:
        """Return role membership of the keys as columns."""
        if "one_hot" not in self.cache:
            wanted = torch.tensor(self.role_list, device=self.roles.device)
            self.cache["one_hot"] = ((self.roles[..., None] == wanted) & self.real[..., None]).float()
        return self.cache["one_hot"]


class LayerStats:
    """Statistics of one attention module by their labels, and the path that computed them."""

    def __init__(self, values: Mapping[str, torch.Tensor] | None = None, path: str = "") -> None:
        self.values: dict[str, torch.Tensor] = dict(values or {})
        self.path = path

    def __getitem__(self, label: str) -> torch.Tensor:
        return self.values[label]

    def __setitem__(self, label: str, value: torch.Tensor) -> None:
        self.values[label] = value

    def __contains__(self, label: str) -> bool:
        return label in self.values

    def named(self, labels: Mapping[str, str]) -> LayerStats:
        """Return the statistics that one probe asked for, under the names it gave them."""
        return LayerStats({name: self.values[label] for name, label in labels.items()}, self.path)


def join(calls: Sequence[LayerStats], wants: Wants) -> LayerStats:
    """Join the calls one module made in one pass (windows, images): block-diagonal, so all tokens concatenate."""
    if len(calls) == 1:
        return calls[0]
    return _joined(calls, lambda label, parts: wants.asks[label].statistic.join(parts))


def join_batch(parts: Sequence[LayerStats]) -> LayerStats:
    """Join the parts of a call that was cut by rows of the batch."""
    return _joined(parts, lambda _, values: torch.cat(values))


def _joined(parts: Sequence[LayerStats], how: Callable[[str, list[torch.Tensor]], torch.Tensor]) -> LayerStats:
    values = {label: how(label, [part[label] for part in parts]) for label in parts[0].values}
    return LayerStats(values, _paths(part.path for part in parts))


def _paths(paths: Iterable[str]) -> str:
    return "+".join(sorted(set(paths)))
