"""The MLP that makes secondary sinks: where the likeness arises inside it, and what its size does (Wong et al. 2025).

:func:`makers` reads, :func:`steer` changes; both take what :func:`sinkscope.methods.secondary_sinks.detect` found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from sinkscope.definitions import define
from sinkscope.engine.run import find_tower
from sinkscope.errors import MetricError, UnsupportedModelError
from sinkscope.methods.residual import residual_stream
from sinkscope.methods.secondary_sinks import SecondarySinkSettings, detect_one, neighbours, score_of

if TYPE_CHECKING:
    from sinkscope.models.handle import Model
    from sinkscope.prompts import Prompts

MLP_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
"""Children of a block that hold its MLP, tried in this order."""
COSINE = define("secondary_sinks", "wong2025").default("cosine")


def mlp_of(model: Model, layer: int) -> torch.nn.Module:
    """Return the MLP of a block.

    Raises:
        UnsupportedModelError: the block has no MLP of a known name, or normalises behind it.
    """
    tower = find_tower(model, None)
    mids = [each for each in tower.residual if each.name == f"{layer}.mid"]
    network = model.backend.bridge.original_model if hasattr(model.backend, "bridge") else model.model
    sites = tower.sites_of(layer)
    path = sites[0].path.rpartition(".")[0] if sites else tower.blocks[layer].path
    while path and mids and not mids[0].post_norm:
        block = network.get_submodule(path)
        for name in MLP_NAMES:
            if isinstance(getattr(block, name, None), torch.nn.Module):
                return getattr(block, name)
        path = path.rpartition(".")[0]
    raise UnsupportedModelError(
        f"secondary sinks: the MLP of layer {layer} of {model.id} was not found as {list(MLP_NAMES)} of a block that "
        "adds it to the residual stream. Detection works; the MLP cannot be read or changed."
    )


def makers(model: Model, prompts: Prompts, found: xr.Dataset) -> xr.Dataset:
    """Return which sublayer made each secondary sink, and where inside its MLP the likeness to the primary sink arises.

    One row per secondary sink (dim ``sink``, with ``prompt``, ``key``, ``start``, ``lifetime``). ``write_cosine`` and
    ``write_norm`` (part: ``attention``, ``mlp``): what the sublayer of layer ``start`` writes at the token, against the
    primary sink's state there; ``stage_cosine`` (stage, ``who``): cosine between the token and the primary sink, each
    at the layer that made it, of the MLP's ``input``, of the output of each of its projections, of what its last
    projection reads (``hidden``) and of its ``output``; ``who`` is ``sink`` or ``neighbour``, the nearest tokens that
    are no sinks, in the same layer (the control).

    Raises:
        MetricError: there is no secondary sink.
        UnsupportedModelError: the MLP cannot be read.
    """
    at = np.argwhere(found["kind"].values == "secondary")
    if not len(at):
        raise MetricError("makers: no secondary sink was found. Look at levels(found), or use longer prompts.")
    rows = []
    for index in np.unique(at[:, 0]).tolist():
        keys = at[at[:, 0] == index, 1].tolist()
        rows += _made(model, prompts, index, keys, found.isel(prompt=index))
    stages = list(rows[0]["stage"])
    data = {name: ("sink", [row[name] for row in rows]) for name in ("prompt", "key", "start", "lifetime")}
    result = xr.Dataset(coords=data | {"part": ["attention", "mlp"], "stage": stages, "who": ["sink", "neighbour"]})
    for name in ("write_cosine", "write_norm"):
        result[name] = (("sink", "part"), np.array([row[name] for row in rows]))
    result["stage_cosine"] = (("sink", "stage", "who"), np.array([list(row["stage"].values()) for row in rows]))
    result.attrs = dict(found.attrs) | {"n": len(rows)}
    return result


def _made(model: Model, prompts: Prompts, index: int, keys: list[int], one: xr.Dataset) -> list[dict[str, Any]]:
    layers = one["layer"].values
    primary = int(one["primary"])
    starts, births = ({key: int(one[name][key]) for key in keys} for name in ("start", "born"))
    needed = {layer: int(layers[layer]) for layer in {*births.values(), *starts.values()}}
    with model.exclusive(), ExitStack() as stack:
        inside = {i: stack.enter_context(stages(mlp_of(model, layer))) for i, layer in needed.items()}
        at = residual_stream(model, prompts, index)
    lives = one["lifetime"].values > 0
    rows = []
    for key in keys:
        start = starts[key]
        name = int(layers[start])
        before = at["embed"] if start == 0 else at[f"{int(layers[start - 1])}.post"]
        writes = [at[f"{name}.mid"] - before, at[f"{name}.post"] - at[f"{name}.mid"]]
        direction = at[f"{name}.post"][primary]
        beside = neighbours(lives[: len(at["embed"])], key)
        stage = {
            which: (cosine(value[key], inside[births[key]][which][primary]),
                    float(np.mean([cosine(value[k], inside[births[key]][which][primary]) for k in beside] or [np.nan])))
            for which, value in inside[start].items()
        }  # fmt: skip
        rows.append({
            "prompt": int(one["prompt"]), "key": key, "start": start, "lifetime": int(one["lifetime"][key]),
            "write_cosine": [cosine(write[key], direction) for write in writes],
            "write_norm": [float(np.linalg.norm(write[key])) for write in writes], "stage": stage,
        })  # fmt: skip
    return rows


def cosine(a: Float[np.ndarray, " dim"], b: Float[np.ndarray, " dim"]) -> float:
    """Cosine of two vectors; NaN where one is zero."""
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.dot(a, b) / size) if size > 0 else float("nan")


@contextmanager
def stages(mlp: torch.nn.Module) -> Iterator[dict[str, np.ndarray]]:
    """Record, while open, what goes through an MLP of one prompt: input, each projection, hidden, output."""
    found: dict[str, np.ndarray] = {}
    inner = [(name, module) for name, module in mlp.named_modules() if getattr(module, "weight", None) is not None]
    linear = [(name, module) for name, module in inner if module.weight.ndim == 2]

    def put(name: str, tensor: Any) -> None:
        found[name] = tensor.detach().reshape(-1, tensor.shape[-1]).float().cpu().numpy().copy()

    handles = [mlp.register_forward_pre_hook(lambda _m, args: put("input", args[0]))]
    for name, module in linear[:-1]:
        handles.append(module.register_forward_hook(lambda _m, _a, out, name=name: put(name, out)))
    for _, module in linear[-1:]:
        handles.append(module.register_forward_pre_hook(lambda _m, args: put("hidden", args[0])))
    handles.append(mlp.register_forward_hook(lambda _m, _a, out: put("output", out)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def scaled_writes(
    model: Model,
    layer: int,
    keys: Sequence[int],
    direction: Float[np.ndarray, " d_model"],
    factor: float = 0.0,
    *,
    rest: bool = False,
) -> Iterator[None]:
    """While open, the MLP of ``layer`` writes at ``keys`` its component along ``direction`` times ``factor``.

    For passes over one prompt without padding in front. 0 removes the component; other factors steer its size.
    ``rest=True`` scales everything but that component instead.

    Raises:
        UnsupportedModelError: the MLP cannot be changed.
    """
    unit = torch.as_tensor(direction / np.linalg.norm(direction), device=model.device, dtype=model.dtype)

    def change(_module: torch.nn.Module, _args: Any, out: torch.Tensor) -> torch.Tensor:
        new = out.clone()
        part = out[:, list(keys)]
        along = (part @ unit)[..., None] * unit
        new[:, list(keys)] = along + factor * (part - along) if rest else part + (factor - 1.0) * along
        return new

    with model.exclusive():
        handle = mlp_of(model, layer).register_forward_hook(change)
        try:
            yield
        finally:
            handle.remove()


def steer(model: Model, prompts: Prompts, found: xr.Dataset, factor: float = 0.0, *, rest: bool = False) -> xr.Dataset:
    """Scale what the making MLPs write along the primary direction at the secondary sinks, and look again.

    ``rest=True`` is the control: everything else that these MLPs write at these tokens is scaled. Returns one row per
    secondary sink of ``found`` (dim ``sink``): ``kept`` (share of the layers of its former life in which its state
    still lies along the primary sink's), ``lifetime`` by the rule, ``score`` over the layers that read it before; and
    ``lifetime_before``, ``score_before``.

    Raises:
        MetricError: there is no secondary sink.
        UnsupportedModelError: the MLP cannot be changed.
    """
    settings = SecondarySinkSettings(
        str(found.attrs["definition"]), int(found.attrs["candidates"]), float(found.attrs["min_norm"])
    )
    rows = []
    for index in range(len(prompts)):
        one = found.isel(prompt=index)
        keys = np.flatnonzero(one["kind"].values == "secondary").tolist()
        if keys:
            rows += _steered(model, prompts, index, (one, keys, settings), (factor, rest))
    if not rows:
        raise MetricError("steer: no secondary sink was found. Look at levels(found), or use longer prompts.")
    names = ("prompt", "key", "kept", "lifetime", "score", "lifetime_before", "score_before")
    table = dict(zip(names, zip(*rows, strict=True), strict=True))
    result = xr.Dataset({name: ("sink", np.array(column)) for name, column in table.items()})
    result.attrs = dict(found.attrs) | {"factor": factor, "rest": int(rest), "n": len(rows)}
    return result


def _steered(
    model: Model,
    prompts: Prompts,
    index: int,
    before: tuple[xr.Dataset, list[int], SecondarySinkSettings],
    change: tuple[float, bool],
) -> list[tuple[float, ...]]:
    one, keys, settings = before
    at = residual_stream(model, prompts, index)
    with model.exclusive(), ExitStack() as stack:
        for start in sorted({int(one["start"][key]) for key in keys}):
            layer = int(one["layer"][start])
            mine = [key for key in keys if int(one["start"][key]) == start]
            direction = at[f"{layer}.post"][int(one["primary"])]
            stack.enter_context(scaled_writes(model, layer, mine, direction, change[0], rest=change[1]))
        now = detect_one(model, prompts, index, settings)
    lives, mass = now["lifetime"].values > 0, now["mass"].values
    rows = []
    for key in keys:
        start, life = int(one["start"][key]), int(one["lifetime"][key])
        kept = float((np.abs(now["cosine"].values[start : start + life, key]) > COSINE).mean())
        score, _ = score_of(mass, key, start, life, lives)
        rows.append((index, key, kept, int(now["lifetime"][key]), score, life, float(one["score"][key])))
    return rows
