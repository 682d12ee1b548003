"""Words and numbers of the page: tokens made visible, numbers rounded the same way everywhere."""

from __future__ import annotations

import json
import math
import unicodedata
from typing import Any

_VISIBLE = {"\n": "↵", "\r": "␍", "\t": "⇥", " ": "␣", "\u00a0": "⍽"}
_UNSEEN = ("Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp", "Zs")


def visible(token: str, most: int = 60) -> str:
    """Return a token with white space and control characters as signs; nothing in it can change the page's layout.

    It is text, not HTML: whoever writes it into a page escapes it (the template and the script both do).
    """
    shown = "".join(_character(c) for c in token[:most]) + ("…" if len(token) > most else "")
    return shown or "∅"


def _character(character: str) -> str:
    if character in _VISIBLE:
        return _VISIBLE[character]
    if unicodedata.category(character) in _UNSEEN:
        code = ord(character)
        return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
    return character


def quoted(token: str) -> str:
    """Return a token in quotation marks."""
    return f"“{visible(token, 24)}”"


def percent(share: float) -> str:
    """Return a share as a percentage with two significant digits below ten."""
    if not math.isfinite(share):
        return "unknown"
    value = 100 * share
    if 0 < value < 0.1:
        return "under 0.1%"
    return f"{value:.0f}%" if value >= 10 or value == 0 else f"{value:.1f}%"


def number(value: float) -> str:
    """Return a number with three significant digits, without an exponent where people would not write one."""
    if not math.isfinite(value):
        return "unknown"
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def counted(count: int, noun: str) -> str:
    """Return ``1 prompt``, ``2 prompts``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def call_text(value: Any) -> str:
    """Write a probe or an edit as the call that makes it, anything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        rest = dict(value)
        for key in ("probe", "edit"):
            name = rest.pop(key, None)
            if isinstance(name, str):
                return f"{name}({', '.join(f'{k}={v!r}' for k, v in rest.items() if v is not None)})"
    return json.dumps(value)
