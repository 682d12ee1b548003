"""What an edit is told wherever it acts: its own fields as selectors, what it counts, and what it remembers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Protocol, TypeVar, cast

from sinkscope.attention.primitives import Tally
from sinkscope.edits.tokens import Tokens

T = TypeVar("T")


class Selecting(Protocol):
    """What is needed of an edit to resolve its selectors and to count what it does."""

    conditional: ClassVar[bool]

    def heads_in(self, layer: int, total: int) -> tuple[int, ...]:
        """Return the heads of ``layer`` on which the edit acts."""
        ...


class Memory:
    """What one edit remembers during one generation: one object of each class that it asks for."""

    def __init__(self) -> None:
        self._states: dict[type, object] = {}

    def of(self, kind: type[T]) -> T:
        """Return the object of this class, made without arguments when first asked for."""
        return cast(T, self._states.setdefault(kind, kind()))

    def clear(self) -> None:
        """Forget everything: a new prompt begins."""
        self._states.clear()


@dataclass(eq=False, kw_only=True)
class EditContext:
    """One edit in one forward pass.

    Attributes:
        edit: the edit.
        tokens: the prompts' tokens.
        tally: what the edit did so far in this run.
        memory: what it remembers of earlier passes of the same generation.
    """

    edit: Selecting
    tokens: Tokens
    tally: Tally = field(default_factory=Tally)
    memory: Memory = field(default_factory=Memory)

    def state(self, kind: type[T]) -> T:
        """Return what this edit remembers: one object of its own class, made when first asked for.

        It lives as long as one generation (or one pass without a cache), in all layers and sites, and is gone when the
        next prompt begins.
        """
        return self.memory.of(kind)

    def fire(self, rows: int) -> None:
        """Note that a conditional edit acted on ``rows`` rows."""
        self.tally.fired += rows
        self.tally.touched += rows
