"""Secondary sinks: later tokens that take on the first token's direction for some layers."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from sinkscope.definitions import Definition, define
from sinkscope.errors import MetricError
from sinkscope.metrics.base import metric


@metric(
    Definition(
        "secondary_sinks",
        "wong2025",
        "|cos| with the primary sink's state above 0.9, classed by lifetime in layers",
        "layers",
        (("cosine", 0.9),),
        "wong2025",
    ),
    Definition(
        "secondary_sinks",
        "relative",
        "as wong2025, secondary when the lifetime is at least max(2, L/10) and at most 0.7 of the primary's",
        "layers",
        (("cosine", 0.9),),
        "wong2025",
    ),
)
def secondary_sinks(
    states: ArrayLike, definition: str = "wong2025", *, candidates: int = 2, min_norm: float = 0.0
) -> xr.Dataset:
    """Find tokens whose state lies along the primary sink's: one row per token, dim ``key``.

    ``states`` is ``(layer, token, dim)``, the output of each block of one sequence, before the final norm. The primary
    sink is the token of largest mean norm among the first ``candidates`` (3 with a chat template). Its range runs from
    the layer after its norm's largest rise through the layer before its largest fall after that. Within it a later
    token is a sink where |cos| > 0.9 and its norm is at least ``min_norm`` times the layer's median norm (0: the
    paper's rule; 3 guards narrow models, where small states pass by chance).

    Returns ``start`` (first layer, -1 for none), ``lifetime`` (number of layers) and ``kind``: ``"primary"``,
    ``"secondary"``, ``"extra_primary"``, ``"noise"`` or ``""``. ``"wong2025"``: secondary when 4 < lifetime < L - 15,
    which is empty up to 19 layers; ``"relative"``: when max(2, L / 10) <= lifetime <= 0.7 of the primary's.
    Source: Wong et al. (wong2025) M1. It never looks at attention: check with ``key_mass``.

    Raises:
        MetricError: ``states`` has other than three dims, or fewer than three layers.
    """
    chosen = define("secondary_sinks", definition)
    hidden = np.asarray(states, dtype=np.float64)
    if hidden.ndim != 3 or hidden.shape[0] < 3:
        raise MetricError(f"secondary_sinks: expected (layer, token, dim) with 3 layers or more, got {hidden.shape}.")
    norms = np.linalg.norm(hidden, axis=-1)
    primary = int(norms[:, :candidates].mean(0).argmax())
    first, last = primary_range(norms[:, primary])
    safe = np.where(norms > 0, norms, 1.0)
    cosine = np.einsum("ltd,ld->lt", hidden, hidden[:, primary]) / (safe * safe[:, [primary]])
    large = norms >= min_norm * np.median(norms, axis=1, keepdims=True)
    hit = (np.abs(cosine) > chosen.default("cosine")) & large
    hit[:first] = hit[last + 1 :] = False
    hit[:, :primary] = False
    hit[first : last + 1, primary] = True
    lifetime = hit.sum(0)
    kinds = [_kind(int(life), int(lifetime[primary]), len(hidden), definition) for life in lifetime]
    kinds[primary] = "primary"
    result = xr.Dataset(
        {
            "start": ("key", np.where(lifetime > 0, hit.argmax(0), -1)),
            "lifetime": ("key", lifetime),
            "kind": ("key", np.array(kinds, dtype=str)),
        }
    )
    result.attrs = {
        "metric": "secondary_sinks", "definition": definition, "meaning": chosen.meaning, "units": "layers",
        "reference": chosen.reference, "n": int((lifetime > 0).sum()), "primary": primary,
    }  # fmt: skip
    return result


def primary_range(norm: np.ndarray) -> tuple[int, int]:
    """Give the first and last layer of a primary sink, both inclusive, from its norm by layer."""
    steps = np.diff(norm)
    first = int(steps.argmax()) + 1
    if first >= len(steps):
        return first, first
    return first, int(steps[first:].argmin()) + first


def _kind(lifetime: int, primary: int, layers: int, definition: str) -> str:
    if lifetime == 0:
        return ""
    if definition == "wong2025":
        if lifetime >= layers - 15:
            return "extra_primary"
        return "secondary" if lifetime > 4 else "noise"
    if lifetime > 0.7 * primary:
        return "extra_primary"
    return "secondary" if lifetime >= max(2.0, 0.1 * layers) else "noise"
