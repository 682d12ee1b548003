"""What a function computes, as text: its byte code, constants and defaults, and the same of the functions it calls.

Whoever patches a model changes a class's method or a function beside it (``apply_rotary_pos_emb``); no weight, no
attribute and no class name says so.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

import torch
from transformers import PreTrainedModel

NUMBERS = (bool, int, float, complex, str, bytes, type(None), torch.dtype)
"""Types whose values are said as they are; of other constants only the type."""


class Bytecode:
    """Hashes functions and classes; each function is looked at once."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._seen: set[int] = set()

    def hexdigest(self) -> str:
        """Return the SHA-256 of all that was added, in hex."""
        return self._digest.hexdigest()

    def add_class(self, kind: type) -> None:
        """Add the functions and plain values of a class of modules and of those that it derives from.

        Torch's own and what every model of the library shares are left out: their versions say what they are.
        """
        for each in kind.__mro__:
            if each is PreTrainedModel or not issubclass(each, torch.nn.Module) or _of_torch(each):
                continue
            self._say(each.__qualname__)
            for name, value in sorted(vars(each).items()):
                if not name.startswith("_") or not isinstance(value, NUMBERS):
                    self._say(name)
                    self.add(value)

    def add(self, value: Any) -> None:
        """Add a function with all that it calls in its own library, or a plain value; nothing of other objects."""
        if isinstance(value, FunctionType):
            if id(value) not in self._seen:
                self._seen.add(id(value))
                self._function(value)
        elif isinstance(value, NUMBERS):
            self._say(repr(value))
        else:
            for inner in _inside(value):
                self.add(inner)

    def _function(self, function: FunctionType) -> None:
        self._code(function.__code__)
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self.add(value)
        for cell in function.__closure__ or ():
            self.add(_content(cell))
        if _of_torch(function):
            return
        for name in sorted(_names(function.__code__)):
            value = function.__globals__.get(name)
            if isinstance(value, FunctionType | float | int):  # a text may be a new one in each process
                self._say(name)
                self.add(value)

    def _code(self, code: CodeType) -> None:
        self._digest.update(code.co_code)
        self._say(repr((code.co_names, code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])))
        for value in code.co_consts:
            self._code(value) if isinstance(value, CodeType) else self._say(_constant(value))

    def _say(self, text: str) -> None:
        self._digest.update(f"{text};".encode())


def _of_torch(value: Any) -> bool:
    return str(value.__module__).partition(".")[0] == "torch"


def _inside(value: Any) -> Iterator[Any]:
    """Functions that a decorator, a property, a bound method or a partial holds."""
    for name in ("__wrapped__", "__func__", "fget", "func"):
        inner = getattr(value, name, None)
        if isinstance(inner, FunctionType):
            yield inner
    if isinstance(value, functools.partial):
        yield from (*value.args, *value.keywords.values())


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _names(code: CodeType) -> set[str]:
    inner = [each for each in code.co_consts if isinstance(each, CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _constant(value: Any) -> str:
    if isinstance(value, frozenset):  # its order is another one in each process
        return str(sorted(_constant(each) for each in value))
    if isinstance(value, tuple):
        return str([_constant(each) for each in value])
    return repr(value) if isinstance(value, NUMBERS) else type(value).__qualname__
