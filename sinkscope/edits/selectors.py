"""Selectors of layers, heads and tokens as the user writes them, brought into the form that an edit keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, cast

import numpy as np
import xarray as xr

from sinkscope import arguments
from sinkscope.arguments import MOST, is_iterable, is_whole
from sinkscope.edits.values import HeadMap, Selection, labelled
from sinkscope.errors import EditError
from sinkscope.roles import SELECTIONS, is_selection, no_role_or_selection


def layers_of(layers: Any, asked: str) -> tuple[int, ...] | None:
    """Normalise ``layers=``: None, a number, a range or list of numbers, or a boolean DataArray over ``layer``."""
    if isinstance(layers, xr.DataArray):
        if layers.dtype != bool or layers.dims != ("layer",):
            raise EditError(
                f"{asked}: a DataArray here must be boolean over (layer); this is {layers.dtype} over {layers.dims}."
            )
        return tuple(
            label for label, chosen in zip(_labels(layers, "layer", asked), layers.values, strict=True) if chosen
        )
    return None if layers is None else whole_numbers(layers, asked, "layers")


def heads_of(heads: Any, asked: str) -> tuple[int, ...] | HeadMap | None:
    """Normalise ``heads=``: None, numbers, pairs (layer, head), ``{layer: [heads]}``, booleans over (layer, head)."""
    if isinstance(heads, xr.DataArray):
        if heads.dtype != bool or set(heads.dims) != {"layer", "head"}:
            raise EditError(
                f"{asked}: a DataArray here must be boolean over (layer, head); this is {heads.dtype} over "
                f"{heads.dims}."
            )
        heads = heads.transpose("layer", "head")
        names = _labels(heads, "head", asked)
        chosen = {
            layer: [name for name, held in zip(names, row, strict=True) if held]
            for layer, row in zip(_labels(heads, "layer", asked), heads.values, strict=True)
        }
        return HeadMap(chosen)
    if isinstance(heads, Mapping):
        items = cast("Mapping[Any, Any]", heads)
        return HeadMap({k: whole_numbers(v, asked, "heads") for k, v in _layer_keys(items, asked).items()})
    if heads is None:
        return None
    several: list[Any] = list(islice(cast("Sequence[Any]", heads), MOST + 1)) if is_iterable(heads) else [heads]
    if several and all(map(_is_pair, several)):
        pairs = [(int(layer), int(head)) for layer, head in several]
        return HeadMap({layer: [head for at, head in pairs if at == layer] for layer, _ in pairs})
    return whole_numbers(several, asked, "heads")


def _is_pair(value: Any) -> bool:
    """Say whether a value is (layer, head), as ``truth.heads`` and the rows of ``np.argwhere`` are."""
    return is_iterable(value) and not isinstance(value, Mapping) and len(value) == 2 and all(map(is_whole, value))


def _labels(array: xr.DataArray, dim: str, asked: str) -> list[int]:
    """Labels of a dimension; its places where it has none."""
    if labelled(array, dim):
        labels = arguments.whole_numbers(array[dim].values)
        if labels is None:
            raise EditError(f"{asked}: the labels of {dim} are not whole numbers. Number them, or leave them out.")
        return labels
    return list(range(array.sizes[dim]))


def _layer_keys(heads: Mapping[Any, Any], asked: str) -> dict[int, Any]:
    if not all(isinstance(k, int | np.integer) and not isinstance(k, bool) for k in heads):
        raise EditError(f"{asked}: the keys of the mapping must be layer numbers. Write heads={{3: [0, 1]}}.")
    return {int(k): v for k, v in heads.items()}


def whole_numbers(values: Any, asked: str, what: str) -> tuple[int, ...]:
    """Return whole numbers as a sorted tuple, each once.

    Raises:
        EditError: anything but whole numbers.
    """
    found = arguments.whole_numbers(values)
    if found is None:
        also = ", pairs (layer, head), or a mapping {layer: [heads]}" if what == "heads" else ""
        raise EditError(f"{asked}: {what} must be whole numbers. Give a number, a range or a list of numbers{also}.")
    return tuple(sorted(set(found)))


def tokens_of(selection: Any, asked: str) -> str | tuple[Any, ...] | Selection:
    """Normalise ``keys=`` or ``queries=``: a role or named selection, several roles, positions, a boolean DataArray.

    Raises:
        EditError: an unknown name, or a value of another type.
    """
    if isinstance(selection, Selection):
        return selection
    if isinstance(selection, xr.DataArray):
        if selection.dtype != bool:
            raise EditError(
                f"{asked}: the DataArray holds {selection.dtype}, not booleans. Compare it with a threshold first."
            )
        return Selection.of(selection.rename(query="key") if "query" in selection.dims else selection)
    if isinstance(selection, str):
        return _name(selection, asked)
    if isinstance(selection, Sequence | set | frozenset):
        names = cast("Sequence[Any]", selection)
        if all(isinstance(x, str) for x in names):
            return tuple(sorted({_name(str(x), asked) for x in names}))
    try:
        return whole_numbers(selection, asked, "positions")
    except EditError:
        raise EditError(
            f"{asked}: cannot select tokens by {selection!r:.60}. Use a role, a list of roles or positions, one of "
            f"{list(SELECTIONS)}, or a boolean DataArray."
        ) from None


def _name(name: str, asked: str) -> str:
    if not is_selection(name) or name == "pad":
        raise EditError(f"{asked}: {no_role_or_selection(name)}")
    return name
