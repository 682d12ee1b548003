"""What a page asks for, read from JSON: whatever is missing or of another kind is refused in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sinkscope.errors import PromptError

MAX_GAMMA = 10.0
"""Largest factor that the page lets a key be scaled by."""


@dataclass(frozen=True)
class Trial:
    """One text, and what is done to it: the weight of position ``key`` times ``gamma`` in layers first to last."""

    text: str
    gamma: float = 1.0
    key: int = 0
    first: int = 0
    last: int = 0

    @staticmethod
    def read(asked: Mapping[str, Any], layers: int) -> Trial:
        """Make a trial from what a page sent.

        Raises:
            PromptError: something is missing, of another kind, or out of range.
        """
        text = asked.get("text")
        if not isinstance(text, str) or not text.strip():
            raise PromptError("There is no text to run. Type a sentence.")
        gamma = asked.get("gamma", 1.0)
        if isinstance(gamma, bool) or not isinstance(gamma, int | float) or not 0 <= gamma <= MAX_GAMMA:
            raise PromptError(f"gamma is {gamma!r}. Give a number from 0 to {MAX_GAMMA:g}.")
        first, last = whole(asked, "first", layers), whole(asked, "last", layers, layers - 1)
        if first > last:
            raise PromptError(f"Layers {first} to {last} are none. Let the first come before the last.")
        return Trial(text, float(gamma), whole(asked, "key", math.inf), first, last)


def whole(asked: Mapping[str, Any], name: str, end: float, default: int = 0) -> int:
    """Return a whole number from 0 to below ``end`` out of what a page sent.

    Raises:
        PromptError: it is another thing, or out of range.
    """
    value = asked.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < end:
        raise PromptError(
            f"{name} is {value!r}. Give a whole number from 0{'' if end == math.inf else f' to {end - 1}'}."
        )
    return value
