"""Models that were converted once, so that the next load takes seconds: one folder each in the user's cache.

A folder appears whole or not at all, under two processes as under one: it is written beside its place and then renamed,
while a lock on its name is held. Its name is the hash of what was converted and the version of transformers that did
it, so an entry is never stale, only unused.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from filelock import FileLock
from platformdirs import user_cache_path

from sinkscope.errors import ModelError

VARIABLE = "SINKSCOPE_CACHE"
"""Environment variable that puts the cache elsewhere."""

FACTS = "sinkscope.json"
"""File in each entry that says what it was made of; it is written last."""

FORMAT = 2
"""Raised whenever a conversion of this project comes to write other numbers or other files."""


@dataclass(frozen=True)
class CachedModel:
    """One converted model.

    Attributes:
        folder: where it lies.
        bytes: its size.
        facts: what it was made of: ``origin``, ``source`` (name it was loaded by, where it has one), ``files``.
    """

    folder: Path
    bytes: int
    facts: dict[str, Any] = field(repr=False)

    @property
    def origin(self) -> str:
        """How the weights came about, such as "de-quantised from Q4_1 (...)"."""
        return str(self.facts.get("origin", ""))


def root() -> Path:
    """Folder of the cache: ``$SINKSCOPE_CACHE``, else the place for caches on this system; it may not exist yet."""
    asked = os.environ.get(VARIABLE)
    return Path(asked).expanduser() if asked else user_cache_path("sinkscope", appauthor=False) / "models"


def entries() -> list[CachedModel]:
    """List what is in the cache, whole entries only, by origin."""
    if not root().is_dir():
        return []
    found = (_entry(folder) for folder in root().iterdir() if not folder.name.startswith("."))
    return sorted((entry for entry in found if entry is not None), key=lambda entry: (entry.origin, entry.folder))


def clear() -> int:
    """Remove every entry, those of other versions of transformers and half-written ones included.

    Returns:
        Bytes that were freed.

    Raises:
        ModelError: a folder cannot be removed.
    """
    freed = 0
    for path in root().iterdir() if root().is_dir() else ():
        if path.is_dir() and not path.is_symlink() and (path.name.startswith(".") or (path / FACTS).is_file()):
            freed += _size(path)
            try:
                shutil.rmtree(path)
            except OSError as error:
                raise ModelError(f"cache: {path} cannot be removed: {error.strerror}. Remove it by hand.") from None
        elif path.suffix == ".lock":
            path.unlink(missing_ok=True)
    return freed


def find(source: str) -> CachedModel | None:
    """Find the model that was loaded by this name before, by this version of transformers; the newest of several."""
    named = [e for e in entries() if e.facts.get("source") == source and e.facts.get("transformers") == _version()]
    return max(named, key=lambda entry: entry.folder.stat().st_mtime, default=None)


def obtain(digest: str, make: Callable[[Path], dict[str, Any]]) -> CachedModel:
    """Return the entry of this content, made now if it is not there.

    Args:
        digest: SHA-256 of what is converted, in hex.
        make: writes the model into the empty folder it is given, and returns the facts about it.

    Raises:
        ModelError: the cache cannot be written, or what ``make`` raises.
    """
    key = f"{digest[:32]}-transformers{_version()}-{FORMAT}"
    place = root() / key
    entry = _entry(place)
    if entry is not None:
        return entry
    with _writing():
        root().mkdir(parents=True, exist_ok=True)
    with _locked(root() / f"{key}.lock"):
        entry = _entry(place)  # another process may have made it while this one waited
        if entry is None:
            entry = _make(place, make)
    return entry


def check_room(folder: Path, wanted: int) -> None:
    """Refuse to begin writing what will not fit.

    Raises:
        ModelError: fewer than ``wanted`` bytes are free in the file system of ``folder``.
    """
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise ModelError(
            f"the converted model takes {megabytes(wanted)} and {megabytes(free)} are free in {root()}. Free some "
            f"room (sinkscope cache --clear removes {megabytes(sum(e.bytes for e in entries()))}), or set {VARIABLE} "
            "to a folder on another disk."
        )


def megabytes(count: int) -> str:
    """Write a number of bytes in megabytes."""
    return f"{count / 1e6:,.0f} MB"


def _make(place: Path, make: Callable[[Path], dict[str, Any]]) -> CachedModel:
    with _writing():
        for left in root().glob(f".{place.name}.*"):  # of a process that was killed; the lock says that none is at work
            shutil.rmtree(left)
        if place.exists():
            shutil.rmtree(place)
        temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=root()))
    try:
        with _writing():
            facts = make(temporary)
            files = {path.name: path.stat().st_size for path in temporary.iterdir()}
            facts |= {"files": files, "transformers": _version()}
            (temporary / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            os.chmod(temporary, 0o755)
            os.rename(temporary, place)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    entry = _entry(place)
    assert entry is not None
    return entry


def _entry(folder: Path) -> CachedModel | None:
    """Read an entry; None where there is none, or a file of it is gone or has another size than was written."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == size for name, size in facts["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return CachedModel(folder, _size(folder), facts) if whole else None


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"the converted model cannot be written to {root()}: {error.strerror or error}. Free some room there, or "
            f"set {VARIABLE} to a folder that can be written."
        ) from None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes; the system releases it when its holder dies."""
    lock = FileLock(path)
    with _writing():
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _version() -> str:
    return transformers.__version__
