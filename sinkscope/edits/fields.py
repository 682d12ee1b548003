"""An edit as a value: registered by its name, its fields checked, written as JSON and as the call that makes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, cast

from sinkscope import registry
from sinkscope.arguments import as_float, is_whole
from sinkscope.edits.values import asked, from_plain, is_empty, show, to_plain
from sinkscope.errors import EditError, did_you_mean

LARGEST = 3.4028234663852886e38
"""The largest number of float32, in which edits compute."""

EDITS: Mapping[str, type[Any]] = registry.Table("edit")
"""Every edit class by name, those of other packages too."""


@dataclass(frozen=True, repr=False)
class EditFields(metaclass=registry.Constructed):
    """A frozen dataclass whose values survive JSON; subclasses check their fields in ``__post_init__``."""

    argument_error = EditError

    def __init_subclass__(cls, *, abstract: bool = False) -> None:
        """Register the class by its name.

        Args:
            abstract: it is a base of edits, not an edit.

        Raises:
            EditError: another module has an edit of this name.
        """
        if abstract:
            return
        registry.register("edit", cls)

    @property
    def selects_nothing(self) -> bool:
        """True where a selection was written down empty; such an edit is left out of the run."""
        return any(is_empty(getattr(self, f.name)) for f in fields(self))

    def to_dict(self) -> dict[str, Any]:
        """Return the edit as JSON data: its name, and every field that is not at its default."""
        return {"edit": type(self).__name__} | {f.name: to_plain(v) for f, v in self._given()}

    @staticmethod
    def from_dict(data: Any) -> Any:
        """Return an edit made from what :meth:`to_dict` gave.

        Raises:
            EditError: no such edit or field.
        """
        given = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
        name = given.get("edit")
        cls = EDITS.get(str(name))
        if cls is None:
            raise EditError(
                f"edit {name!r}: there is no such edit. Edits are {sorted(EDITS)}.{did_you_mean(str(name), EDITS)}"
            )
        known = [f.name for f in fields(cls)]
        values = {k: from_plain(v) for k, v in given.items() if k != "edit"}
        wrong = sorted(set(values) - set(known))
        if wrong:
            raise EditError(
                f"{name}: there is no field {wrong[0]!r}. Its fields are {known}.{did_you_mean(wrong[0], known)}"
            )
        return cls(**values)

    def _asked(self, name: str) -> str:
        """Open a message: the edit's name and the field as it was given."""
        return asked(self, name)

    def _given(self) -> list[tuple[Field[Any], Any]]:
        """Fields that are required or differ from their default, positional ones first."""
        pairs = [(f, getattr(self, f.name)) for f in fields(self)]
        pairs = [(f, v) for f, v in pairs if f.default is MISSING or v != f.default]
        return sorted(pairs, key=lambda pair: bool(pair[0].kw_only))

    def __repr__(self) -> str:
        parts = [show(v) if not f.kw_only else f"{f.name}={show(v)}" for f, v in self._given()]
        return f"{type(self).__name__}({', '.join(parts)})"

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _number(self, name: str, low: float = -math.inf, high: float = math.inf, hint: str = "") -> None:
        """Check one number that is finite in float32 and keep it as a float."""
        value: Any = getattr(self, name)
        number = as_float(value)
        if not abs(number) <= LARGEST or not low <= number <= high:
            span = (" in float32" if LARGEST < abs(number) < math.inf else "") + _span(low, high)
            raise EditError(f"{self._asked(name)}: {name} must be a finite number{span}.{' ' + hint if hint else ''}")
        self._set(name, number)

    def _count(self, name: str) -> None:
        """Check a whole number of at least 1."""
        value: Any = getattr(self, name)
        if not is_whole(value) or not 1 <= value < 1 << 31:
            raise EditError(f"{self._asked(name)}: {name} must be a whole number of at least 1, below 2^31.")
        self._set(name, int(value))

    def _choice(self, name: str, allowed: tuple[str, ...]) -> None:
        if getattr(self, name) not in allowed:
            raise EditError(f"{self._asked(name)}: {name} must be one of {list(allowed)}.")


def _span(low: float, high: float) -> str:
    if math.isfinite(low) and math.isfinite(high):
        return f" from {low:g} to {high:g}"
    return f" of at least {low:g}" if math.isfinite(low) else ""
