"""Putting the numbers of a run at their place: arrays numbered from the first real token, coordinates, provenance."""

from __future__ import annotations

import functools
import json
import logging
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import numpy as np
import torch
import xarray as xr

from sinkscope.arguments import shown
from sinkscope.definitions import references_of
from sinkscope.errors import ProbeError
from sinkscope.models.backends.base import AttentionSite, ResidualSite, Tower
from sinkscope.probes.base import Probe, dumps
from sinkscope.prompts import Batch, Prompts
from sinkscope.prompts.data import PromptFields
from sinkscope.roles import ATTENDED_ROLES, MEASURED_ROLES, ROLE_INDEX, padded_names
from sinkscope.schema import SCHEMA_VERSION, Variable, declare

GRID = ("grid_row", "grid_col", "grid_tile", "grid_image", "box_left", "box_top", "box_right", "box_bottom")
"""Coordinates (prompt, key) of image tokens, NaN elsewhere; boxes are pixels of the original image."""

MAP_LIMIT = 1 << 30
"""Bytes of attention maps that a reading may hold."""

LARGE = 1 << 30
"""Bytes from which on a run says beforehand how large its reading will be."""

log = logging.getLogger("sinkscope")


class Store(Protocol):
    """What takes the numbers of a pass: a reading that holds them all, or statistics over them."""

    def put(self, found: Mapping[str, torch.Tensor], batch: Batch, at: AttentionSite | int | None = None) -> None:
        """Take tensors of one attention call, one residual site (by its place) or the output; batch comes first."""
        ...


