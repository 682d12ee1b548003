"""Finished results of runs and sweeps on disk: a file per list of edits and batch, named by what it was made from.

A file is written to a temporary name and renamed, so it is whole or absent, and begins with the hash of what follows,
which is checked before anything of it is read: a result that is damaged is computed again. Arrays are safetensors, so
no file of a cache can run code or crash a parser. Nothing in a file depends on when, where or in which order it was
made.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
import xarray as xr

from sinkscope.edits.values import Selection
from sinkscope.errors import OutputError
from sinkscope.files import as_path, replacing
from sinkscope.models.fingerprint import behaviour, fingerprint, foreign_hooks
from sinkscope.probes.base import Probe

if TYPE_CHECKING:
    from sinkscope.models.handle import Model

FORMAT = 2
SUFFIX = ".result"
_DIGEST = hashlib.sha256().digest_size


@dataclass
class Result:
    """What one list of edits gave on one batch: arrays by variable, batch first, and what its edits did."""

    arrays: dict[str, np.ndarray]
    tallies: list[tuple[int, ...]] = field(default_factory=list)
    effect: bool = False
    paths: tuple[str, ...] = ()


unwritten: dict[str, Result] = {}
"""Results of the last call whose cache could not be written, by key: they are taken over when it is called again."""


def why_off(model: Model) -> str:
    """Return why results of ``model`` cannot be cached, empty where they can: code that no hash sees."""
    if any(tensor.is_meta for tensor in model.model.parameters()):
        return f"{model.id} has weights that are not in memory (offloaded), whose change cannot be seen"
    hooked = foreign_hooks(model.model)
    if not hooked:
        return ""
    more = f" and {len(hooked) - 1} more" if len(hooked) > 1 else ""
    return f"{model.id} has a forward hook of yours on {hooked[0]}{more}, whose effect cannot be recognised again"


def context_key(model: Model, tower: str, prompts_digest: str, probes: Sequence[Probe]) -> str:
    """Return the hash of everything that all results of a call have in common, as hex.

    The model's bytes are read anew each time: see :mod:`sinkscope.models.fingerprint`.
    """
    from sinkscope import __version__

    libraries = [version(name) for name in ("torch", "transformers", "numpy")]
    model_is = [fingerprint(model.model), behaviour(model.model), model.backend.name, model.device.type, tower]
    read = [probe_content(probe) for probe in probes]
    return _digest([FORMAT, __version__, libraries, model_is, prompts_digest, read])


def result_key(context: str, edits: str, batch: Sequence[int]) -> str:
    """Return the name of one result: hash of the context, the edits as JSON and the prompts of the batch."""
    return _digest({"context": context, "edits": edits, "batch": [int(i) for i in batch]})


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def probe_content(probe: Probe) -> dict[str, Any]:
    """Return a probe as JSON data with the whole content of DataArrays, which its description only sums up."""
    values = {f.name: getattr(probe, f.name) for f in dataclasses.fields(probe)}
    whole = {n: hashlib.sha256(repr(_content(v)).encode()).hexdigest() for n, v in values.items()}
    return probe.describe() | {"content": whole}


def _content(value: Any) -> Any:
    if isinstance(value, xr.DataArray):
        return Selection.of(value.astype(bool)).bits, value.dims, value.shape
    return tuple(value) if isinstance(value, range) else value


def prepare(folder: str | os.PathLike[str], call: str) -> Path:
    """Make the folder of a cache, if need be, and return its path; ``call`` is what was called with it.

    Raises:
        OutputError: it is a file, or cannot be made or written.
    """
    path = as_path(folder, OutputError)
    if path.exists() and not path.is_dir():
        raise OutputError(f"{call}(cache={str(folder)!r}): this is a file. Name a folder for the finished results.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{call}(cache={str(folder)!r}): the folder cannot be made ({error.strerror}). Choose another one."
        ) from None
    if not os.access(path, os.W_OK):
        raise OutputError(f"{call}(cache={str(folder)!r}): the folder cannot be written. Choose another one.")
    return path


def load(folder: Path, key: str) -> Result | None:
    """Read a result; None where there is none, or the file is damaged."""
    try:
        data = (folder / f"{key}{SUFFIX}").read_bytes()
    except OSError:
        return None
    digest, body = data[:_DIGEST], data[_DIGEST:]
    if hashlib.sha256(body).digest() != digest:
        return None
    head, _, arrays = body.partition(b"\n")
    about = json.loads(head)
    if about["key"] != key:  # a whole file under another's name
        return None
    tallies = [tuple(counts) for counts in about["tallies"]]
    return Result(safetensors.numpy.load(arrays), tallies, about["effect"], tuple(about["paths"]))


def save(folder: Path, key: str, result: Result) -> None:
    """Write a result, unless it is there whole.

    Raises:
        OSError: no room, or no leave to write.
    """
    if load(folder, key) is not None:
        return
    about = {"key": key, "tallies": result.tallies, "effect": result.effect, "paths": result.paths}
    arrays = {name: np.ascontiguousarray(array) for name, array in result.arrays.items()}
    body = json.dumps(about, sort_keys=True).encode() + b"\n" + safetensors.numpy.save(arrays)
    with replacing(folder / f"{key}{SUFFIX}") as temporary:
        temporary.write_bytes(hashlib.sha256(body).digest() + body)


def keep_unwritten(call: str, folder: Path, found: Mapping[str, Result], total: int, error: OSError) -> OutputError:
    """Keep results in memory when their folder cannot be written, and return the error that says so."""
    unwritten.clear()
    unwritten.update(found)
    return OutputError(
        f"{call}(cache={str(folder)!r}): a result cannot be written ({error.strerror or error}). {len(found)} of "
        f"{total} results are kept in memory. Make room, or name another folder, and call it again in this process: "
        "it goes on from them."
    )
