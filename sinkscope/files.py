"""Files written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from sinkscope.errors import OutputError, SinkscopeError


def as_path(path: object, error: type[SinkscopeError]) -> Path:
    """Return a path that a file may have, or raise ``error``."""
    if not isinstance(path, str | os.PathLike) or isinstance(os.fspath(path), bytes):
        found = "None" if path is None else f"a {type(path).__name__}"
        raise error(f"expected the path of a file, got {found}. Name a file, such as 'readings.nc'.")
    found = Path(cast("str", path))
    try:
        named = b"\0" not in os.fsencode(found)
    except UnicodeEncodeError:
        named = False
    if not named:
        raise error(f"{str(found)!r}: no file can have such a name. Choose one without control characters.")
    try:
        found.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as reason:  # a name that is too long, a folder that may not be entered, links that go round
        raise error(f"{found}: no file can be reached by this path ({reason.strerror}). Choose another one.") from None
    return found


def write(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Write a file of which everything is at hand: whole, or not at all, and then what stood there is kept.

    Libraries are asked for bytes and never write files themselves: HDF5, for one, crashes the interpreter when the disk
    is full.

    Raises:
        OutputError: no room, or no leave to write.
    """
    # Half a character, of a text cut short, has no encoding; nobody shall lose a report for it.
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise OutputError(
            f"{path}: {len(data):,} bytes cannot be written ({error.strerror or error}). Make room, or choose another "
            "place; nothing was changed."
        ) from None
    return Path(path)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Return a temporary file beside ``path``; it takes that name when the context ends well, else it goes."""
    target = Path(path)
    # Cut short: a name of 250 characters is one that a file may have, and has no room for more.
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name[:40]}.", suffix=".tmp", dir=target.parent)
    os.close(handle)
    try:
        yield Path(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