class ReadingBuilder:
    """Arrays that grow into a reading. Everything starts as NaN, so what was never measured stays NaN."""

    def __init__(
        self, probes: Sequence[Probe], tower: Tower, lengths: Sequence[int], queries: Sequence[int] | None = None
    ) -> None:
        self.tower, self.lengths, self.probes = tower, lengths, probes
        self.longest = {"key": max(lengths), "query": max(lengths if queries is None else queries)}
        self.variables: dict[str, Variable] = {n: v for probe in probes for n, v in probe.variables.items()}
        self.arrays: dict[str, np.ndarray] = {}
        self.parts = {name: probe.labels(self.longest["query"]) for probe in probes for name in probe.variables}
        """The labels by which each variable names the part of an axis that it reads."""
        self._known: dict[str, tuple[Batch, list[np.ndarray | None]]] = {}

    def put(self, found: Mapping[str, torch.Tensor], batch: Batch, at: AttentionSite | int | None = None) -> None:
        """Store tensors of one attention call, one residual site (by its place) or the output; batch comes first."""
        self._check(found, batch, at)
        for name, tensor in found.items():
            stacked, axes = self._axes(name)
            dims = self.variables[name].dims[1:]
            values = tensor.detach().float().cpu().numpy()
            array = self._array(name, values.shape[1:], axes, dims[0] if stacked else "")
            place = self._place(name, at) if stacked else ()
            for row, prompt in enumerate(batch.indices):
                part = values[row]
                for axis, dim in enumerate(axes):
                    real = self._padded(batch, dim)[row] if dim in ("key", "query") else None
                    if real is not None and part.shape[axis] == len(real):
                        part = np.compress(real, part, axis=axis)
                slots = [slice(0, size) for size in part.shape]
                array[(prompt, *place, *self._slots(name, axes, slots))] = part

    def _axes(self, name: str) -> tuple[bool, tuple[str, ...]]:
        """Whether a variable is made layer by layer or site by site, and its dimensions behind those and the prompt."""
        dims = self.variables[name].dims[1:]
        stacked = bool(dims) and dims[0] in ("layer", "site")
        return stacked, tuple(dims[1:] if stacked else dims)

    def _check(self, found: Mapping[str, torch.Tensor], batch: Batch, at: AttentionSite | int | None) -> None:
        """Refuse what a probe made that is not what it declares; numpy would stretch or cut it to fit.

        Raises:
            ProbeError: no mapping, another variable, no tensor, or one of another shape.
        """
        makers = {name: type(probe).__name__ for probe in self.probes for name in probe.variables}
        given: Any = found
        if not isinstance(given, Mapping):
            raise ProbeError(f"a probe of {sorted(makers)} made {shown(given)}. Return tensors by name.")
        sizes = {"head": at.heads, "kv_head": at.kv_heads} if isinstance(at, AttentionSite) else {}
        for name, tensor in given.items():
            if name not in makers:
                raise ProbeError(f"a probe made {shown(name)}, which none declares. Variables are {sorted(makers)}.")
            axes = ("prompt", *self._axes(name)[1])
            # Of some heads alone there are as many as the probe names.
            known = {} if "head" in self.parts[name] else sizes
            wanted = [{"prompt": len(batch.indices), **known}.get(dim) for dim in axes]
            shape = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else ()
            if len(shape) == len(axes) and all(n in (None, size) for n, size in zip(wanted, shape, strict=True)):
                continue
            got = f"of shape {shape}" if isinstance(tensor, torch.Tensor) else shown(tensor)
            told = ", ".join(dim if n is None else f"{dim} {n}" for dim, n in zip(axes, wanted, strict=True))
            raise ProbeError(f"{makers[name]}: {name!r} is {got}. Return a tensor of ({told}).")

    def _padded(self, batch: Batch, dim: str) -> list[np.ndarray | None]:
        """Which keys or queries of each prompt are real; None where all of them. Kept from one layer to the next."""
        if dim not in self._known or self._known[dim][0] is not batch:
            tokens = batch.queries if dim == "query" else batch
            self._known[dim] = batch, [None if real.all() else real for real in tokens.real.cpu().numpy()]
        return self._known[dim][1]

    def _array(self, name: str, shape: Sequence[int], axes: Sequence[str], stack: str) -> np.ndarray:
        if name not in self.arrays:
            part = self.parts[name]
            # The logits of all positions are as many as the tokens of the prompts at hand, which may be shorter ones.
            whole = {"key", "query"} | (
                {"position"} if len(part.get("position", ())) == self.longest["query"] else set()
            )
            # Later layers may have more heads than the first one seen (MiMo's windows); where there are fewer is NaN.
            most = {"head": max(site.heads for site in self.tower.attention)} if stack == "layer" else {}
            most |= {"kv_head": max(site.kv_heads for site in self.tower.attention)} if most else {}
            sizes = [
                self.longest.get(dim, self.longest["query"]) if dim in whole else max(size, most.get(dim, 0))
                for dim, size in zip(axes, shape, strict=True)
            ]
            if "head" in part:
                sizes[axes.index("head")] = len(self._heads(name))
            if stack == "layer":
                sizes = [len(self._layers(name)), *self._call_size, *sizes]
            elif stack == "site":
                sizes = [len(self.tower.residual), *sizes]
            # NaN, not 0: what was not read (padding, other layers) must not enter a mean.
            self.arrays[name] = np.full((len(self.lengths), *sizes), np.nan, dtype=np.float32)
        return self.arrays[name]

    def _place(self, name: str, at: AttentionSite | int | None) -> tuple[int, ...]:
        if not isinstance(at, AttentionSite):
            return (at or 0,)
        call = (at.call,) if self._call_size else ()
        return (list(self._layers(name)).index(at.layer), *call)

    @functools.cached_property
    def _call_size(self) -> tuple[int, ...]:
        """Length of the axis ``call``, which is there where a block attends more than once."""
        return (self.tower.calls,) if self.tower.calls > 1 else ()

    def _slots(self, name: str, axes: Sequence[str], slots: list[slice]) -> list[slice] | list[Any]:
        """Where the part of a variable that is read lies in its array: named heads at their place among all."""
        if "head" not in self.parts[name] or self._apart:
            return slots
        at = axes.index("head")
        return [*slots[:at], list(self.parts[name]["head"]), *slots[at + 1 :]]

    @functools.cached_property
    def _apart(self) -> bool:
        """Whether all that has layers or heads names the same ones: their axes then hold just those, with no gaps."""
        parts = [self.parts[name] for name, v in self.variables.items() if {"layer", "head"} & set(v.dims)]
        return bool(parts) and all({"layer", "head"} & set(part) and part == parts[0] for part in parts)

    def _layers(self, name: str) -> Sequence[int]:
        """Blocks along the axis ``layer`` of a variable."""
        return self.parts[name]["layer"] if self._apart and "layer" in self.parts[name] else range(self.tower.depth)

    def _heads(self, name: str) -> Sequence[int]:
        """Heads along the axis ``head`` of a variable that names some."""
        most = max(site.heads for site in self.tower.attention)
        return self.parts[name]["head"] if self._apart else range(most)

    def refuse_large_maps(self, variants: int = 1) -> None:
        """Refuse attention maps that would not fit: the only variables that grow with the square of the length.

        Raises:
            ProbeError: the maps of all variants together take more than ``MAP_LIMIT`` bytes.
        """
        size = variants * self.map_bytes()
        if size > MAP_LIMIT:
            several = f" of {variants} variants" if variants > 1 else ""
            raise ProbeError(
                f"AttentionMap: the maps{several} would take {size / 2**30:.1f} GiB, the limit is "
                f"{MAP_LIMIT / 2**30:.0f} GiB. Name fewer layers, heads{', variants' if several else ''} or tokens, "
                "or read maps without other probes."
            )

    def map_bytes(self) -> int:
        """Return the size of what one pass will keep with both a query and a key axis: attention maps."""
        maps = [name for name, v in self.variables.items() if {"layer", "head", "query", "key"} <= set(v.dims)]
        each = 4 * max(1, self.tower.calls) * len(self.lengths) * self.longest["key"] * self.longest["query"]
        return sum(each * len(self._layers(name)) * len(self._heads(name)) for name in maps)

    def rows(self, prompts: Sequence[int]) -> dict[str, np.ndarray]:
        """Return a copy of what is stored for these prompts; prompts first."""
        return {name: array[list(prompts)] for name, array in self.arrays.items()}

    def restore(self, arrays: Mapping[str, np.ndarray], prompts: Sequence[int]) -> None:
        """Put back what :meth:`rows` gave for these prompts, in this process or another."""
        for name, part in arrays.items():
            if name not in self.arrays:
                self.arrays[name] = np.full((len(self.lengths), *part.shape[1:]), np.nan, dtype=np.float32)
            self.arrays[name][list(prompts)] = part

    def expected_bytes(self) -> dict[str, int]:
        """Return the size of each variable as far as its axes are known before the first pass, the largest first."""
        heads, kv_heads = (max((getattr(s, n) for s in self.tower.attention), default=1) for n in ("heads", "kv_heads"))
        known = self.longest | {
            "head": heads, "kv_head": kv_heads, "site": len(self.tower.residual), "role": len(ATTENDED_ROLES),
        }  # fmt: skip
        sizes: dict[str, int] = {}
        for name, variable in self.variables.items():
            axes = [
                len(self._layers(name)) if dim == "layer" else len(self.parts[name].get(dim, ())) or known.get(dim, 1)
                for dim in variable.dims[1:]
            ]
            sizes[name] = 4 * len(self.lengths) * math.prod(axes)
        return dict(sorted(sizes.items(), key=lambda item: -item[1]))

    def announce(self) -> None:
        """Say so before a run whose reading will be large: memory and file grow with the number of prompts."""
        sizes = self.expected_bytes()
        total = sum(sizes.values())
        if total > LARGE:
            largest = next(iter(sizes))
            log.warning(
                "run: this reading will take %.1f GiB in memory, and up to as much in a file (%s alone %.1f GiB). "
                "Statistics over prompts, sinkscope.survey(model, texts, probes), take a few MiB however many there "
                "are; fewer prompts or probes, or named keys and layers, make a smaller reading.",
                total / 2**30, largest, sizes[largest] / 2**30,
            )  # fmt: skip

    def dataset(self, prompts: Prompts, lead: Sequence[str] = ()) -> xr.Dataset:
        """Make the reading's variables and coordinates.

        Args:
            prompts: the prompts that were read.
            lead: dims that the arrays have in front of those of their variables, such as the variants of a sweep.
        """
        data = {
            name: ((*lead, *self._dims(name)), array, _attrs(self.variables[name]))
            for name, array in self.arrays.items()
        }
        ds = xr.Dataset(data)
        # One assignment for all coordinates: xarray aligns everything anew at each, milliseconds a time.
        coords: dict[str, Any] = {
            "prompt": np.arange(len(self.lengths)), "prompt_hash": ("prompt", prompts.prompt_digests()),
        }  # fmt: skip
        if "layer" in ds.dims:
            layers = list(self._layers(next(name for name, v in self.variables.items() if "layer" in v.dims)))
            coords |= {"layer": layers, "block_kind": ("layer", [self.tower.kind(layer) for layer in layers])}
        if "call" in ds.dims:
            coords["call"] = range(self.tower.calls)
        if "head" in ds.dims:
            coords |= self._head_coords(ds.sizes["head"])
        if "site" in ds.dims:
            coords["site"] = [site.name for site in self.tower.residual]
            coords["site_name"] = ("site", [site.lens_name for site in self.tower.residual])
            coords["site_kind"] = ("site", [self._site_kind(site) for site in self.tower.residual])
        if "role" in ds.dims:
            coords["role"] = list(ATTENDED_ROLES)
        if "position" in ds.dims:
            labels = list(next(part["position"] for part in self.parts.values() if "position" in part))
            coords["position"] = labels if len(labels) == ds.sizes["position"] else [-1]
        if "group" in ds.dims:
            coords["group"] = list(next(part["group"] for part in self.parts.values() if "group" in part))
        coords |= {name: ("prompt", values) for name, values in prompts.origin.items()}
        ds = ds.assign_coords(coords | self._token_coords(prompts))
        if "role" in ds.dims:
            ds = ds.sel(role=_roles_held(prompts))
        return ds

    def _site_kind(self, site: ResidualSite) -> str:
        """Kind of the block that writes to the stream before a site; the first one is written by the embedding."""
        return site.name if site.name == "embed" else self.tower.kind(site.layer)

    def _dims(self, name: str) -> tuple[str, ...]:
        dims = self.variables[name].dims
        return (*dims[:2], "call", *dims[2:]) if "layer" in dims and self._call_size else dims

    def _head_coords(self, count: int) -> dict[str, Any]:
        named = next(self.parts[name].get("head") for name, v in self.variables.items() if "head" in v.dims)
        heads = list(named) if named is not None and self._apart else list(range(count))
        site = max(self.tower.attention, key=lambda s: s.heads)
        group = site.heads // site.kv_heads
        return {"head": heads, "kv_of_head": ("head", [head // group for head in heads])}

    def _token_coords(self, prompts: Prompts) -> dict[str, Any]:
        shape = (len(self.lengths), self.longest["key"])
        token, role = np.full(shape, "", dtype=object), padded_names(prompts.roles, shape[1])
        grid = {name: np.full(shape, np.nan, dtype=np.float32) for name in GRID}
        for i, length in enumerate(self.lengths):
            token[i, :length] = prompts.tokens[i]
            found = prompts.grids[i] if prompts.grids else None
            if found is not None:
                for name, values in _grid_axes(found).items():
                    grid[name][i, :length] = values
        per_token = {"token": token.astype(str), "token_role": np.array(role, dtype=str)}
        others = {} if prompts.other is None or prompts.side == "target" else self._query_coords(prompts.other)
        if np.isfinite(grid["grid_row"]).any():
            per_token |= {name: values for name, values in grid.items() if np.isfinite(values).any()}
        return {name: (("prompt", "key"), values) for name, values in per_token.items()} | others

    def _query_coords(self, target: PromptFields) -> dict[str, Any]:
        """Tokens and roles of queries that are others than the keys, where a variable has queries."""
        if "query" not in {dim for variable in self.variables.values() for dim in variable.dims}:
            return {}
        if self.longest["query"] != max(target.lengths):
            return {}
        shape = (len(self.lengths), self.longest["query"])
        token, role = np.full(shape, "", dtype=object), padded_names(target.roles, shape[1])
        for i, length in enumerate(target.lengths):
            token[i, :length] = target.tokens[i]
        dims = ("prompt", "query")
        return {"query_token": (dims, token.astype(str)), "query_role": (dims, np.array(role, dtype=str))}


def _roles_held(prompts: Prompts) -> list[str]:
    """Roles along the axis ``role``: those that every reading has, and the others where a prompt has them."""
    found = {int(role) for roles in prompts.roles for role in np.unique(roles)}
    return [name for name in ATTENDED_ROLES if name in MEASURED_ROLES or ROLE_INDEX[name] in found]


def _grid_axes(grid: Any) -> dict[str, np.ndarray]:
    if isinstance(grid, tuple):
        return {"grid_row": np.asarray(grid[0]), "grid_col": np.asarray(grid[1])}
    return dict(zip(GRID, (grid.row, grid.col, grid.tile, grid.image, *grid.box.T), strict=True))


def _attrs(variable: Variable) -> dict[str, str]:
    return {"units": variable.units, "long_name": variable.meaning}


def provenance(
    model: Any, tower: Tower, prompts: Prompts | None, probes: tuple[Probe, ...], edits: str, paths: set[str]
) -> dict[str, Any]:
    """Attributes every reading carries; structured ones as JSON strings, because netCDF takes no dict, None or bool.

    Without ``prompts`` those that tell of them are empty.
    """
    return {
        "sinkscope_version": _version("sinkscope"),
        "schema_version": SCHEMA_VERSION,
        "model_id": model.id,
        "model_fingerprint": model.fingerprint,
        "model_origin": model.origin,
        "tower": tower.name,
        "causal": int(tower.causal),
        "d_model": tower.d_model,
        "implicit_sink": int(any(site.implicit_sink for site in tower.attention)),
        "dtype": str(model.dtype).removeprefix("torch."),
        "backend": model.backend.name,
        "path": ",".join(sorted(paths)),
        "edits": edits,
        "probes": dumps(probes),
        "variables": declare(_declared(probes)),
        "definitions": json.dumps({n: v.meaning for p in probes for n, v in p.variables.items()}),
        "references": references_of(dumps(probes), edits),
        "prompts_hash": "" if prompts is None else prompts.digest,
        "key0": "" if prompts is None else prompts.key0,
        "seed": torch.initial_seed(),
        "versions": json.dumps(
            {name: _version(name) for name in ("torch", "transformers", "transformer-lens", "xarray", "numpy")}
            | {"python": platform.python_version()}
        ),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _declared(probes: Sequence[Probe]) -> dict[str, Variable]:
    """Every variable that the probes make, with the papers of its probe."""
    return {
        name: replace(variable, reference=", ".join(p if isinstance(p, str) else p.key for p in probe.papers))
        for probe in probes
        for name, variable in probe.variables.items()
    }


@functools.cache  # reading a package's metadata takes longer than a layer of a small model
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
