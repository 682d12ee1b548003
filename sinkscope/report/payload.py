"""The numbers of a page: arrays packed so that a browser unpacks them without a library, and they stay small."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

Kind = Literal["half", "single", "index"]
"""How exactly an array is kept: within 0.1 % (float16, its last bit rounded away), as float32, or as whole numbers."""

_LARGEST_HALF = 65_000.0
NO_INDEX = 0xFFFFFFFF
"""Stands for NaN among whole numbers."""


class Payload:
    """Arrays of a page behind one another in a block of bytes, each named by a small dict that the script reads.

    The bytes of each array lie in planes, all highest bytes first: those of neighbouring numbers are alike, so that
    gzip halves what it could not touch otherwise.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, values: np.ndarray, kind: Kind = "half") -> dict[str, Any]:
        """Append an array and return its reference: ``at`` (bytes from the start), ``type``, ``shape``.

        An array with numbers beyond float16's range is kept as float32, whatever was asked for.
        """
        given = np.asarray(values)
        finite = np.abs(given[np.isfinite(given)]) if kind == "half" else np.zeros(0)
        if finite.size and float(finite.max()) > _LARGEST_HALF:
            kind = "single"
        if kind == "index":
            flat = np.where(np.isfinite(given), given, NO_INDEX).astype(">u4")
        else:
            flat = _rounded(given).astype(">u2") if kind == "half" else given.astype(">f4")
        width = flat.dtype.itemsize
        planes = np.frombuffer(flat.tobytes(), np.uint8).reshape(-1, width).T
        reference = {"at": self._size, "type": kind, "shape": list(flat.shape)}
        self._parts.append(planes.tobytes())
        self._size += planes.size
        return reference

    def pack(self, header: Mapping[str, Any]) -> str:
        """Return everything as text for a page: base64 of gzip of (length of the header, header as JSON, arrays)."""
        head = json.dumps(header, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8", "replace")
        content = b"".join([len(head).to_bytes(4, "little"), head, *self._parts])
        return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode("ascii")


def _rounded(values: np.ndarray) -> np.ndarray:
    """Bits of float16, rounded to one bit less: that bit is noise, and noise cannot be compressed."""
    fraction, exponent = np.frexp(values.astype(np.float32))
    return np.ldexp(np.round(fraction * 1024) / 1024, exponent).astype(np.float16).view(np.uint16)


def unpack(text: str) -> tuple[dict[str, Any], bytes]:
    """Return the header and the bytes of the arrays of what ``pack`` made."""
    content = gzip.decompress(base64.b64decode(text))
    length = int.from_bytes(content[:4], "little")
    return json.loads(content[4 : 4 + length]), content[4 + length :]


def array_of(reference: Mapping[str, Any], content: bytes) -> np.ndarray:
    """Return one array of an unpacked page."""
    dtype = {"half": ">f2", "single": ">f4", "index": ">u4"}[reference["type"]]
    width, count = np.dtype(dtype).itemsize, int(np.prod(reference["shape"], dtype=int))
    planes = np.frombuffer(content, np.uint8, count * width, reference["at"]).reshape(width, -1)
    flat = np.frombuffer(np.ascontiguousarray(planes.T).tobytes(), dtype).reshape(reference["shape"])
    if reference["type"] != "index":
        return flat.astype(np.float32)
    return np.where(flat == NO_INDEX, np.nan, flat.astype(np.float64))
