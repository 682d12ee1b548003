"""Which inputs make the MLP of a secondary sink write the primary direction: a sweep along principal directions.

After Wong et al. 2025, figure 5: what the making MLP reads at secondary sinks and at other tokens, its principal
directions, and what the MLP writes when it is fed one of them alone, at many sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr

from sinkscope.errors import MetricError
from sinkscope.methods.residual import residual_stream
from sinkscope.methods.secondary_mlp import cosine, mlp_of, stages
from sinkscope.registry import method

if TYPE_CHECKING:
    from sinkscope.models.handle import Model
    from sinkscope.prompts import Prompts

SCALES = tuple(np.linspace(-20, 20, 41).tolist())
"""Sizes that the paper feeds."""


@method()
def direction_sweep(
    model: Model, prompts: Prompts, found: xr.Dataset, *, components: int = 4, scales: Sequence[float] = SCALES,
    seed: int = 0,
) -> xr.Dataset:  # fmt: skip
    """Return what the making MLP writes for its input's principal directions, beside the primary sink's own write.

    Args:
        model: the model in which they were found.
        prompts: the same prompts.
        found: what :func:`sinkscope.methods.secondary_sinks.detect` found.
        components: principal directions of the inputs at secondary sinks and as many other tokens of their prompts,
            those with the same id first, centred together.
        scales: sizes at which a direction is fed alone.
        seed: of the draw of other tokens, and of the control direction.

    Variables: ``projection`` (token component) with ``who`` (``sink`` or ``other``), ``explained`` (component), the
    share of the variance; ``cosine`` and ``norm`` (direction scale) of what is written, the cosine with the mean write
    of the MLP that made the primary sink. The last direction, ``random``, is the control. The layer is the one where
    most secondary sinks start (attribute ``layer``). Source: Wong et al. 2025 (wong2025), figure 5.

    Raises:
        MetricError: there is no secondary sink.
        UnsupportedModelError: the MLP cannot be read.
    """
    here = found["kind"].values == "secondary"
    if not here.any():
        raise MetricError("direction_sweep: no secondary sink was found. Look at levels(found), or use longer prompts.")
    starts, counts = np.unique(found["start"].values[here], return_counts=True)
    start = int(starts[counts.argmax()])
    layer, rng = int(found["layer"].values[start]), np.random.default_rng(seed)
    read, writes = _read(model, prompts, found, (start, layer), rng)
    inputs = np.concatenate([*read["sink"], *read["other"]]).astype(np.float64)
    who = [name for name, parts in read.items() for _ in range(sum(map(len, parts)))]
    centred = inputs - inputs.mean(0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    count = min(components, len(directions))
    control = rng.normal(size=inputs.shape[1])
    fed = np.vstack([directions[:count], control / np.linalg.norm(control)])
    out = _written(model, layer, fed, scales)
    target = np.mean(writes, 0)
    along = np.array([[cosine(row, target) for row in rows] for rows in out])
    names = [f"PC{place + 1}" for place in range(count)]
    return xr.Dataset(
        {"projection": (("token", "component"), centred @ directions[:count].T),
         "explained": ("component", (sizes**2 / (sizes**2).sum())[:count]),
         "cosine": (("direction", "scale"), along), "norm": (("direction", "scale"), np.linalg.norm(out, axis=-1))},
        coords={"who": ("token", who), "component": names, "direction": [*names, "random"], "scale": list(scales)},
        attrs=dict(found.attrs) | {"layer": layer, "n": len(who) // 2, "reference": "wong2025"},
    )  # fmt: skip


def _read(
    model: Model, prompts: Prompts, found: xr.Dataset, at: tuple[int, int], rng: np.random.Generator
) -> tuple[dict[str, list[np.ndarray]], list[np.ndarray]]:
    """What the MLP of a layer reads at its secondary sinks and at other tokens, and what made the primary sinks."""
    start, layer = at
    here = (found["kind"].values == "secondary") & (found["start"].values == start)
    read: dict[str, list[np.ndarray]] = {"sink": [], "other": []}
    writes: list[np.ndarray] = []
    for index in np.flatnonzero(here.any(1)).tolist():
        one = found.isel(prompt=index)
        keys = np.flatnonzero(here[index])
        birth = int(found["layer"].values[int(one["born"][keys[0]])])
        with model.exclusive(), stages(mlp_of(model, layer)) as made, stages(mlp_of(model, birth)) as first:
            residual_stream(model, prompts, index)
        writes.append(first["output"][int(one["primary"])])
        ids = np.asarray(prompts.ids[index])
        free = np.flatnonzero((one["lifetime"].values[: len(ids)] == 0) & (np.arange(len(ids)) != int(one["primary"])))
        alike = np.isin(ids[free], ids[keys])
        order = np.concatenate([rng.permutation(free[alike]), rng.permutation(free[~alike])]).astype(int)
        read["sink"].append(made["input"][keys])
        read["other"].append(made["input"][order[: len(keys)]])
    return read, writes


def _written(model: Model, layer: int, directions: np.ndarray, scales: Sequence[float]) -> np.ndarray:
    """What the MLP of a layer writes for each direction at each size: (direction, scale, dim)."""
    fed = np.asarray(scales)[None, :, None] * directions[:, None]
    with model.exclusive(), torch.no_grad():
        out = mlp_of(model, layer)(torch.as_tensor(fed, device=model.device, dtype=model.dtype))
    return out.float().cpu().numpy().astype(np.float64)
