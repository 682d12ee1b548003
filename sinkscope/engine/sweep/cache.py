"""Finished results of a sweep on disk: a netCDF per variant and batch, named by the hash of what it was made from.

A result is written to a temporary name and renamed, so a file is whole or absent; one that cannot be read is computed
again. Nothing in a file depends on when, where or in which order it was made.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from sinkscope.edits.selectors import Selection
from sinkscope.engine.sweep.runner import Result
from sinkscope.engine.sweep.variants import Variant
from sinkscope.errors import OutputError
from sinkscope.files import replacing
from sinkscope.probes.base import Probe

FORMAT = 1


def context_key(model: Any, tower: str, prompts_digest: str, probes: Sequence[Probe]) -> str:
    """Return the hash of everything that all results of a sweep have in common, as hex."""
    from sinkscope import __version__

    libraries = [version(name) for name in ("torch", "transformers")]
    model_is = [model.fingerprint, model.backend.name, model.device.type, tower]
    read = [_probe(probe) for probe in probes]
    return _digest([FORMAT, __version__, libraries, model_is, prompts_digest, read])


def result_key(context: str, variant: Variant, batch: Sequence[int]) -> str:
    """Return the name of one result: hash of the context, the variant's edits and the prompts of the batch."""
    return _digest({"context": context, "edits": variant.json, "batch": [int(i) for i in batch]})


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _probe(probe: Probe) -> dict[str, Any]:
    """A probe as JSON data with the whole content of DataArrays, which its description only sums up."""
    values = {f.name: getattr(probe, f.name) for f in dataclasses.fields(probe)}
    whole = {n: hashlib.sha256(repr(_content(v)).encode()).hexdigest() for n, v in values.items()}
    return probe.describe() | {"content": whole}


def _content(value: Any) -> Any:
    if isinstance(value, xr.DataArray):
        return Selection.of(value.astype(bool)).bits, value.dims, value.shape
    return tuple(value) if isinstance(value, range) else value


def prepare(folder: str | os.PathLike[str]) -> Path:
    """Make the folder of a cache, if need be, and return its path.

    Raises:
        OutputError: it is a file, or cannot be made or written.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise OutputError(f"sweep(cache={str(folder)!r}): this is a file. Name a folder for the finished results.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"sweep(cache={str(folder)!r}): the folder cannot be made ({error.strerror}). Choose another one."
        ) from None
    if not os.access(path, os.W_OK):
        raise OutputError(f"sweep(cache={str(folder)!r}): the folder cannot be written. Choose another one.")
    return path


def load(folder: Path, key: str) -> Result | None:
    """Read a result; None where there is none, or the file is damaged."""
    path = folder / f"{key}.nc"
    if not path.is_file():
        return None
    try:
        with xr.open_dataset(path, engine="h5netcdf") as ds:
            data = json.loads(ds.attrs["part"])
            if data["key"] != key:
                return None
            arrays = {str(name): array.values for name, array in ds.load().data_vars.items()}
    except (OSError, ValueError, KeyError):
        return None
    return Result(arrays, [tuple(t) for t in data["tallies"]], data["seen"], tuple(data["paths"]))


def save(folder: Path, key: str, result: Result) -> None:
    """Write a result, unless it is there."""
    target = folder / f"{key}.nc"
    if target.exists() and load(folder, key) is not None:
        return
    data = {"key": key, "tallies": result.tallies, "seen": result.effect, "paths": result.paths}
    ds = xr.Dataset(
        {
            name: ([f"{name}_{axis}" for axis in range(array.ndim)], np.ascontiguousarray(array))
            for name, array in sorted(result.arrays.items())
        },
        attrs={"part": json.dumps(data, sort_keys=True)},
    )
    with replacing(target) as temporary:
        ds.to_netcdf(temporary, engine="h5netcdf")
