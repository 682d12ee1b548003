"""What a probe is: a frozen dataclass that names the statistics it needs and turns them into variables.

To add one: subclass :class:`Probe`, say in ``variables`` what it makes (dims, units, meaning) and in ``papers`` where
it comes from, name the statistics in ``statistics`` (or ask for residual sites or logits), return tensors whose dims
are those of the variable with ``layer`` or ``site`` left out. That is all: the class registers itself, so that the
command line finds it by name, ``cite`` knows its papers and errors name it. The runner unites what all probes need,
reads each thing once, and puts the numbers at their place. Key and query axes are those of the padded batch; the runner
numbers them from the first real token.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, cast

import torch
import xarray as xr
from jaxtyping import Bool, Float

from sinkscope import arguments, registry
from sinkscope.attention.view import Ask, LayerStats
from sinkscope.errors import ProbeError, SinkscopeError
from sinkscope.models.backends.base import Tower
from sinkscope.prompts import Batch
from sinkscope.prompts.selection import select
from sinkscope.references import Reference
from sinkscope.roles import ATTENDED_ROLES, ROLES
from sinkscope.schema import Variable

__all__ = ["Probe"]


@dataclass(frozen=True)
class ProbeContext:
    """What a probe may look at besides the statistics: the batch and the tower."""

    batch: Batch
    tower: Tower
    _known: dict[Any, Any] = field(default_factory=dict[Any, Any], repr=False, compare=False)

    def chosen(self, selection: Any, probe: Probe, field: str) -> Bool[torch.Tensor, "batch key"]:
        """Resolve a selection of this probe against the batch; the same tensor in every layer."""
        # Resolved once per batch, not per layer: 80 layers would resolve the same role 80 times.
        key = (id(probe), field)
        if key not in self._known:
            asked = f"{type(probe).__name__}({field}={_short(selection)})"
            own = self.batch.queries if field == "queries" else self.batch
            self._known[key] = select(selection, own, ProbeError, asked)
        return self._known[key]

    def once(self, key: Any, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return what follows from the batch alone: made for the first layer, kept for the others."""
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def role_columns(self) -> Float[torch.Tensor, "batch key role"]:
        """Return which role each real token has, as columns in the order of the dimension ``role``."""
        if "roles" not in self._known:
            # Padding has a role of its own, the last, and no column: its share would be 0 by construction.
            one_hot = torch.nn.functional.one_hot(self.batch.roles.long(), len(ROLES))[..., : len(ATTENDED_ROLES)]
            self._known["roles"] = (one_hot * self.batch.real[..., None]).float()
        return self._known["roles"]


@dataclass(frozen=True)
class Probe(metaclass=registry.Constructed):
    """Base of all probes. Every method has a default; a probe overrides those it needs."""

    argument_error: ClassVar[type[SinkscopeError]] = ProbeError

    variables: ClassVar[Mapping[str, Variable]] = {}
    """What the probe makes: dims in order, units and meaning of each variable."""
    papers: ClassVar[tuple[str | Reference, ...]] = ()
    """Papers it comes from: their keys in :mod:`sinkscope.references`, or references of one's own."""
    statistics: ClassVar[frozenset[str]] = frozenset()
    """Statistics of attention calls that it needs."""
    logits: ClassVar[str | None] = None
    """``"last"`` or ``"all"`` where output logits are needed."""

    def _repr_html_(self) -> str:
        said = (type(self).__doc__ or "").strip().partition("\n")[0].replace("``", "")
        head = "<tr><th>makes</th><th>dims</th><th>units</th><th>meaning</th></tr>"
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th>"
            + "".join(f"<td>{html.escape(text)}</td>" for text in (" ".join(made.dims), made.units, made.meaning))
            + "</tr>"
            for name, made in self.variables.items()
        )
        return f"<div><code>{html.escape(repr(self))}</code><br>{html.escape(said)}</div><table>{head}{rows}</table>"

    def __init_subclass__(cls, *, listed: bool = True) -> None:
        """Register the class; ``listed=False`` or a name that begins with ``_`` keeps it off the list."""
        if listed and not cls.__name__.startswith("_"):
            registry.register("probe", cls)

    def check(self, tower: Tower) -> None:
        """Refuse arguments that this tower cannot serve, before anything runs."""

    def asks(self, context: ProbeContext, layer: int) -> Mapping[str, Ask]:
        """Return what is asked of one layer's attention, under the names by which :meth:`at_layer` finds it.

        By default each of ``statistics``, of everything. A probe that limits one to some keys, queries or heads, or
        reads some layers only, says so here; it may ask for nothing that ``statistics`` does not name.
        """
        return {name: Ask(name) for name in self.statistics}

    def labels(self, longest: int) -> Mapping[str, Sequence[Any]]:
        """Return the labels of dims that the model does not give, or of which this probe reads a part.

        ``longest`` is the number of tokens of the longest prompt.
        """
        return {}

    def sites(self, tower: Tower) -> tuple[str, ...]:
        """Return the residual-stream sites this probe reads."""
        return ()

    def at_layer(self, stats: LayerStats, context: ProbeContext, layer: int) -> dict[str, torch.Tensor]:
        """Return the variables of one layer, batch first."""
        return {}

    def at_site(
        self, hidden: Float[torch.Tensor, "batch key d_model"], context: ProbeContext
    ) -> dict[str, torch.Tensor]:
        """Return the variables of one residual site, batch first."""
        return {}

    def at_end(
        self, logits: Float[torch.Tensor, "batch position vocab"], context: ProbeContext
    ) -> dict[str, torch.Tensor]:
        """Return the variables of the output logits, batch first."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Return the probe as plain data, for the reading's attributes."""
        return {"probe": type(self).__name__} | {k: _plain(v) for k, v in asdict(self).items()}


def whole_numbers(value: Any, asked: str) -> tuple[int, ...]:
    """Return one whole number or several as a tuple, each once.

    Raises:
        ProbeError: anything else; 1.5 is not cut to 1, and True is no number. ``asked`` opens the message.
    """
    found = arguments.whole_numbers(value)
    if found is None:
        raise ProbeError(f"{asked}={_short(value)}): whole numbers are needed. Give a list of them, or a range.")
    return tuple(dict.fromkeys(found))


def dumps(probes: tuple[Probe, ...]) -> str:
    """Probes as a JSON string."""
    return json.dumps([probe.describe() for probe in probes])


def _plain(value: Any) -> Any:
    if isinstance(value, xr.DataArray):
        if value.dtype.kind in "UO":
            return f"DataArray{tuple(value.dims)} of names"
        return f"DataArray{tuple(value.dims)} with {int(value.sum())} selected"
    if isinstance(value, range) and value[arguments.MOST :]:  # without end, as good as; it is refused further on
        return repr(value)
    if isinstance(value, tuple | list | range):
        return [_plain(item) for item in cast(Iterable[Any], value)]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in cast(Mapping[Any, Any], value).items()}
    return value if isinstance(value, str | int | float) or value is None else str(value)


def _short(value: Any) -> str:
    return repr(_plain(value))[:60]
