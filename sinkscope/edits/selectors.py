"""What an edit's fields are kept as: plain hashable values that survive JSON.

Sequences become sorted tuples without duplicates, mappings :class:`HeadMap`, boolean DataArrays :class:`Selection`
(compared by content), numeric arrays :class:`Numbers`.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from sinkscope.errors import EditError
from sinkscope.roles import ROLE_INDEX, SELECTIONS, is_selection


class HeadMap(Mapping[int, tuple[int, ...]]):
    """Heads of each layer, ``{layer: (head, ...)}``, that can be hashed."""

    def __init__(self, items: Mapping[int, Sequence[int]]) -> None:
        self._items = {int(k): tuple(sorted({int(h) for h in v})) for k, v in sorted(items.items())}

    def __getitem__(self, layer: int) -> tuple[int, ...]:
        return self._items[layer]

    def __iter__(self) -> Iterator[int]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(tuple(self._items.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HeadMap) and self._items == other._items

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{layer}: {_listed(heads)}" for layer, heads in self._items.items()) + "}"


@dataclass(frozen=True)
class Selection:
    """A boolean DataArray as a value: dims, labels and packed bits. Equal content is equal, and hashes alike."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    labels: tuple[tuple[str, tuple[int, ...]], ...]
    bits: bytes

    @classmethod
    def of(cls, array: xr.DataArray) -> Selection:
        """Keep the labels of prompt, layer and head; key and query are numbered by place."""
        labels = tuple(
            (str(dim), tuple(int(x) for x in array[dim].values))
            for dim in array.dims
            if dim in ("prompt", "layer", "head") and dim in array.coords
        )
        packed = np.packbits(np.ascontiguousarray(array.values)).tobytes()
        return cls(tuple(str(d) for d in array.dims), tuple(array.shape), labels, packed)

    def array(self) -> xr.DataArray:
        """Give the DataArray back."""
        count = math.prod(self.shape)
        bits = np.unpackbits(np.frombuffer(self.bits, np.uint8), count=count).astype(bool)
        return xr.DataArray(bits.reshape(self.shape), dims=self.dims, coords={k: list(v) for k, v in self.labels})

    @property
    def empty(self) -> bool:
        """True where nothing is selected."""
        return not any(self.bits)

    def __repr__(self) -> str:
        sizes = " x ".join(f"{dim} {size}" for dim, size in zip(self.dims, self.shape, strict=True))
        return f"<{int(self.array().values.sum())} selected of {sizes}>"


@dataclass(frozen=True)
class Numbers:
    """A float32 array as a value, compared by content."""

    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, values: Any, asked: str) -> Numbers:
        """Take an array, a tensor or nested lists of finite numbers.

        Raises:
            EditError: not numbers, or not all finite.
        """
        if isinstance(values, cls):
            return values
        values = values.detach().cpu().numpy() if hasattr(values, "detach") else values
        try:
            array = np.asarray(values, dtype=np.float32)
        except (TypeError, ValueError):
            raise EditError(f"{asked}: not an array of numbers. Give an array, a tensor or nested lists.") from None
        if not np.isfinite(array).all():
            raise EditError(f"{asked}: some numbers are NaN or infinite. Give finite numbers.")
        return cls(array.shape, np.ascontiguousarray(array).tobytes())

    def array(self) -> np.ndarray:
        """Give the array back."""
        return np.frombuffer(self.data, np.float32).reshape(self.shape).copy()

    def __repr__(self) -> str:
        return f"<numbers {' x '.join(map(str, self.shape))}>"


def layers_of(layers: Any, asked: str) -> tuple[int, ...] | None:
    """Normalise ``layers=``: None, a number, a range or list of numbers, or a boolean DataArray over ``layer``."""
    if isinstance(layers, xr.DataArray):
        if layers.dtype != bool or layers.dims != ("layer",):
            raise EditError(
                f"{asked}: a DataArray here must be boolean over (layer); this is {layers.dtype} over {layers.dims}."
            )
        labels = layers["layer"].values if "layer" in layers.coords else np.arange(layers.size)
        return tuple(int(x) for x in labels[layers.values])
    return None if layers is None else whole_numbers(layers, asked, "layers")


def heads_of(heads: Any, asked: str) -> tuple[int, ...] | HeadMap | None:
    """Normalise ``heads=``: None, numbers, a mapping ``{layer: [heads]}``, or booleans over (layer, head)."""
    if isinstance(heads, xr.DataArray):
        if heads.dtype != bool or set(heads.dims) != {"layer", "head"}:
            raise EditError(
                f"{asked}: a DataArray here must be boolean over (layer, head); this is {heads.dtype} over "
                f"{heads.dims}."
            )
        heads = heads.transpose("layer", "head")
        layer, head = (
            heads[dim].values if dim in heads.coords else np.arange(heads.sizes[dim]) for dim in ("layer", "head")
        )
        return HeadMap({int(n): [int(h) for h in head[row]] for n, row in zip(layer, heads.values, strict=True)})
    if isinstance(heads, Mapping):
        return HeadMap({k: whole_numbers(v, asked, "heads") for k, v in _layer_keys(heads, asked).items()})
    return None if heads is None else whole_numbers(heads, asked, "heads")


