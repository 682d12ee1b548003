"""Edits as JSON, for readings and caches, and as text, for the command line: ``mask-keys keys=first layers=2:10``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, cast

from sinkscope import textform
from sinkscope.edits.base import EDITS, Edit
from sinkscope.errors import EditError


def dumps(edits: Iterable[Edit]) -> str:
    """Return edits as a JSON string."""
    return json.dumps([edit.to_dict() for edit in edits])


def loads(text: str) -> list[Edit]:
    """Make edits from what :func:`dumps` gave.

    Raises:
        EditError: not such a string.
    """
    try:
        data = json.loads(text)
    except (TypeError, ValueError):
        raise EditError(f"edits {text!r:.60}: this is not JSON. Give what sinkscope.edits.dumps made.") from None
    if not isinstance(data, list):
        raise EditError(f"edits {text!r:.60}: a JSON list was expected. Give what sinkscope.edits.dumps made.")
    return [Edit.from_dict(item) for item in cast("list[Any]", data)]


def parse(text: str) -> list[Edit]:
    """Make edits from their text form, several separated by ``;`` or ``+`` between blanks.

    The name is the class name in lower case with hyphens, fields follow as ``name=value``; lists are written ``0,3``
    and ranges ``2:10`` (the end left out).

    Raises:
        EditError: no such edit or field, or a malformed one.
    """
    pieces = [piece.strip() for part in text.split(";") for piece in part.split(" + ")]
    if not any(pieces):
        raise EditError(f"edit {text!r}: it is empty. Write NAME field=value, such as 'mask-keys keys=first'.")
    return [textform.parse(piece, EDITS, EditError, "edit") for piece in pieces if piece]
