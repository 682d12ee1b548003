"""Which visual tokens of a picture are sinks by their residual stream, and which are attended whatever is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from sinkscope import metrics
from sinkscope.engine.run import run
from sinkscope.errors import MetricError
from sinkscope.methods.var import sink_dims
from sinkscope.probes.residual import SinkDims
from sinkscope.roles import ROLE_INDEX

if TYPE_CHECKING:
    from sinkscope.models.handle import Model
    from sinkscope.prompts import Prompts


@dataclass(frozen=True, eq=False)
class VisualSinks:
    """Visual sinks of one picture; ``patch`` numbers its visual tokens.

    Attributes:
        residual: tokens whose phi reaches ``tau`` at the input of a layer; bool (layer patch).
        attended: tokens that get much attention whatever is asked, as a sink does and as the subject of the picture
            does: bool (patch).
        tau: threshold on phi; NaN where none could be set.
        dims: dimensions that phi looks at.
        note: in words, how ``tau`` was set, or why it could not be.
    """

    residual: xr.DataArray
    attended: xr.DataArray
    tau: float
    dims: tuple[int, ...]
    note: str

    @property
    def patches(self) -> np.ndarray:
        """Numbers of the visual tokens that are a sink by phi in some layer."""
        return np.flatnonzero(self.residual.any("layer").values)

    @property
    def steady(self) -> np.ndarray:
        """Numbers of those that get much attention whatever is asked and are no sink by phi: sinks, or the subject."""
        return np.flatnonzero((self.attended & ~self.residual.any("layer")).values)


def find_visual_sinks(
    model: Model,
    prompts: Prompts,
    attention: tuple[xr.DataArray, xr.DataArray],
    tau: float | None = None,
    ratio: float = 5.0,
) -> VisualSinks:
    """Find the sinks among the visual tokens of the first prompt.

    Args:
        model: the model.
        prompts: the question, then the general question, about the same picture.
        attention: (layer head patch) what the answer's rows give to each visual token, for either prompt.
        tau: threshold on phi; None takes the middle of the gap between first and ordinary tokens, if there is one.
        ratio: a token is attended whatever is asked if it gets this many times the median visual token's attention
            (mean over all layers and heads) under both questions. Ours.
    """
    layers = attention[0]["layer"].values.tolist()
    received = [one.mean(("layer", "head")) for one in attention]
    attended = (received[0] >= ratio * received[0].median()) & (received[1] >= ratio * received[1].median())
    residual = xr.zeros_like(attention[0].isel(head=0, drop=True), dtype=bool)
    dims: tuple[int, ...] = ()
    try:
        dims = sink_dims(model, prompts)
        reading = run(model, prompts, [SinkDims(dims)])
        limit, note = _threshold(reading, tau)
    except MetricError as error:
        return VisualSinks(residual, attended, float("nan"), dims, f"none looked for: {str(error).split('. ')[0]}")
    level = metrics.at_block_inputs(reading["phi"].isel(prompt=0), layers).transpose("layer", "key").values
    image = np.flatnonzero(prompts.roles[0] == ROLE_INDEX["image"])
    # Where the first token is no sink the same dimension means something else: the last blocks write it anew.
    residual = residual | ((level[:, image] >= limit) & (level[:, :1] >= limit))
    return VisualSinks(residual, attended, limit, dims, f"{note}, in dimension {', '.join(map(str, dims))}")


def _threshold(reading: xr.Dataset, tau: float | None) -> tuple[float, str]:
    if tau is not None:
        return float(tau), f"phi of at least {tau:.3g}, as asked"
    gap = metrics.phi_gap(reading)
    edges = f"between {gap.attrs['ordinary']:.3g} of other and {gap.attrs['first']:.3g} of first tokens"
    return float(gap), f"phi of at least {float(gap):.3g}, {edges}"
