"""What an edit's fields are kept as: plain hashable values that survive JSON, and how they show.

Sequences become sorted tuples without duplicates, mappings :class:`HeadMap`, boolean DataArrays :class:`Selection`
(compared by content), numeric arrays :class:`Numbers`.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import xarray as xr

from sinkscope.arguments import RAW
from sinkscope.errors import EditError


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
            if dim in ("prompt", "layer", "head") and labelled(array, dim)
        )
        packed = np.packbits(np.ascontiguousarray(array.values)).tobytes()
        return cls(tuple(str(d) for d in array.dims), tuple(array.shape), labels, packed)

    def array(self) -> xr.DataArray:
        """Return the DataArray back."""
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
        try:
            if hasattr(values, "detach"):  # numpy has no bfloat16
                values = values.detach().cpu().float().numpy()
            array = np.asarray(values)
            if array.dtype.kind not in "iuf":  # texts and truth values would become numbers
                raise TypeError
            with np.errstate(over="ignore"):
                array = array.astype(np.float32)
        except (*RAW, MemoryError):  # a range without end
            raise EditError(f"{asked}: not an array of numbers. Give an array, a tensor or nested lists.") from None
        if not np.isfinite(array).all():
            raise EditError(f"{asked}: some numbers are NaN or infinite. Give finite numbers.")
        return cls(array.shape, np.ascontiguousarray(array).tobytes())

    def array(self) -> np.ndarray:
        """Return the array back."""
        return np.frombuffer(self.data, np.float32).reshape(self.shape).copy()

    def __repr__(self) -> str:
        return f"<numbers {' x '.join(map(str, self.shape))}>"


def labelled(array: Any, dim: object) -> bool:
    """Return whether a DataArray has labels along ``dim``."""
    return dim in array.coords


def is_empty(value: Any) -> bool:
    """True for a selector that the user wrote down empty: no layer, head, position, or an array without a True."""
    if isinstance(value, Selection):
        return value.empty
    if isinstance(value, HeadMap):
        return not any(value.values())
    return value == ()


def asked(edit: object, name: str) -> str:
    """Return the opening of a message: the edit's name and the field as it was given."""
    text = show(getattr(edit, name))
    return f"{type(edit).__name__}({name}={text if len(text) < 60 else text[:57] + '...'})"


def show(value: Any) -> str:
    """Write a field as a person would: one number bare, a run of numbers as a range, others as a list."""
    return _listed(cast("tuple[Any, ...]", value)) if isinstance(value, tuple) else repr(value)


def _listed(values: tuple[Any, ...]) -> str:
    if len(values) == 1 and isinstance(values[0], int):
        return str(values[0])
    if len(values) > 3 and all(isinstance(v, int) for v in values) and values[-1] - values[0] == len(values) - 1:
        return f"range({values[-1] + 1})" if values[0] == 0 else f"range({values[0]}, {values[-1] + 1})"
    return repr(list(values))


def to_plain(value: Any) -> Any:
    """Return a field as JSON data."""
    if isinstance(value, Selection):
        labels = {dim: list(names) for dim, names in value.labels}
        bits = base64.b64encode(value.bits).decode()
        return {"selected": bits, "dims": list(value.dims), "shape": list(value.shape), "labels": labels}
    if isinstance(value, Numbers):
        return {"numbers": base64.b64encode(value.data).decode(), "shape": list(value.shape)}
    if isinstance(value, HeadMap):
        return {str(layer): list(heads) for layer, heads in value.items()}
    return list(cast("tuple[Any, ...]", value)) if isinstance(value, tuple) else value


def from_plain(value: Any) -> Any:
    """Take a field from JSON data."""
    if isinstance(value, list):
        return tuple(cast("list[Any]", value))
    if not isinstance(value, dict):
        return value
    data = cast("dict[str, Any]", value)
    if "selected" in data:
        labels = tuple((str(dim), tuple(int(n) for n in names)) for dim, names in data["labels"].items())
        bits = base64.b64decode(data["selected"], validate=True)
        return Selection(tuple(data["dims"]), tuple(data["shape"]), labels, bits)
    if "numbers" in data:
        return Numbers(tuple(data["shape"]), base64.b64decode(data["numbers"], validate=True))
    return HeadMap({int(layer): heads for layer, heads in data.items()})
