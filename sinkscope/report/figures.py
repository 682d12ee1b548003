"""The figures of a reading by name: which variables each needs, and how it is drawn. Used by the page and the CLI."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import xarray as xr

from sinkscope import registry
from sinkscope.arguments import is_iterable
from sinkscope.errors import SchemaError, did_you_mean
from sinkscope.metrics.base import probe_for
from sinkscope.report.sinks import Sinks, find_sinks
from sinkscope.schema import require_dataset

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Draw = Callable[[xr.Dataset, Sinks | None], "Axes"]
"""Draws one figure of a reading; gets the sinks that were found in it, if any were looked for."""


@dataclass(frozen=True)
class ReadingFigure:
    """One figure: its heading, the variables it needs, what it shows in a sentence, and how it is drawn."""

    heading: str
    needs: tuple[str, ...]
    says: str
    draw: Draw


FIGURES: Mapping[str, ReadingFigure] = registry.Table("figure")
"""Every figure that can be drawn from a reading alone, by name."""


def figure(heading: str, *, needs: Sequence[str]) -> Callable[[Draw], Draw]:
    """Return a decorator that gives a drawing function its place on the command line and in the report.

    Args:
        heading: heading over it in the report.
        needs: variables and coordinates that a reading must hold.

    The function's docstring says what the figure shows, in the sentence that stands under it.
    """

    def decorate(draw: Draw) -> Draw:
        says = (draw.__doc__ or "").strip().partition("\n")[0]
        entry = ReadingFigure(heading, tuple(needs), says, draw)
        registry.register("figure", entry, draw.__name__, summary=f"{heading}. {says}", module=draw.__module__)
        return draw

    return decorate


def available(ds: xr.Dataset) -> list[str]:
    """Name the figures whose variables the reading holds.

    Raises:
        SchemaError: ``ds`` is no Dataset.
    """
    require_dataset(ds)
    return [name for name, each in FIGURES.items() if all(v in ds for v in each.needs)]


def chosen(ds: xr.Dataset, names: Sequence[str] | None = None) -> list[str]:
    """Check names of figures against a reading; None takes all that can be drawn.

    Raises:
        SchemaError: there is no such figure, or the reading lacks what it needs (the message names the probe).
    """
    require_dataset(ds)
    if names is None:
        return available(ds)
    given: Any = names
    listed: list[Any] = list(given) if is_iterable(given) else [given]
    for name in listed:
        if not isinstance(name, str) or name not in FIGURES:
            raise SchemaError(
                f"figure {name!r}: there is no such figure. Use one of {sorted(FIGURES)}."
                f"{did_you_mean(str(name), FIGURES)}"
            )
        missing = [v for v in FIGURES[name].needs if v not in ds]
        if missing:
            probes = ", ".join(dict.fromkeys(probe_for(v) for v in missing if not v.startswith("grid_")))
            todo = f"Add {probes} to the probes." if probes else "Measure prompts with images."
            raise SchemaError(f"figure {name!r} needs {missing}, which this reading lacks. {todo}")
    return listed


def draw(ds: xr.Dataset, name: str, *, sinks: Sinks | None = None) -> Axes:
    """Draw one figure of a reading by name, in the theme that is active, and return its axes.

    Args:
        ds: a reading without a dimension in front of ``prompt``.
        name: a key of ``FIGURES``.
        sinks: what ``find_sinks`` returned, if it is already known.

    Raises:
        SchemaError: there is no such figure, or the reading lacks what it needs.
    """
    chosen(ds, [name])
    if sinks is None and "key_mass" in ds:
        sinks = find_sinks(ds)
    return FIGURES[name].draw(ds, sinks)
