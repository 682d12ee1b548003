"""Models whose heads are shared out over processes (tensor parallelism): each reads its own, and the reading is joined.

transformers cuts the projections of queries, keys and values by heads, so a rank's attention calls hold its heads alone
and no weight of attention crosses ranks. What is left after the pass is to put the parts side by side. ``run`` does
that (:func:`check_ranks`, :func:`join_heads`); everything else refuses such a model (:func:`refuse_ranks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import distributed

from sinkscope.errors import ProbeError, UnsupportedModelError
from sinkscope.models.ranks import mesh_of
from sinkscope.probes.base import Probe
from sinkscope.probes.gradient import GradientProbe

if TYPE_CHECKING:
    from sinkscope.models.handle import Model

HEADS = ("head", "kv_head")


def refuse_ranks(model: Model) -> None:
    """Refuse one rank's part of a model, for what does not join the parts.

    Raises:
        UnsupportedModelError: the model is split.
    """
    mesh = mesh_of(model.model)
    if mesh is not None:
        raise UnsupportedModelError(
            f"{model.id} is split over {mesh.size()} ranks (tensor parallelism), each of which holds a part of the "
            "heads. Only sinkscope.run without edits joins them. Load the model with device_map= for everything else."
        )


def check_ranks(model: Model, probes: Sequence[Probe], edits: Sequence[Any], cache: Any) -> None:
    """Refuse what a rank that knows only its own heads would do wrong; a model in one piece is refused nothing.

    Raises:
        UnsupportedModelError: edits, or a cache.
        ProbeError: a probe that names heads, looks at what they write, or takes a gradient.
    """
    if mesh_of(model.model) is None:
        return
    if edits or cache is not None:
        raise UnsupportedModelError(
            f"run: {model.id} is split over ranks, each of which numbers its own heads from 0 and writes its own "
            f"files: {'edits' if edits else 'cache='} would not mean the same on all of them. Read it without, or load "
            "it with device_map=."
        )
    for probe in probes:
        # What W_O writes is added up over the ranks before it can be seen.
        if hasattr(probe, "heads") or "write_norm" in probe.statistics or isinstance(probe, GradientProbe):
            raise ProbeError(
                f"run: {type(probe).__name__} looks at single heads of the whole model or at what they write, and "
                f"{model.id} is split over ranks that hold a part of the heads each. Leave it out, or load the model "
                "with device_map=."
            )


def join_heads(ds: xr.Dataset, model: Model) -> xr.Dataset:
    """Put the heads of all ranks side by side; every rank gets the whole reading. A model in one piece has it already.

    What has no dimension of heads is the same on all ranks, which hold the residual stream whole.
    """
    mesh = mesh_of(model.model)
    if mesh is None:
        return ds
    sizes = {dim: ds.sizes[dim] * mesh.size() for dim in HEADS if dim in ds.sizes}
    joined = {}
    for name, variable in ds.data_vars.items():
        axis = next((number for number, dim in enumerate(variable.dims) if dim in HEADS), None)
        if axis is not None:
            variable = xr.Variable(variable.dims, _gathered(variable.values, axis, mesh, model.device), variable.attrs)
        joined[name] = variable
    coords: dict[Any, Any] = {n: each for n, each in ds.coords.items() if not set(each.dims) & set(HEADS)}
    if "head" in sizes:
        coords["head"] = range(sizes["head"])
        if "kv_of_head" in ds.coords:
            group = int((ds["kv_of_head"].values == ds["kv_of_head"].values[0]).sum())
            coords["kv_of_head"] = ("head", [head // group for head in coords["head"]])
    if "kv_head" in ds.coords:
        coords["kv_head"] = range(sizes["kv_head"])
    return xr.Dataset(joined, coords, ds.attrs)


def _gathered(values: np.ndarray, axis: int, mesh: Any, device: torch.device) -> np.ndarray:
    own = torch.from_numpy(np.ascontiguousarray(values)).to(device)
    parts = [torch.empty_like(own) for _ in range(mesh.size())]
    distributed.all_gather(parts, own, group=mesh.get_group())
    return torch.cat(parts, dim=axis).cpu().numpy()
