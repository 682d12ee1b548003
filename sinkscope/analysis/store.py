"""Readings kept by what they are of: one file per model, prompts, edits and probe, shared by all scripts."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from sinkscope import __version__, schema
from sinkscope.edits.text import dumps

if TYPE_CHECKING:
    from sinkscope.edits.base import Edit
    from sinkscope.models.handle import Model
    from sinkscope.probes.base import Probe
    from sinkscope.prompts import Prompts


class ReadingStore:
    """A folder of readings that are found again by content, never by the name of who asked.

    Args:
        folder: made when the first reading is saved.
        fresh: measure again what is there already, once in the life of this object.
    """

    def __init__(self, folder: Path, *, fresh: bool = False) -> None:
        self.folder, self.fresh = folder, fresh
        self._made: set[Path] = set()

    def run(
        self, model: Model, prompts: Prompts, probes: Sequence[Probe], edits: Sequence[Edit] = (), batch_size: int = 8
    ) -> xr.Dataset:
        """As :func:`sinkscope.run`; probes that were read before on the same prompts and edits come from their files.

        Batches change no reading, so their size is no part of a file's name.
        """
        from sinkscope.engine.run import run

        paths = {probe: self._path(model, prompts, probe, edits) for probe in probes}
        missing = [probe for probe, path in paths.items() if not self._there(path)]
        if missing:
            self.folder.mkdir(parents=True, exist_ok=True)
            ds = run(model, prompts, missing, edits, batch_size=batch_size)
            for probe in missing:
                others = [name for name in ds.data_vars if name not in probe.variables]
                schema.save(ds.drop_vars(others), paths[probe], overwrite=True)  # selecting would drop token_role
                self._made.add(paths[probe])
        return xr.merge(
            [schema.open(path) for path in paths.values()], join="exact", compat="override", combine_attrs="override"
        )

    def _there(self, path: Path) -> bool:
        return path.exists() and (path in self._made or not self.fresh)

    def _path(self, model: Model, prompts: Prompts, probe: Probe, edits: Sequence[Edit]) -> Path:
        read = [type(probe).__name__, {f.name: getattr(probe, f.name) for f in fields(probe)}]  # type: ignore[arg-type]
        of = [__version__, model.fingerprint, str(model.dtype), prompts.digest, read, dumps(list(edits))]
        return self.folder / f"{digest(of)}.nc"


def digest(data: Any) -> str:
    """A short name for JSON data that may hold arrays."""

    def plain(value: Any) -> Any:
        return [value.dims, value.values.tolist()] if isinstance(value, xr.DataArray) else str(value)

    return hashlib.sha256(json.dumps(data, sort_keys=True, default=plain).encode()).hexdigest()[:24]


def code_of(script: Path) -> str:
    """Return a short name for a script's code: its text, that of the modules beside it that it imports, the version."""
    texts, waiting = {}, [script]
    while waiting:
        path = waiting.pop()
        if path in texts or not path.is_file():
            continue
        texts[path] = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(texts[path])):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            waiting += [script.parent / f"{name}.py" for name in names]
    return digest([__version__, sorted((path.name, text) for path, text in texts.items())])
