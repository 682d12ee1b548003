"""The errors sinkscope raises: each says what was asked, what was found and what to do.

Every class has a page under ``docs/errors/``; every message has a test.
"""

from __future__ import annotations

import sys
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any


def printable(text: str) -> str:
    """Replace every character that does not print (control, bidirectional mark, odd space) by its escape.

    A line break becomes ``\\n``, a tab ``\\t``, a zero byte ``\\x00``, a right-to-left mark ``\\u200f``.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


class SinkscopeError(Exception):
    """Base of every error that sinkscope raises on purpose."""

    def __str__(self) -> str:
        # A model's name or a library's message may hold escape sequences, which would move the cursor of a terminal.
        return "\n".join(map(printable, super().__str__().split("\n")))


class ModelError(SinkscopeError):
    """A model could not be loaded whole, or holds numbers that are not finite."""


class UnsupportedModelError(ModelError):
    """The model has no attention that sinkscope can read, or no edit can take effect in it."""


class PromptError(SinkscopeError):
    """A prompt is empty, too long, all padding, or does not fit the model."""


class ProbeError(SinkscopeError):
    """A probe asks for something that this model or these prompts do not have."""


class EditError(SinkscopeError):
    """An edit is malformed, or names a layer, head, token or dimension that is not there."""


class EditHasNoEffect(EditError):
    """An edit that is not an identity left the logits bit for bit as they were."""


class SchemaError(SinkscopeError):
    """A dataset is not a valid reading: a variable, dimension or attribute is missing or malformed."""


class OutputError(SinkscopeError):
    """An output path cannot be written, or exists and may not be overwritten."""


class MetricError(SinkscopeError):
    """A metric was given readings that lack what it needs, or an unknown definition name.

    Attributes:
        advice: the sentence that says what to measure, where something was not measured; else empty.
    """

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(f"{message} {advice}" if advice else message)
        self.advice = advice


class SinkscopeWarning(UserWarning):
    """Something was done as asked, but the result may mislead; the message says how, and what to do instead."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a sentence for an error message that offers the known name closest to ``name``, or nothing."""
    plain = {text.lower().replace("_", "-"): text for text in map(str, known)}
    close = get_close_matches(str(name).lower().replace("_", "-"), plain, n=1, cutoff=0.6)
    return f" Did you mean {plain[close[0]]!r}?" if close else ""


def unknown_name(module: str, known: Iterable[str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a module: a misspelt name is an AttributeError that offers the closest one.

    Python's own suggestion is printed by its interpreter alone; notebooks do not show it.
    """

    def missing(name: str) -> Any:
        meant = "" if name.startswith("_") else did_you_mean(name, known)
        raise AttributeError(f"module {module!r} has no attribute {name!r}.{meant}", name=name)

    return missing


def public_names(namespace: dict[str, Any]) -> Callable[[], list[str]]:
    """Return the ``__dir__`` of a module, which completion in a notebook reads: its own names, not what it imports.

    ``namespace`` is the module's ``globals()``. Its own names are those of ``__all__``, or without one what it made.
    """

    def listed() -> list[str]:
        if "__all__" in namespace:
            return sorted(namespace["__all__"])
        home = namespace["__name__"]
        public = {name: value for name, value in namespace.items() if not name.startswith("_")}
        # A constant belongs to no module; what an import brings does, or is a module itself.
        own = {name for name, value in public.items() if getattr(value, "__module__", home) == home}
        return sorted(own - {name for name in own if isinstance(public[name], type(sys))} - {"TYPE_CHECKING"})

    return listed
