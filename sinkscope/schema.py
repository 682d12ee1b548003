"""Readings: what a run returns, which names it may use, and how it is kept on disk.

A reading is a plain ``xarray.Dataset``. This module is the single list of dimensions and attributes; the variables are
declared by the probes that make them, and every reading carries what its own were declared as. ``run`` validates before
it returns, ``open`` on load. No torch here, so a reading can be checked, drawn and tabulated where there is no model.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# (pandas ships no annotations, those of xarray have gaps)

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sinkscope.arguments import is_iterable
from sinkscope.errors import OutputError, SchemaError, did_you_mean, public_names
from sinkscope.files import as_path, write
from sinkscope.roles import ROLES

if TYPE_CHECKING:  # they take half a second, which the command line's help should not wait for
    import pandas as pd
    import xarray as xr

SCHEMA_VERSION = 2

_SEAL = b"\nsinkscope sha256 "
_SEAL_LENGTH = len(_SEAL) + 64 + 1


@dataclass(frozen=True)
class Variable:
    """One variable of a reading: its dims in order, units and meaning.

    ``discrete`` marks indices and labels, which can be counted and not averaged; ``reference`` names its papers.
    """

    dims: tuple[str, ...]
    units: str
    meaning: str
    discrete: bool = False
    reference: str = ""


DIMS: tuple[str, ...] = (
    "edit", "prompt", "layer", "head", "kv_head", "site", "query", "key", "role", "group", "rank", "position", "vocab",
)  # fmt: skip
"""Dimension names, outermost first. A grid of edits may add dims of its own in front."""

REQUIRED_ATTRS: tuple[str, ...] = (
    "sinkscope_version", "schema_version", "model_id", "model_fingerprint", "dtype", "backend", "path", "edits",
    "probes", "variables", "definitions", "prompts_hash", "key0", "versions", "created", "seed",
)  # fmt: skip
"""Attributes that every reading carries. Structured ones are JSON strings: netCDF takes no dict, None or bool."""


def validate(ds: xr.Dataset, extra_dims: Sequence[str] = ()) -> xr.Dataset:
    """Check that ``ds`` is a valid reading and return it.

    Raises:
        SchemaError: a variable has other dims than its definition, a required attribute or coordinate is missing, a
            label repeats, or a role is unknown.
    """
    require_dataset(ds)
    _check_version(ds.attrs.get("schema_version", SCHEMA_VERSION))
    missing = [name for name in REQUIRED_ATTRS if name not in ds.attrs]
    if missing:
        raise SchemaError(
            f"not a sinkscope reading: attributes {missing} are missing. Use a dataset made by sinkscope.run or "
            "sinkscope.sweep, or read one with sinkscope.open."
        )
    if ds.sizes.get("prompt", 1) == 0:
        raise SchemaError("this reading has no prompts: nothing is left of it. Select at least one prompt.")
    declared = variables(ds)
    for name, array in ds.data_vars.items():
        if str(name) in declared:
            _check_variable(str(name), array, declared[str(name)], set(extra_dims) | {"edit"})
    _check_coordinates(ds)
    return ds


def require_dataset(ds: object) -> None:
    """Refuse what is no Dataset.

    Raises:
        SchemaError: says what was given.
    """
    if not hasattr(ds, "data_vars"):
        raise SchemaError(f"expected a reading, got {_described(ds)}. Pass the Dataset that sinkscope.run returns.")


def _check_version(found: Any) -> None:
    """Refuse readings whose variables this version might take for something else."""
    if not isinstance(found, Integral):
        raise SchemaError(f"the attribute schema_version is {found!r}, not a number. Was this reading made by hand?")
    if found != SCHEMA_VERSION:
        todo = "Measure again: nothing converts it" if found < SCHEMA_VERSION else "Install that version to open it"
        raise SchemaError(
            f"this reading has schema version {found}, of {'an older' if found < SCHEMA_VERSION else 'a newer'} "
            f"sinkscope; this one reads version {SCHEMA_VERSION}. {todo}."
        )


def _described(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def variables(ds: xr.Dataset) -> dict[str, Variable]:
    """Return what the variables of a reading were declared as by the probes that made them.

    Raises:
        SchemaError: the attribute that says so is damaged.
    """
    try:
        found: dict[str, dict[str, Any]] = json.loads(ds.attrs.get("variables", "{}"))
        return {name: Variable(tuple(given.pop("dims")), **given) for name, given in found.items()}
    except (TypeError, ValueError, KeyError, AttributeError):
        raise SchemaError("the attribute 'variables' is damaged. Use the file as sinkscope.save wrote it.") from None


def declare(declared: Mapping[str, Variable]) -> str:
    """Return declarations as the text that a reading carries in its attribute ``variables``."""
    return json.dumps({name: asdict(variable) for name, variable in declared.items()})


def _check_variable(name: str, array: xr.DataArray, known: Variable, leading: set[str]) -> None:
    dims = tuple(d for d in array.dims if d in known.dims)
    added = [str(d) for d in array.dims if d not in known.dims]
    # A grid of edits over layers and heads puts these dims in front of a variable that has none of its own.
    in_front = list(map(str, array.dims[: len(added)])) == added
    if dims != known.dims or (any(d in DIMS and d not in leading for d in added) and not (in_front and added)):
        raise SchemaError(f"{name}: dims are {tuple(array.dims)}, expected {known.dims} (an edit dimension may lead).")


def _check_coordinates(ds: xr.Dataset) -> None:
    for dim in ("prompt", "layer", "head", "site", "role"):
        if dim in ds.dims:
            if dim not in ds.coords:
                raise SchemaError(f"dimension {dim!r} has no labels; every reading labels it.")
            labels = ds[dim].values
            if len(set(labels.tolist())) != len(labels):
                raise SchemaError(f"dimension {dim!r} has repeated labels: {labels.tolist()}.")
    if "role" in ds.dims:
        unknown = sorted(set(ds["role"].values.tolist()) - set(ROLES))
        if unknown:
            raise SchemaError(f"unknown roles {unknown}; roles are {list(ROLES)}.")
    if "key" in ds.dims and "token_role" not in ds.coords:
        raise SchemaError("coordinate token_role(prompt, key) is missing; every reading with a key dimension has it.")


def save(ds: xr.Dataset, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write a reading as netCDF, through a temporary file in the same folder, so a killed run leaves no half file.

    A line with the hash of the content stands behind it, which ``open`` checks; programs that read netCDF or HDF5 look
    no further than the content.

    Raises:
        OutputError: the folder does not exist, cannot be written, has no room, or the file exists and ``overwrite`` is
            false.
        SchemaError: ``ds`` is not a valid reading, or has an attribute that netCDF cannot hold.
    """
    validate(ds)
    target = check_output(path, overwrite=overwrite)
    try:
        content = bytes(ds.to_netcdf(engine="h5netcdf"))
    except (TypeError, ValueError) as error:  # half a character among them
        raise SchemaError(
            f"{target}: the reading holds what netCDF does not ({error}). Attributes are texts, numbers and arrays of "
            "them; write others as JSON."
        ) from error
    return write(target, content + _seal(content))


