"""Prompts as coloured tokens in a notebook or a page; every token is escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

from sinkscope.roles import ROLES

_COLOURS = {
    "bos": "#e69f00", "system": "#999999", "user": "#56b4e9", "text": "#f0f0f0", "image": "#009e73",
    "punctuation": "#cc79a7", "newline": "#d55e00", "special": "#f0e442", "register": "#0072b2",
    "generated": "#b2df8a", "answer": "#6b8e23", "audio": "#8da0cb", "pad": "#ffffff",
}  # fmt: skip
_DARK = frozenset({"register", "image", "newline"})


def render_html(tokens: Sequence[Sequence[str]], roles: Sequence[np.ndarray], limit: int = 400) -> str:
    """Draw prompts as coloured tokens, every token escaped; at most ``limit`` tokens of each of ten prompts."""
    rows: list[str] = []
    for place, (shown, role) in enumerate(zip(tokens[:10], roles[:10], strict=True)):
        spans = [_span(t, ROLES[int(r)]) for t, r in zip(shown[:limit], role[:limit], strict=True)]
        rest = f" ... {len(shown) - limit} more" if len(shown) > limit else ""
        rows.append(f"<div style='margin:2px 0'><b>{place}</b> {''.join(spans)}{rest}</div>")
    if len(tokens) > 10:
        rows.append(f"<div>... {len(tokens) - 10} more prompts</div>")
    used = [name for i, name in enumerate(ROLES) if any((r == i).any() for r in roles)]
    legend = " ".join(_span(name, name) for name in used)
    return f"<div style='font-family:monospace'>{''.join(rows)}<div>{legend}</div></div>"


def _span(text: str, role: str) -> str:
    ink = "#ffffff" if role in _DARK else "#000000"
    style = f"background:{_COLOURS[role]};color:{ink};padding:0 2px;margin:1px;white-space:pre"
    return f"<span title='{role}' style='{style}'>{html.escape(text)}</span>"
