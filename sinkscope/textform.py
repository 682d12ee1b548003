"""Probes and edits written as text, for the command line and TOML files: ``max-attention keys=image queries=last``.

The name is the class name in lower case with hyphens; fields follow as ``name=value``. A value is a number, ``true``,
``false``, ``none``, a range of whole numbers ``0:4`` or ``0:12:3`` (the end left out), a scale ``0.2:2.0:0.2`` (the end
kept), several of these with commas, or a word.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from sinkscope.errors import SinkscopeError, did_you_mean
from sinkscope.registry import kebab

T = TypeVar("T")

_NUMBER = r"-?(?:\d+\.?\d*|\.\d+)"
_WORDS = {"true": True, "false": False, "none": None}


def value(text: str) -> Any:
    """Read one value: number, truth value, ``none``, range, list, or a word."""
    if "," in text:
        items = [value(part.strip()) for part in text.split(",") if part.strip()]
        return tuple(x for item in items for x in (item if isinstance(item, tuple) else (item,)))
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if re.fullmatch(r"-?\d+:-?\d+(:[1-9]\d*)?", text):
        return tuple(range(*map(int, text.split(":"))))
    if re.fullmatch(rf"{_NUMBER}:{_NUMBER}:{_NUMBER}", text):
        first, last, step = map(float, text.split(":"))
        count = int((last - first) / step + 1e-9) + 1 if step else 0
        return tuple(round(first + i * step, 10) for i in range(count))
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def pieces(
    text: str, classes: Mapping[str, type[T]], error: type[SinkscopeError], what: str
) -> tuple[type[T], dict[str, Any]]:
    """Take a text form apart: the class it names and the fields it gives.

    Raises:
        error: no such name, no such field, a field left out that is needed, or a malformed one; ``what`` says what was
            asked for, such as ``"probe"``.
    """
    try:
        name, *pairs = shlex.split(text)
    except ValueError:
        raise error(f"{what} {text!r}: it is empty or a quote is not closed. Write NAME field=value ...") from None
    cls = classes.get(kebab(name) if name[:1].isupper() else name.lower())
    if cls is None:
        known = sorted(map(kebab, classes))
        raise error(
            f"{what} {name!r}: there is no such {what}. Use one of: {', '.join(known)}.{did_you_mean(name, known)}"
        )
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    takes = f"{kebab(cls.__name__)} takes {', '.join(known) or 'no fields'}"
    given: dict[str, Any] = {}
    for pair in pairs:
        field, equals, raw = pair.partition("=")
        field = field.replace("-", "_")
        if not equals or not raw or field not in known:
            meant = did_you_mean(field, known)
            raise error(f"{what} {text!r}: {pair!r} is no field of it. {takes}; write field=value.{meant}")
        given[field] = value(raw)
    needed = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING and n not in given]
    if needed:
        raise error(f"{what} {text!r}: {', '.join(needed)} must be given, such as {needed[0]}=0,1. {takes}.")
    return cls, given


def parse(text: str, classes: Mapping[str, type[T]], error: type[SinkscopeError], what: str) -> T:
    """Make a value of one of ``classes`` (by name with hyphens) from its text form.

    Raises:
        error: as :func:`pieces`.
    """
    cls, given = pieces(text, classes, error, what)
    for field in ("layers", "heads"):
        if isinstance(given.get(field), int):
            given[field] = (given[field],)
    return cls(**given)