def _seal(content: bytes) -> bytes:
    return _SEAL + hashlib.sha256(content).hexdigest().encode() + b"\n"


def refuse_nothing(ds: xr.Dataset, name: str) -> None:
    """Refuse a reading of which a selection has left nothing.

    Raises:
        SchemaError: it has no prompt, layer, head, token or site.
    """
    empty = [str(dim) for dim in ("prompt", "layer", "head", "key", "query", "site") if ds.sizes.get(dim) == 0]
    if empty:
        raise SchemaError(f"{name}: this reading has no {empty[0]}: nothing is left of it. Select at least one.")


def check_output(path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Refuse an output path that cannot be written, before any work is done for it."""
    target = as_path(path, OutputError)
    if target.is_dir():
        raise OutputError(f"{target}: this is a folder. Name a file in it.")
    if not target.parent.is_dir():
        raise OutputError(f"{target}: the folder {target.parent} does not exist. Make it first.")
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"{target}: the folder {target.parent} cannot be written. Choose another one.")
    if target.is_symlink() or (target.exists() and not target.is_file()):
        what = f"a link to {os.readlink(target)}" if target.is_symlink() else "a device or a pipe, not a file"
        raise OutputError(f"{target}: this is {what}, which is never replaced. Name a file.")
    if target.exists() and not overwrite:
        raise OutputError(f"{target}: the file exists. Pass overwrite=True (--overwrite) to replace it.")
    return target


def open(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read a reading from disk into memory and validate it.

    Raises:
        SchemaError: the file is absent, is damaged, is not netCDF, or is not a sinkscope reading.
    """
    source = as_path(path, SchemaError)
    if source.exists() and not source.is_file():
        raise SchemaError(f"{source}: this is a {'folder' if source.is_dir() else 'device or a pipe'}. Name a file.")
    if not source.is_file():
        raise SchemaError(f"{source}: no such file. Readings are written by sinkscope.save or `sinkscope run`.")
    import xarray as xr

    try:
        content = source.read_bytes()
    except OSError as error:
        raise SchemaError(f"{source}: the file cannot be read ({error.strerror}). Ask who owns it.") from None
    end = len(content) - _SEAL_LENGTH
    if content[max(end, 0) :].startswith(_SEAL):  # readings of other programs, and of version 1.0, have none
        content, seal = content[:end], content[end:]
        if seal != _seal(content):
            raise SchemaError(f"{source}: the file is damaged: its content is not what was written. Copy it again.")
    try:
        with xr.open_dataset(io.BytesIO(content), engine="h5netcdf") as ds:
            loaded = ds.load()
    except Exception as error:  # of a damaged file, HDF5 and what reads it raise anything
        raise SchemaError(f"{source}: not a readable netCDF file ({error}). Was the copy cut short?") from None
    return validate(loaded)


def concat(readings: Sequence[xr.Dataset], dim: str = "prompt") -> xr.Dataset:
    """Join readings of one model along ``dim``; shorter ones are padded with NaN, labels are made unique.

    Other dims than ``prompt`` must be there and have labels, and the prompts be the same.

    Raises:
        SchemaError: nothing to join, or the readings come from different models, hold other variables, or were made in
            different ways: under other edits, in another dtype or tower. One attribute cannot speak for both.
    """
    given: Any = readings
    if isinstance(given, Mapping) or not is_iterable(given):
        raise SchemaError(f"concat: expected a list of readings, got {_described(readings)}. Wrap it in a list.")
    readings = list(readings)
    if not readings:
        raise SchemaError("concat: no readings given. Pass at least one.")
    for ds in readings:
        require_dataset(ds)
    if not isinstance(cast("object", dim), str):
        raise SchemaError(f"concat(dim={dim!r}): name a dimension, such as 'prompt'.")
    prints = {ds.attrs.get("model_fingerprint") for ds in readings}
    if len(prints) > 1:
        raise SchemaError(f"concat: readings of {len(prints)} different models. Join readings of one model only.")
    # One attribute speaks for all parts, along whatever dim they are joined.
    for name in ("edits", "dtype", "tower", "backend", *(() if dim == "prompt" else ("prompts_hash",))):
        found = list(dict.fromkeys(str(ds.attrs.get(name, "")) for ds in readings))
        if len(found) > 1:
            raise SchemaError(
                f"concat: the readings differ in {name}: {' and '.join(repr(text[:60]) for text in found[:2])}. Join "
                "those made in one way; for runs under several edits use sinkscope.sweep, which has a dim for them."
            )
    held = [sorted(map(str, ds.data_vars)) for ds in readings]
    if any(names != held[0] for names in held):
        other = next(names for names in held if names != held[0])
        raise SchemaError(
            f"concat: the readings hold other variables: {held[0]} and {other}. Join those of the same probes; "
            "ds[[...]] selects variables."
        )
    unlabelled = [ds for ds in readings if dim not in ds.dims or dim not in ds.coords]
    if dim != "prompt" and unlabelled:
        there = [str(each) for each in unlabelled[0].dims if each in unlabelled[0].coords]
        raise SchemaError(f"concat(dim={dim!r}): join along a dimension with labels; the readings have {there}.")
    try:
        joined = join(readings, dim)
    except ValueError as error:  # what lacks the dim must be the same in all
        raise SchemaError(f"concat(dim={dim!r}): the readings do not fit each other: {error}") from None
    if dim == "prompt" and len(readings) > 1:
        parts = "".join(str(ds.attrs.get("prompts_hash", "")) for ds in readings)
        joined.attrs["prompts_hash"] = hashlib.sha256(parts.encode()).hexdigest()
    return validate(joined)


def join(parts: Sequence[xr.Dataset], dim: str = "prompt", fill: Mapping[str, object] | None = None) -> xr.Dataset:
    """Join datasets of other prompts, readings or what was made of them; nothing is checked.

    Args:
        parts: Datasets with ``dim``.
        dim: What they are joined along; ``prompt`` is numbered anew.
        fill: By variable, what stands where a shorter prompt has no token; NaN if left out.
    """
    import xarray as xr

    longest = {name: max(ds.sizes.get(name, 0) for ds in parts) for name in ("query", "key")}
    missing = [{name: (0, n - ds.sizes[name]) for name, n in longest.items() if name in ds.sizes} for ds in parts]
    blanks: Any = fill if fill is None else dict(fill)
    same = [
        ds.pad(widths, constant_values=blanks) if any(map(any, widths.values())) else ds
        for ds, widths in zip(parts, missing, strict=True)
    ]
    joined = xr.concat(
        same, dim=dim, join="outer", data_vars="all" if dim == "prompt" else "minimal", coords="different",
        compat="equals", combine_attrs="override",
    )  # fmt: skip
    for name, blank in (("token", ""), ("token_role", "pad"), ("query_token", ""), ("query_role", "pad")):
        if name in joined.coords:
            joined[name] = joined[name].fillna(blank).astype(str)
    if dim == "prompt" and len(parts) > 1:
        import numpy as np

        joined = joined.assign_coords(prompt=np.arange(joined.sizes["prompt"]))
    return joined


def to_dataframe(ds: xr.Dataset, variable: str) -> pd.DataFrame:
    """Give one variable as a tidy table: one row per number, a column per dim and per coordinate, NaN rows dropped."""
    require_dataset(ds)
    if not isinstance(cast("object", variable), str) or variable not in ds:
        held = sorted(map(str, ds.data_vars))
        raise SchemaError(f"{variable!r} is not in this reading; it holds {held}.{did_you_mean(str(variable), held)}")
    array = ds[variable]
    return array.to_dataframe(name=variable).reset_index().dropna(subset=[variable]).reset_index(drop=True)


def attribute(ds: xr.Dataset, name: str) -> object:
    """Return a structured attribute (``edits``, ``probes``, ``definitions``, ``versions``) as Python objects."""
    return json.loads(ds.attrs[name])


__dir__ = public_names(globals())
