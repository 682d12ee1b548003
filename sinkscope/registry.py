"""The one list of everything that can be added: probes, statistics, edits, metrics, figures, methods, tasks, models.

    sk.registry.names("probe")               names of one kind
    sk.registry.get("probe", "key-mass")     the class, function or value of that name
    sk.registry.entries()                    everything, with a line about each and the package it comes from

Classes register when they are made (subclasses of ``Probe``, ``Edit``, ``Statistic``), functions by a decorator
(``@metric``, ``@figure``, ``@method``, ``@task``); both end in :func:`register`. Another package names the
module that does so in the entry-point group ``sinkscope``::

    [project.entry-points.sinkscope]
    my-probes = "my_package.probes"

What comes with sinkscope is imported when its kind is first asked for; plug-ins when a name is not found, or a kind is
listed. So ``import sinkscope`` imports nothing. Names are compared without case and separators: ``KeyMass`` and
``key-mass`` are one.
"""

from __future__ import annotations

import inspect
import re
import warnings
from abc import ABCMeta
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeVar

from sinkscope.arguments import RAW, misfit
from sinkscope.errors import (
    EditError,
    MetricError,
    ModelError,
    ProbeError,
    PromptError,
    SchemaError,
    SinkscopeError,
    did_you_mean,
    public_names,
)

GROUP = "sinkscope"
"""Entry-point group in which other packages name modules of theirs."""

T = TypeVar("T")


class PluginWarning(UserWarning):
    """A package that adds to sinkscope could not be imported; the message names it."""


@dataclass(frozen=True)
class Kind:
    """One kind of thing that can be added: what it is, where those of sinkscope are, the error of an unknown name."""

    what: str
    home: str
    error: type[SinkscopeError]


KINDS: dict[str, Kind] = {
    "probe": Kind("what to read", "sinkscope.probes", ProbeError),
    "statistic": Kind("what is kept of attention weights", "sinkscope.attention.reductions", ProbeError),
    "edit": Kind("what to change", "sinkscope.edits", EditError),
    "metric": Kind("numbers from a reading", "sinkscope.metrics", MetricError),
    "figure": Kind("pictures of a reading", "sinkscope.report", SchemaError),
    "method": Kind("procedures of the papers", "sinkscope.methods", SinkscopeError),
    "task": Kind("questions with known answers", "sinkscope.tasks", PromptError),
    "model": Kind("what can be loaded by name", "sinkscope.models.sources.named", ModelError),
}
"""Every kind by name."""


@dataclass(frozen=True)
class Entry:
    """One registered thing: kind, name, the thing itself, a line about it, and the module it is defined in."""

    kind: str
    name: str
    item: Any
    summary: str
    module: str

    @property
    def package(self) -> str:
        """Return the name of the package that the thing comes from."""
        return self.module.partition(".")[0]


_ENTRIES: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}
_PLUGINS_DONE = False


