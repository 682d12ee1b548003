"""The page's own files: the modules of its script joined into one, its styles, and the hashes that let them run."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources

MODULES = (
    "data", "state", "theme", "draw", "download", "tips", "headmap", "ranking", "rows", "tokens", "lines", "matrix",
    "pictures", "charts", "massive", "search", "keys", "main",
)  # fmt: skip
"""Modules of the script, each after those it imports."""
STYLES = ("base", "heads", "tokens", "print")
_IMPORT = re.compile(r"^import .*;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=const|function|async)", re.MULTILINE)


def _text(name: str) -> str:
    return (resources.files("sinkscope.report") / "page_files" / name).read_text(encoding="utf-8")


@cache
def script() -> str:
    """Return the script of a page: its modules behind one another, without their imports and exports.

    A browser does not load modules from a page that was opened from disk, so they are made one here; names at the top
    of two modules must differ, and a test sees to it.
    """
    return "\n".join(_EXPORT.sub("", _IMPORT.sub("", _text(f"{name}.js"))) for name in MODULES)


@cache
def styles() -> str:
    """Return the styles of a page."""
    return "\n".join(_text(f"{name}.css") for name in STYLES)


def policy() -> str:
    """Return the content security policy: the page's script and styles by hash, pictures it holds, nothing else."""
    own = [f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in (script(), styles())]
    return (
        f"default-src 'none'; img-src data: blob:; style-src {own[1]}; script-src {own[0]}; base-uri 'none'; "
        "form-action 'none'"
    )
