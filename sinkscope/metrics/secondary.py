"""Secondary sinks: later tokens that take on the first token's direction for some layers."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from sinkscope.definitions import Definition, define
from sinkscope.errors import MetricError
from sinkscope.metrics.base import metric

LARGE, JUMP = 3.0, 4.0
"""What makes a stage of the primary sink, see :func:`primary_stages`."""


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
        "as wong2025 in each stage of the primary sink, its norm 3 times the median or more; secondary when the "
        "lifetime is at least max(2, L/10) and at most 0.7 of the primary's",
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
    sink is the token of largest mean norm among the first ``candidates`` (3 with a chat template). It is one for some
    ranges of layers, its stages. ``"wong2025"`` takes one: from the layer after its norm's largest rise through the
    layer before its largest fall after that. ``"relative"`` finds all (:func:`primary_stages`), as a model may have one
    set of sinks in early layers and another in later ones. Within a stage a later token is a sink where |cos| > 0.9 and
    its norm is at least ``min_norm`` times the layer's median norm (0: the paper's rule; 3 guards narrow models, where
    small states pass by chance).

    Returns ``start`` (first layer, -1 for none), ``lifetime`` (number of layers), ``stage`` (number of the stage it
    starts in, -1 for none) and ``kind``: ``"primary"``, ``"secondary"``, ``"extra_primary"``, ``"noise"`` or ``""``; by
    stage ``first`` and ``last`` layer. ``"wong2025"``: secondary when 4 < lifetime < L - 15, which is empty up to 19
    layers; ``"relative"``: when max(2, L / 10) <= lifetime <= 0.7 of the primary's, which counts all stages.
    Source: Wong et al. (wong2025). It never looks at attention: check with ``key_mass``.

    Raises:
        MetricError: ``states`` has other than three dims, or fewer than three layers.
    """
    chosen = define("secondary_sinks", definition)
    hidden = np.asarray(states, dtype=np.float64)
    if hidden.ndim != 3 or hidden.shape[0] < 3:
        raise MetricError(f"secondary_sinks: expected (layer, token, dim) with 3 layers or more, got {hidden.shape}.")
    norms = np.linalg.norm(hidden, axis=-1)
    primary = int(norms[:, :candidates].mean(0).argmax())
    median = np.median(norms, axis=1)
    one_range = definition == "wong2025"
    stages = [primary_range(norms[:, primary])] if one_range else primary_stages(norms[:, primary], median)
    inside = np.full(len(hidden), -1)
    for number, (first, last) in enumerate(stages):
        inside[first : last + 1] = number
    safe = np.where(norms > 0, norms, 1.0)
    cosine = np.einsum("ltd,ld->lt", hidden, hidden[:, primary]) / (safe * safe[:, [primary]])
    hit = (np.abs(cosine) > chosen.default("cosine")) & (norms >= min_norm * median[:, None]) & (inside >= 0)[:, None]
    hit[:, :primary] = False
    hit[:, primary] = inside >= 0
    lifetime = hit.sum(0)
    kinds = [_kind(int(life), int(lifetime[primary]), len(hidden), definition) for life in lifetime]
    kinds[primary] = "primary"
    start = np.where(lifetime > 0, hit.argmax(0), -1)
    result = xr.Dataset(
        {
            "start": ("key", start),
            "lifetime": ("key", lifetime),
            "stage": ("key", np.where(start >= 0, inside[start], -1)),
            "kind": ("key", np.array(kinds, dtype=str)),
            "first": ("stages", np.array([first for first, _ in stages], dtype=int)),
            "last": ("stages", np.array([last for _, last in stages], dtype=int)),
        }
    )
    result.attrs = {
        "metric": "secondary_sinks", "definition": definition, "meaning": chosen.meaning, "units": "layers",
        "reference": chosen.reference, "n": int((lifetime > 0).sum()), "primary": primary,
    }  # fmt: skip
    return result


def primary_range(norm: np.ndarray) -> tuple[int, int]:
    """Return the first and last layer of a primary sink, both inclusive, from its norm by layer."""
    steps = np.diff(norm)
    first = int(steps.argmax()) + 1
    if first >= len(steps):
        return first, first
    return first, int(steps[first:].argmin()) + first


def primary_stages(norm: np.ndarray, median: np.ndarray) -> list[tuple[int, int]]:
    """Return the ranges of layers, both ends inclusive, over which a token is a primary sink.

    A stage is a run of layers in which its norm is at least ``LARGE`` (3) times the median norm of all tokens and their
    ratio changes by at most a factor ``JUMP`` (4) from one to the next. Both constants are this project's own.
    """
    ratio = norm / np.where(median > 0, median, np.inf)
    runs: list[tuple[int, int]] = []
    for layer, high in enumerate(ratio >= LARGE):
        if not high:
            continue
        joined = (
            bool(runs) and runs[-1][1] == layer - 1 and abs(np.log(ratio[layer] / ratio[layer - 1])) <= np.log(JUMP)
        )
        if joined:
            runs[-1] = (runs[-1][0], layer)
        else:
            runs.append((layer, layer))
    return runs


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