def kebab(name: str) -> str:
    """Return a name in lower case with hyphens: ``KeyMass`` and ``key_mass`` become ``key-mass``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_", "-", name).lower()


def register(
    kind: str, item: T, name: str | None = None, *, summary: str | None = None, module: str | None = None
) -> T:
    """Add a thing to the list and return it.

    Args:
        kind: one of ``KINDS``.
        item: a class, a function or a value.
        name: its name; that of the class or function if left out.
        summary: a line about it; the first of its docstring if left out.
        module: where it is defined; the module of the class or function if left out.

    Raises:
        SinkscopeError: no such kind; or the kind's own error: the name is taken. A class or function that is defined
            again under its own name (a cell of a notebook run twice) takes the place of the old one.
    """
    label = name or str(getattr(item, "__name__", ""))
    text = (getattr(item, "__doc__", None) or "").strip().partition("\n")[0] if summary is None else summary
    entry = Entry(kind_named(kind), label, item, text, module or str(getattr(item, "__module__", "")))
    if entry.package != GROUP:
        load(kind)  # so that a name of ours is taken, whichever is imported first
    known = _ENTRIES[kind].get(kebab(label))
    if known is not None and (known.module, known.name) != (entry.module, entry.name):
        raise KINDS[kind].error(
            f"{kind} {label!r}: {known.module} has {'an' if kind == 'edit' else 'a'} {kind} of this name already. "
            f"Choose another name, since readings keep {kind}s by name."
        )
    _ENTRIES[kind][kebab(label)] = entry
    return item


def method(name: str | None = None) -> Callable[[T], T]:
    """Return a decorator that registers a function as a method: a procedure made of probes, edits and metrics."""
    return lambda function: register("method", function, name)


def task(name: str | None = None) -> Callable[[T], T]:
    """Return a decorator that registers a function ``(*, calibration, test, seed) -> Task`` as a task."""
    return lambda function: register("task", function, name)


def names(kind: str) -> list[str]:
    """Return the names of a kind, those of sinkscope first, in the order in which they were added.

    Raises:
        SinkscopeError: no such kind.
    """
    return [entry.name for entry in entries(kind)]


def get(kind: str, name: str) -> Any:
    """Return the thing of that name.

    Raises:
        SinkscopeError: no such kind; or the kind's own error (``ProbeError``, ``EditError`` ...): no such name. The
            message says which there are.
    """
    found = _find(kind, name)
    if found is None:
        known = names(kind)
        raise KINDS[kind_named(kind)].error(
            f"{kind} {name!r}: there is no such {kind}. There are {', '.join(known)}.{did_you_mean(name, known)}"
        )
    return found.item


def entries(kind: str | None = None) -> list[Entry]:
    """Return everything of a kind, or of all kinds.

    Raises:
        SinkscopeError: no such kind.
    """
    wanted = list(KINDS) if kind is None else [kind_named(kind)]
    for each in wanted:
        load(each)
    _load_plugins()
    return [entry for each in wanted for entry in _ENTRIES[each].values()]


def load(kind: str) -> None:
    """Import what sinkscope itself has of a kind; costs nothing the second time."""
    import_module(KINDS[kind_named(kind)].home)


class Table(Mapping[str, Any]):
    """The things of one kind by name, as a mapping that is always complete; its order is that of :func:`names`."""

    def __init__(self, kind: str) -> None:
        self.kind = kind_named(kind)

    def __getitem__(self, name: str) -> Any:
        found = _find(self.kind, name)
        if found is None:
            raise KeyError(name)
        return found.item

    def __iter__(self) -> Iterator[str]:
        return iter(names(self.kind))

    def __len__(self) -> int:
        return len(entries(self.kind))


def probe_for(variable: str) -> str:
    """Return the shortest call of the probe that makes a variable, such as ``KeyMass()``, to be named in an error."""
    for cls in Table("probe").values():
        if variable in cls.variables:
            needed = [f for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
            shown = [f"{f.name}=[...]" if str(f.type).startswith("Sequence") else f"{f.name}=..." for f in needed]
            return f"{cls.__name__}({', '.join(shown)})"
    return f"the probe that makes {variable!r}"


def kind_named(name: str) -> str:
    """Return a kind by its name or its plural, ``probe`` or ``probes``.

    Raises:
        SinkscopeError: no such kind.
    """
    single = name if name in KINDS else name.removesuffix("s")
    single = "model" if single == "source" else single
    if single not in KINDS:
        raise SinkscopeError(
            f"kind {name!r}: there is no such kind. Kinds are {', '.join(KINDS)}.{did_you_mean(name, KINDS)}"
        )
    return single


def _find(kind: str, name: str) -> Entry | None:
    kind, wanted = kind_named(kind), kebab(name)
    for more in (lambda: None, lambda: load(kind), _load_plugins):
        more()
        if wanted in _ENTRIES[kind]:
            return _ENTRIES[kind][wanted]
    return None


def _load_plugins() -> None:
    """Import what other packages name in the entry-point group, once; one that fails is left out with a warning."""
    global _PLUGINS_DONE
    if _PLUGINS_DONE:
        return
    _PLUGINS_DONE = True
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except (Exception, SystemExit) as error:  # whatever a foreign module raises may not stop what is ours
            package = point.dist.name if point.dist is not None else point.value
            warnings.warn(
                f"the plug-in {point.name!r} of the package {package} was left out: {type(error).__name__}: {error}",
                PluginWarning, stacklevel=3,
            )  # fmt: skip


class Constructed(ABCMeta):
    """Metaclass of probes and edits: a missing, misspelt or surplus argument is an error of their kind, no TypeError.

    A class of it names that error in ``argument_error``.
    """

    argument_error: type[SinkscopeError] = SinkscopeError

    if not TYPE_CHECKING:  # a type checker shall see the dataclass's own arguments

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            """Make the value, once its arguments fit."""
            try:
                cls.__signature__.bind(*args, **kwargs)
            except TypeError as error:
                known = list(cls.__signature__.parameters)
                odd = next((name for name in kwargs if name not in known), "")
                meant = did_you_mean(odd, known) if odd else ""
                takes = f"It takes {', '.join(known)}." if known else "It takes no arguments."
                raise cls.argument_error(f"{cls.__name__}(): {error}. {takes}{meant}") from None
            try:
                value = super().__call__(*args, **kwargs)
            except RAW as error:  # NumPy's and torch's words for odd values
                given = cls.__signature__.bind(*args, **kwargs).arguments
                raise cls.argument_error(misfit(cls.__name__, given, error)) from error
            for field in fields(value):
                if isinstance(getattr(value, field.name), Iterator):  # empty at the second batch
                    raise cls.argument_error(
                        f"{cls.__name__}({field.name}=): a generator can be gone through only once. Give a list."
                    )
            for name in (f.name for f in fields(value) if f.init and f.type in ("bool", bool)):
                given = getattr(value, name)
                # A number or a text would be taken for true or false by whoever reads it, and stand in the reading.
                if not isinstance(given, bool):
                    raise cls.argument_error(f"{cls.__name__}({name}={given!r}): use True or False.")
            return value

    @property
    def __signature__(cls) -> inspect.Signature:
        """Return the arguments of the class, for help and completion."""
        own = inspect.signature(cls.__init__)
        return own.replace(parameters=list(own.parameters.values())[1:], return_annotation=own.empty)


__dir__ = public_names(globals())
