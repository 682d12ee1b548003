"""Arguments of public functions, checked against their annotations, so that a wrong one gives an error of ours."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import sys
import types
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, Literal, ParamSpec, TypeVar, Union, cast, get_args, get_origin

from sinkscope.errors import SinkscopeError

P = ParamSpec("P")
R = TypeVar("R")
Test = Callable[[Any], bool]

RAW = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError)
"""What Python, NumPy, xarray and torch raise for arrays whose shapes, dims or types do not fit each other."""
LARGEST_WHOLE = 1 << 63
"""Bound of whole numbers: what no array can hold is no number of draws either, which would never end."""
MOST = 1 << 21
"""How many numbers a list of layers, heads or positions may hold: the longest contexts are half of it."""


class ArrayOfNumbers:
    """Stands for ``ArrayLike`` while annotations are read; that name itself is a union of protocols."""


def checked(error: type[SinkscopeError]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that checks each argument against its annotation before a function runs.

    Numbers must be finite: every comparison with NaN is false, so that a threshold of NaN would find nothing, without a
    word. An annotation that cannot be read at run time is not checked. What the function then raises because arrays
    do not fit each other becomes an ``error`` too, with its cause.

    Args:
        error: class of the error; its message names the function, the argument, what was given and what is expected.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        name = getattr(function, "__name__", "function")

        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError:
                return function(*args, **kwargs)  # Python says itself what is missing or unknown
            for label, value, parameter, test in _pairs(function, signature, given):
                if value is not parameter.default and not test(value):
                    raise error(_message(name, label, value, str(parameter.annotation)))
            try:
                return function(*args, **kwargs)
            except RAW as raw:
                raise error(misfit(name, given, raw)) from raw

        return wrapped

    return decorate


def check_fields(value: Any, error: type[SinkscopeError]) -> None:
    """Check the fields of a dataclass against their annotations, as :func:`checked` does with arguments.

    Raises:
        error: names the class, the field, what was given and what is expected.
    """
    cls = type(value)
    tests = _tests(cls.__init__, cls.__module__)
    for field in fields(value):
        given = getattr(value, field.name)
        if given is not field.default and field.name in tests and not tests[field.name](given):
            raise error(_message(cls.__name__, field.name, given, str(field.type)))


def _pairs(
    function: Callable[..., Any], signature: inspect.Signature, given: Mapping[str, Any]
) -> Iterable[tuple[str, Any, inspect.Parameter, Test]]:
    """Yield each argument that can be checked, with its test; those of ``**kwargs`` one by one."""
    tests = _tests(function)
    for name, value in given.items():
        if (test := tests.get(name)) is not None:
            parameter = signature.parameters[name]
            several = {name: value}
            if parameter.kind is parameter.VAR_KEYWORD:
                several = value
            elif parameter.kind is parameter.VAR_POSITIONAL:
                several = {f"{name}[{i}]": each for i, each in enumerate(value)}
            for label, each in several.items():
                yield label, each, parameter, test


@functools.cache
def _tests(function: Callable[..., Any], module: str = "") -> dict[str, Test]:
    """Return a test for each parameter whose annotation can be read; made when a function is first called."""
    inner = inspect.unwrap(function)
    # The constructor that a dataclass gets may have other globals than its module.
    known = vars(sys.modules[module]) if module else getattr(inner, "__globals__", {})
    names = {**known, "ArrayLike": ArrayOfNumbers}
    tests: dict[str, Test] = {}
    for parameter in inspect.signature(function).parameters.values():
        hint = parameter.annotation
        if isinstance(hint, str):
            try:
                hint = eval(hint, names)  # the source of this package, not what a user gave
            except (NameError, AttributeError, TypeError):
                continue  # a name imported for type checkers alone
        # A number beside a plain array cannot say that the array was empty, as the n of a labelled result does.
        tests[parameter.name] = _is_some_numbers if hint is ArrayOfNumbers else _test(hint)
    return tests


def _test(hint: Any) -> Test:
    """Return what says whether a value is what an annotation asks for; always true where it says nothing."""
    if hint in _PLAIN:
        return _PLAIN[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        parts = [_test(arg) for arg in args]
        return lambda value: any(part(value) for part in parts)
    if origin is Literal:
        return lambda value: isinstance(value, Hashable) and value in args
    if origin is tuple and args[-1:] != (Ellipsis,):
        parts = [_test(arg) for arg in args]
        return lambda value: is_listed(value) and len(value) == len(parts) and all(map(_call, parts, value))
    if origin in (tuple, list, Sequence, Iterable):
        one = _test(args[0])
        if origin is Iterable:
            return lambda value: is_iterable(value) and (not is_listed(value) or all(map(one, value)))
        return lambda value: is_listed(value) and all(map(one, value))
    if origin in (dict, Mapping):
        one, other = map(_test, args)
        return lambda value: isinstance(value, Mapping) and all(one(k) and other(v) for k, v in value.items())
    if (getattr(origin or hint, "__module__", ""), getattr(origin or hint, "__name__", "")) == ("numpy", "ndarray"):
        return lambda value: hasattr(value, "__array__")
    kind = origin or hint
    if not isinstance(kind, type) or (getattr(kind, "_is_protocol", False) and kind.__module__ != "collections.abc"):
        return lambda _: True  # protocols of this package are for type checkers
    return lambda value: isinstance(value, kind)


def _call(test: Test, value: Any) -> bool:
    return test(value)


def is_truth(value: object) -> bool:
    """Say whether a value is true or false, Python's or numpy's; the latter by name, so that nothing is imported."""
    kind = type(value)
    return kind is bool or (kind.__module__ == "numpy" and kind.__name__ in ("bool", "bool_"))


def is_whole(value: object) -> bool:
    """Say whether a value is a whole number; ``True`` and 1.0 are not."""
    return isinstance(value, Integral) and not is_truth(value)


def is_finite(value: object) -> bool:
    """Say whether a value is a finite number; ``True`` is not."""
    return math.isfinite(as_float(value))


def as_float(value: object) -> float:
    """Return a number as a float: NaN for what is none (``True``, a text), infinity for what is beyond every float."""
    if not isinstance(value, Real) or is_truth(value):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # a whole number of more than 309 digits
        return math.inf if cast("Any", value) > 0 else -math.inf


def _is_numbers(value: Any) -> bool:
    """Say whether an array, or nested lists, hold numbers or truth values alone."""
    if isinstance(value, str | bytes | Mapping):  # a reading's attribute "dtype" can be asked for as that of an array
        return False
    found: Any = getattr(value, "dtype", None)
    if getattr(value, "requires_grad", False):
        return False
    if found is None:
        try:
            import numpy as np

            found = np.asarray(value).dtype
        except (TypeError, ValueError):  # ragged
            return False
    return getattr(found, "kind", "f") in "biuf"  # the types of other array libraries have no kind


def _is_some_numbers(value: Any) -> bool:
    import numpy as np

    return _is_numbers(value) and 0 not in (value.shape if hasattr(value, "shape") else np.shape(value))


def is_listed(value: object) -> bool:
    """Say whether a value is a list of things: not a text, not a mapping."""
    if isinstance(value, str | bytes | Mapping) or getattr(value, "ndim", 1) == 0:
        return False
    return isinstance(value, Sequence) or all(hasattr(value, name) for name in ("__len__", "__getitem__", "__iter__"))


def whole_numbers(values: object) -> list[int] | None:
    """Return one whole number or several as a list; None where anything else is among them, or more than ``MOST``."""
    several = is_iterable(values) and not isinstance(values, Mapping)
    # A range or a generator may be without end.
    items: list[Any] = list(itertools.islice(cast("Iterable[Any]", values), MOST + 1)) if several else [values]
    return [int(item) for item in items] if len(items) <= MOST and all(map(is_whole, items)) else None


def is_iterable(value: object) -> bool:
    """Say whether a value can be gone through and is no text; an array without a dimension cannot."""
    return not isinstance(value, str | bytes) and isinstance(value, Iterable) and getattr(value, "ndim", 1) != 0


_PLAIN: dict[Any, Test] = {
    Any: lambda _: True,
    None: lambda value: value is None,
    type(None): lambda value: value is None,
    bool: is_truth,
    int: lambda value: is_whole(value) and abs(int(cast("Integral", value))) < LARGEST_WHOLE,
    float: is_finite,
    Hashable: lambda value: isinstance(value, Hashable),
    ArrayOfNumbers: _is_numbers,
}

_WORDS = {
    "xr.Dataset": ("a reading (xarray.Dataset)", "Pass what sinkscope.run returns."),
    "xr.DataArray": ("a labelled array (xarray.DataArray)", "Pass a variable of a reading, or what a metric returns."),
    "ArrayLike": ("an array of numbers, not empty", "Pass an array, or lists of equal length."),
    "Axes": ("matplotlib axes", "Leave it out for a new figure."),
    "bool": ("True or False", ""),
    "str": ("a text", ""),
    "None": ("None", ""),
}
_NUMBERS = {"float", "int", "None", "Sequence[int]", "Sequence[float]"}


def _message(name: str, label: str, value: object, annotation: str) -> str:
    kinds = [kind.strip() for kind in annotation.split("|")]
    if "ArrayLike" in kinds and getattr(value, "requires_grad", False):
        return f"{name}({label}=): a tensor that is part of a graph of gradients. Pass {label}.detach()."
    if set(kinds) <= _NUMBERS:
        whole = not {"float", "Sequence[float]"} & set(kinds)
        said = f"{name}({label}={shown(value)}): give {'a whole' if whole else 'a finite'} number"
        return f"{said}{' below 2^63' if whole and is_whole(value) else ''}."
    words = [_WORDS.get(kind, (kind, ""))[0] for kind in kinds if kind != "None"]
    hints = [_WORDS[kind][1] for kind in kinds if kind in _WORDS and _WORDS[kind][1]]
    found = _kind(value) if len(shown(value)) > 30 or hints else shown(value)
    asked = f"{name}({label}=)" if hints else f"{name}({label}={shown(value)})"
    return f"{asked}: expected {' or '.join(words)}, got {found}.{' ' if hints else ''}{' '.join(hints[:1])}"


def _kind(value: object) -> str:
    """Type of a value, of plain arrays their shape and number type too."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    words = f" of shape {tuple(shape)} and type {dtype}" if isinstance(shape, tuple) and dtype is not None else ""
    return type(value).__name__ + words


def misfit(name: str, given: Mapping[str, Any], raw: BaseException) -> str:
    """Say that arguments do not fit each other, with the shapes of the arrays among them and the words of ``raw``."""
    arrays = {label: value for label, value in given.items() if hasattr(value, "sizes") or hasattr(value, "shape")}
    seen = ", ".join(f"{label} {_shape(value)}" for label, value in arrays.items())
    told = " ".join(str(raw).split())[:160]
    return (
        f"{name}: what was given does not fit ({type(raw).__name__}: {told}).{f' Given: {seen}.' if seen else ''} "
        f"Compare with help of {name}."
    )


def _shape(value: Any) -> str:
    sizes: Mapping[Any, int] | None = getattr(value, "sizes", None)
    if isinstance(sizes, Mapping):
        return "(" + ", ".join(f"{dim} {size}" for dim, size in cast("Mapping[Any, int]", sizes).items()) + ")"
    return str(tuple(value.shape))


def shown(value: object) -> str:
    """Return a value for an error message: short, one line, whatever its ``repr`` does."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an object of a user's own
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
