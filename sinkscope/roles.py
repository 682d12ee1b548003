"""Token roles: what each token is for, as one label per token.

A role is data, not a guess made inside a metric: every reading carries the role of every token, and probes, edits and
metrics select by it. Each token has exactly one role, so shares over roles add up to the row sum.
"""

from __future__ import annotations

from collections.abc import Iterable

from sinkscope.errors import did_you_mean

ROLES: tuple[str, ...] = (
    "bos",  # beginning-of-sequence token, [CLS] of an encoder, class token of a vision encoder
    "system",  # chat: text of the system turn
    "user",  # chat: text of a user turn
    "text",  # any other text
    "image",  # visual token: a patch, or an image placeholder in a language model
    "punctuation",  # token made of punctuation only
    "newline",  # token made of white space that holds a line break
    "special",  # separator, end-of-sequence, chat markup, image row or tile separators
    "register",  # trained register tokens of a vision encoder
    "generated",  # produced by the model after the prompt
    "answer",  # given after the prompt as if the model had produced it (teacher-forced)
    "audio",  # frame of audio, as the first block of an audio encoder gets it
    "pad",  # not a real token; never measured
)
"""All role names, in the order of the ``role`` dimension (``pad`` never appears there)."""

ROLE_COLOURS: dict[str, str] = {
    "bos": "#D55E00", "system": "#CC79A7", "user": "#56B4E9", "text": "#0072B2", "image": "#009E73",
    "punctuation": "#E69F00", "newline": "#8C6D1F", "special": "#5B3A8E", "register": "#A61C3C",
    "generated": "#404040", "answer": "#6B8E23", "audio": "#6A6FB5", "pad": "#D9D9D9",
}  # fmt: skip
"""One colour per role, the same in every figure and page; grey for what is never measured."""

ROLE_INDEX: dict[str, int] = {name: i for i, name in enumerate(ROLES)}

ATTENDED_ROLES: tuple[str, ...] = ROLES[:-1]
"""Roles a real token can have: all but ``pad``."""

OPTIONAL_ROLES: tuple[str, ...] = ("answer", "audio")
"""Roles that a reading holds a share of where a prompt has them."""

MEASURED_ROLES: tuple[str, ...] = tuple(name for name in ATTENDED_ROLES if name not in OPTIONAL_ROLES)
"""Roles that every reading holds a share of."""

TEXT_ROLES: tuple[str, ...] = ("system", "user", "text", "punctuation", "newline", "generated", "answer")
"""Roles that carry language. ``"text"`` alone selects only the role of that name."""

SELECTIONS: tuple[str, ...] = ("all", "first", "last", "after_image")
"""Names that select tokens by place instead of role."""


def padded_names(rows: Iterable[Iterable[int]], length: int) -> list[list[str]]:
    """Return the names of the roles of each prompt's tokens, ``pad`` from its end up to ``length``."""
    named = ([ROLES[int(role)] for role in row] for row in rows)
    return [row + ["pad"] * (length - len(row)) for row in named]


def is_selection(name: str) -> bool:
    """Say whether ``name`` is a role or a named selection."""
    return name in ROLE_INDEX or name in SELECTIONS


def no_role_or_selection(name: str) -> str:
    """Return what an error says of a name that is neither a role nor a named selection."""
    roles = sorted(set(ATTENDED_ROLES))
    close = did_you_mean(name, (*roles, *SELECTIONS))
    return f"there is no role or selection {name!r}. Roles are {roles}; selections are {list(SELECTIONS)}.{close}"
