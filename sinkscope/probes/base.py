"""What a probe is: a frozen dataclass that names the statistics it needs and turns them into variables.

To add one: subclass :class:`Probe`, declare ``variables``, name the statistics in ``statistics`` (or ask for residual
sites or logits), and return tensors whose dims are those of the variable with ``layer`` or ``site`` left out. The
runner unites what all probes need, reads each thing once, and puts the numbers at their place. Key and query axes are
those of the padded batch; the runner numbers them from the first real token.
"""

from __future__ import annotations

import json
from abc import ABC
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import xarray as xr
from jaxtyping import Bool, Float

from sinkscope.attention.view import LayerStats
from sinkscope.errors import ProbeError
from sinkscope.models.backends.base import Tower
from sinkscope.prompts import Batch
from sinkscope.prompts.selection import select
from sinkscope.schema import VARIABLES, Variable


@dataclass(frozen=True)
class Scene:
    """What a probe may look at besides the statistics: the batch, the tower, and W_O where it is asked for."""

    batch: Batch
    tower: Tower
    write_norms: Mapping[int, Float[torch.Tensor, "batch head key"]]

    def chosen(self, selection: Any, probe: Probe, field: str) -> Bool[torch.Tensor, "batch key"]:
        """Resolve a selection of this probe against the batch."""
        return select(selection, self.batch, ProbeError, f"{type(probe).__name__}({field}={_short(selection)})")


@dataclass(frozen=True)
class Probe(ABC):  # noqa: B024 - every method has a default; a probe overrides those it needs
    """Base of all probes."""

    variables: ClassVar[Mapping[str, Variable]] = {}
    statistics: ClassVar[frozenset[str]] = frozenset()
    logits: ClassVar[str | None] = None
    """``"last"`` or ``"all"`` where output logits are needed."""

    def check(self, tower: Tower) -> None:  # noqa: B027
        """Refuse arguments that this tower cannot serve, before anything runs."""

    def maxima(self, scene: Scene) -> Bool[torch.Tensor, "batch key"] | None:
        """Keys whose largest weight is wanted."""
        return None

    def few(self, scene: Scene) -> Bool[torch.Tensor, "batch key"] | None:
        """The only keys whose mass is wanted, or None for all."""
        return None

    def maps(self, tower: Tower) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Layers and heads whose map is to be kept."""
        return None

    def sites(self, tower: Tower) -> tuple[str, ...]:
        """Residual-stream sites this probe reads."""
        return ()

    def at_layer(self, stats: LayerStats, scene: Scene, layer: int) -> dict[str, torch.Tensor]:
        """Variables of one layer, batch first."""
        return {}

    def at_site(self, hidden: Float[torch.Tensor, "batch key d_model"], scene: Scene) -> dict[str, torch.Tensor]:
        """Variables of one residual site, batch first."""
        return {}

    def at_end(self, logits: Float[torch.Tensor, "batch position vocab"], scene: Scene) -> dict[str, torch.Tensor]:
        """Variables of the output logits, batch first."""
        return {}

    def describe(self) -> dict[str, Any]:
        """The probe as plain data, for the reading's attributes."""
        return {"probe": type(self).__name__} | {k: _plain(v) for k, v in asdict(self).items()}


def standard(*names: str) -> dict[str, Variable]:
    """Pick variables of the schema by name."""
    return {name: VARIABLES[name] for name in names}


def dumps(probes: tuple[Probe, ...]) -> str:
    """Probes as a JSON string."""
    return json.dumps([probe.describe() for probe in probes])


def _plain(value: Any) -> Any:
    if isinstance(value, xr.DataArray):
        return f"DataArray{tuple(value.dims)} with {int(value.sum())} selected"
    if isinstance(value, tuple | list | range):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def _short(value: Any) -> str:
    return repr(_plain(value))[:60]