def _layer_keys(heads: Mapping[Any, Any], asked: str) -> dict[int, Any]:
    if not all(isinstance(k, int | np.integer) and not isinstance(k, bool) for k in heads):
        raise EditError(f"{asked}: the keys of the mapping must be layer numbers. Write heads={{3: [0, 1]}}.")
    return {int(k): v for k, v in heads.items()}


def whole_numbers(values: Any, asked: str, what: str) -> tuple[int, ...]:
    """Give whole numbers as a sorted tuple, each once.

    Raises:
        EditError: anything but whole numbers.
    """
    if isinstance(values, int | np.integer) and not isinstance(values, bool):
        return (int(values),)
    items = list(values) if isinstance(values, Sequence | np.ndarray | range | set | frozenset) else [values]
    if isinstance(values, str) or not all(isinstance(x, int | np.integer) and not isinstance(x, bool) for x in items):
        raise EditError(f"{asked}: {what} must be whole numbers. Give a number, a range or a list of numbers.")
    return tuple(sorted({int(x) for x in items}))


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
    if isinstance(selection, Sequence | range | set | frozenset) and all(isinstance(x, str) for x in selection):
        return tuple(sorted({_name(str(x), asked) for x in selection}))
    try:
        return whole_numbers(selection, asked, "positions")
    except EditError:
        raise EditError(
            f"{asked}: cannot select tokens by {selection!r:.60}. Use a role, a list of roles or positions, one of "
            f"{list(SELECTIONS)}, or a boolean DataArray."
        ) from None


def _name(name: str, asked: str) -> str:
    if not is_selection(name) or name == "pad":
        raise EditError(
            f"{asked}: there is no role or selection {name!r}. Roles are {sorted(set(ROLE_INDEX) - {'pad'})}; "
            f"selections are {list(SELECTIONS)}."
        )
    return name


def is_empty(value: Any) -> bool:
    """True for a selector that the user wrote down empty: no layer, head, position, or an array without a True."""
    if isinstance(value, Selection):
        return value.empty
    if isinstance(value, HeadMap):
        return not any(value.values())
    return isinstance(value, tuple) and len(value) == 0


def asked(edit: object, name: str) -> str:
    """Return the opening of a message: the edit's name and the field as it was given."""
    text = show(getattr(edit, name))
    return f"{type(edit).__name__}({name}={text if len(text) < 60 else text[:57] + '...'})"


def show(value: Any) -> str:
    """Write a field as a person would: one number bare, a run of numbers as a range, others as a list."""
    return _listed(value) if isinstance(value, tuple) else repr(value)


def _listed(values: tuple[Any, ...]) -> str:
    if len(values) == 1 and isinstance(values[0], int):
        return str(values[0])
    if len(values) > 3 and all(isinstance(v, int) for v in values) and values[-1] - values[0] == len(values) - 1:
        return f"range({values[-1] + 1})" if values[0] == 0 else f"range({values[0]}, {values[-1] + 1})"
    return repr(list(values))


def to_plain(value: Any) -> Any:
    """Give a field as JSON data."""
    if isinstance(value, Selection):
        labels = {dim: list(names) for dim, names in value.labels}
        bits = base64.b64encode(value.bits).decode()
        return {"selected": bits, "dims": list(value.dims), "shape": list(value.shape), "labels": labels}
    if isinstance(value, Numbers):
        return {"numbers": base64.b64encode(value.data).decode(), "shape": list(value.shape)}
    if isinstance(value, HeadMap):
        return {str(layer): list(heads) for layer, heads in value.items()}
    return list(value) if isinstance(value, tuple) else value


def from_plain(value: Any) -> Any:
    """Take a field from JSON data."""
    if isinstance(value, dict) and "selected" in value:
        labels = tuple((dim, tuple(names)) for dim, names in value["labels"].items())
        return Selection(
            tuple(value["dims"]), tuple(value["shape"]), labels, base64.b64decode(value["selected"], validate=True)
        )
    if isinstance(value, dict) and "numbers" in value:
        return Numbers(tuple(value["shape"]), base64.b64decode(value["numbers"], validate=True))
    if isinstance(value, dict):
        return HeadMap({int(layer): heads for layer, heads in value.items()})
    return tuple(value) if isinstance(value, list) else value
