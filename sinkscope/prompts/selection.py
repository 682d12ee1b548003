"""Selecting tokens: one language for the ``keys=`` and ``queries=`` of every probe and edit.

A selection is a role, a list of roles, ``"all"``, ``"first"``, ``"last"``, ``"after_image"``, token positions (from the
first real token, negative from the end), or a boolean DataArray made from earlier readings.
"""

# pyright: reportUnknownMemberType=false
# (the annotations of xarray and of torch.from_numpy have gaps)

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Int

from sinkscope.arguments import MOST, is_iterable, is_whole, shown
from sinkscope.errors import SinkscopeError
from sinkscope.prompts.data import PAD, Batch
from sinkscope.roles import ROLE_INDEX, SELECTIONS, no_role_or_selection


def positions(real: Bool[torch.Tensor, "batch key"]) -> Int[torch.Tensor, "batch key"]:
    """Number the real tokens of each row 0..n-1 from the first one; -1 where there is no real token."""
    return torch.where(real, real.long().cumsum(-1) - 1, -1)


def select(selection: Any, batch: Batch, error: type[SinkscopeError], asked: str) -> Bool[torch.Tensor, "batch key"]:
    """Resolve a selection without layers or heads against a batch.

    Raises:
        error: an unknown name, a position beyond a prompt, or a value of another type; ``asked`` opens the message.
    """
    real = batch.real
    if selection is None or (isinstance(selection, str) and selection == "all"):
        return real.clone()
    if isinstance(selection, str):
        return _named(selection, batch, error, asked)
    if isinstance(selection, xr.DataArray):
        return from_array(selection, batch, None, error, asked)[:, 0]
    items: list[Any] = [selection]
    if is_iterable(selection):
        items = list(islice(cast("Iterable[Any]", selection), MOST + 1))  # a range may be without end
    if items and all(isinstance(item, str) for item in items):
        chosen = torch.zeros_like(real)
        for name in items:
            chosen |= _named(name, batch, error, asked)
        return chosen
    if len(items) <= MOST and all(map(is_whole, items)):
        return _placed([int(item) for item in items], batch, error, asked)
    raise error(
        f"{asked}: cannot select tokens by {shown(selection)}. Use a role, a list of roles or positions, one of "
        f"{list(SELECTIONS)}, or a boolean DataArray."
    )


def unpadded(roles: Sequence[np.ndarray]) -> Batch:
    """Return the tokens of all prompts, given by their roles, as far as selections need them: without model inputs."""
    lengths = torch.tensor([len(own) for own in roles])
    real = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    filled = torch.full(real.shape, PAD, dtype=torch.int8)
    for row, own in enumerate(roles):
        filled[row, : len(own)] = torch.as_tensor(own)
    return Batch({}, real, filled, tuple(range(len(real))))


def beyond(selection: Any, batch: Batch) -> Bool[torch.Tensor, " batch"]:
    """Return whether a selection holds for tokens that are generated after the prompt."""
    names: set[Any] = {selection} if isinstance(selection, str) else set()
    if isinstance(selection, tuple):
        names = set(cast("tuple[Any, ...]", selection))
    held = selection is None or bool({"all", "generated"} & names)
    if held or "after_image" not in names:
        return torch.full((len(batch.real),), held, device=batch.real.device)
    return ((batch.roles == ROLE_INDEX["image"]) & batch.real).any(-1)


def _named(name: str, batch: Batch, error: type[SinkscopeError], asked: str) -> Bool[torch.Tensor, "batch key"]:
    real, place = batch.real, positions(batch.real)
    if name == "all":
        return real.clone()
    if name == "first":
        return place == 0
    if name == "last":
        return real & (place == real.sum(-1, keepdim=True) - 1)
    if name == "after_image":
        image = (batch.roles == ROLE_INDEX["image"]) & real
        column = torch.arange(real.shape[1], device=real.device)
        end = torch.where(image, column, -1).amax(-1, keepdim=True)
        return real & (column > end) & (end >= 0)
    if name not in ROLE_INDEX or name == "pad":
        raise error(f"{asked}: {no_role_or_selection(name)}")
    return (batch.roles == ROLE_INDEX[name]) & real


def _placed(
    places: Sequence[int], batch: Batch, error: type[SinkscopeError], asked: str
) -> Bool[torch.Tensor, "batch key"]:
    place, lengths = positions(batch.real), batch.real.sum(-1)
    chosen = torch.zeros_like(batch.real)
    shortest = int(lengths.min())
    for item in places:
        if not -shortest <= item < shortest:
            raise error(
                f"{asked}: position {item} is beyond a prompt of {shortest} tokens. "
                f"Use positions from {-shortest} to {shortest - 1}, or prompts that are longer."
            )
        wanted = torch.full_like(lengths, item) if item >= 0 else lengths + item
        chosen |= place == wanted[:, None]
    return chosen


def from_array(
    array: xr.DataArray, batch: Batch, layer: int | None, error: type[SinkscopeError], asked: str
) -> Bool[torch.Tensor, "batch head key"]:
    """Resolve a boolean DataArray over (prompt, [layer], [head], key); the head axis has length 1 where it has none."""
    if array.dtype != bool:
        raise error(f"{asked}: the DataArray holds {array.dtype}, not booleans. Compare it with a threshold first.")
    needed, allowed = {"prompt", "key"}, {"prompt", "layer", "head", "key"}
    if not needed <= set(array.dims) <= allowed:
        raise error(
            f"{asked}: the DataArray has dims {tuple(array.dims)}; it needs prompt and key, and may have layer, head."
        )
    if "layer" in array.dims:
        if layer is None:
            array = array.any("layer")
        elif layer in array["layer"].values:
            array = array.sel(layer=layer)
        else:
            array = array.isel(layer=0, drop=True) & False
    if "head" in array.dims and layer is None:
        array = array.any("head")
    heads = "head" in array.dims
    array = array.transpose("prompt", *(["head"] if heads else []), "key")
    values = torch.from_numpy(np.ascontiguousarray(array.values))
    labels = prompt_labels(array)
    rows: list[torch.Tensor] = []
    for index in batch.indices:
        if index not in labels:
            raise error(f"{asked}: the DataArray holds prompts {labels[:8]}, not prompt {index}. Use the same prompts.")
        rows.append(values[labels.index(index)])
    return _spread(torch.stack(rows), heads, batch, error, asked)


def prompt_labels(array: xr.DataArray) -> list[int]:
    """Return which prompts a selection is of: its labels, or 0, 1, ... where it has none."""
    labelled = "prompt" in array.coords
    return array["prompt"].values.tolist() if labelled else list(range(array.sizes.get("prompt", 0)))


def _spread(
    values: torch.Tensor, heads: bool, batch: Batch, error: type[SinkscopeError], asked: str
) -> Bool[torch.Tensor, "batch head key"]:
    """Put selections numbered from the first real token where those tokens lie in the padded batch."""
    if not heads:
        values = values[:, None]
    place = positions(batch.real)
    longest = int(batch.real.sum(-1).max())
    if bool(values[..., longest:].any()) or values.shape[-1] < 1:
        raise error(f"{asked}: the DataArray selects positions beyond the longest prompt ({longest} tokens).")
    short = longest - values.shape[-1]
    if short > 0:
        values = torch.nn.functional.pad(values, (0, short))
    values = values.to(place.device)
    index = place.clamp(min=0)[:, None].expand(-1, values.shape[1], -1)
    return values.gather(-1, index) & batch.real[:, None]
