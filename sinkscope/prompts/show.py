"""Prompts as coloured tokens in a notebook or a page; every token is escaped."""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from sinkscope.roles import ROLE_COLOURS, ROLES

_BOX = "display:inline-block;white-space:pre;padding:0 2px;margin:1px;border-radius:2px"


def render_html(tokens: Sequence[Sequence[str]], roles: Sequence[np.ndarray], limit: int = 400) -> str:
    """Draw prompts as coloured tokens, every token escaped; at most ``limit`` tokens of each of ten prompts."""
    rows: list[str] = []
    for place, (shown, role) in enumerate(zip(tokens[:10], roles[:10], strict=True)):
        spans = list(_spans(shown[:limit], role[:limit]))
        rest = f" ... {len(shown) - limit} more" if len(shown) > limit else ""
        rows.append(f"<div style='margin:4px 0;overflow-wrap:anywhere'><b>{place}</b> {''.join(spans)}{rest}</div>")
    if len(tokens) > 10:
        rows.append(f"<div>... {len(tokens) - 10} more prompts</div>")
    used = [name for i, name in enumerate(ROLES) if any((r == i).any() for r in roles)]
    legend = " ".join(_span(name, name) for name in used)
    head = f"<div>{len(tokens)} prompt{'' if len(tokens) == 1 else 's'}; tokens by role: {legend}</div>"
    return f"<div style='font-family:monospace;line-height:1.7'>{head}{''.join(rows)}</div>"


def _spans(tokens: Sequence[str], roles: np.ndarray) -> Iterator[str]:
    """One coloured token after the other; four and more alike in a row (an image) are one with their number."""
    codes: list[int] = roles.tolist()
    for (text, role), run in itertools.groupby(zip(tokens, codes, strict=True)):
        count = len(list(run))
        if count > 3:
            yield _span(f"{text} × {count}", ROLES[role])
        else:
            yield from [_span(text, ROLES[role])] * count


def _span(text: str, role: str) -> str:
    # A tint over whatever lies beneath: it reads on light and dark pages, and each token may start a new line.
    tint = f"{ROLE_COLOURS[role]}{'1f' if role == 'text' else '59'}"
    return f"<span title='{role}' style='background:{tint};{_BOX}'>{html.escape(text)}</span>"
