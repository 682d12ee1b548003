"""The page's own files: the modules of its script joined into one, its styles, and the hashes that let them run."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources

MODULES = (
    "data", "state", "theme", "draw", "download", "tips", "headmap", "ranking", "rows", "tokens", "lines", "matrix",
    "pictures", "charts", "curve", "massive", "search", "keys", "main",
)  # fmt: skip
"""Modules of the script, each after those it imports."""
LIVE_MODULES = ("tried", "live")
"""Modules of a page that a model answers, behind the others."""
STYLES = ("base", "heads", "tokens", "print")
_IMPORT = re.compile(r"^import .*;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=const|function|async)", re.MULTILINE)


def _text(name: str) -> str:
    return (resources.files("sinkscope.report") / "page_files" / name).read_text(encoding="utf-8")


@cache
def script(live: bool = False) -> str:
    """Return the script of a page, of one that a model answers if ``live``: its modules joined, without imports.

    A browser does not load modules from a page that was opened from disk, so they are made one here; names at the top
    of two modules must differ, and a test sees to it.
    """
    names = MODULES + LIVE_MODULES if live else MODULES
    return "\n".join(_EXPORT.sub("", _IMPORT.sub("", _text(f"{name}.js"))) for name in names)


@cache
def styles(live: bool = False) -> str:
    """Return the styles of a page."""
    return "\n".join(_text(f"{name}.css") for name in (*STYLES, *(["live"] if live else [])))


def policy(live: bool = False) -> str:
    """Return the content security policy: the page's script and styles by hash, pictures it holds, nothing else.

    A page that a model answers may ask the address that it came from.
    """
    texts = (script(live), styles(live))
    own = [f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in texts]
    return (
        f"default-src 'none'; img-src data: blob:; style-src {own[1]}; script-src {own[0]}; base-uri 'none'; "
        f"form-action 'none'{'; connect-src ' + repr('self') if live else ''}"
    )
