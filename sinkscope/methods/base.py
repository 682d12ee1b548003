"""The shape that every procedure has: settings fixed beforehand, and a result with a table, a figure and a citation.

    result = zerotune(model, task, ZeroTuningSettings(mode="entropy"))
    result.table()          # what was found, as a pandas frame
    result.plot()           # the figure that shows it
    print(result.cite())    # BibTeX of the paper, and of sinkscope

A procedure is a function: model first, then its data, then ``settings``, a frozen dataclass with a default for every
field, so that the call without settings is the paper's.
"""

from __future__ import annotations

import html
import json
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import xarray as xr

from sinkscope.definitions import cite

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


_ROWS = 20


def _short(value: float) -> str:
    return f"{value:.4g}"


class MethodResult(ABC):
    """What a procedure gives.

    Attributes:
        reference: keys of its papers in :mod:`sinkscope.references`.
        settings: what was fixed beforehand.
    """

    reference: ClassVar[tuple[str, ...]]
    settings: Any

    @abstractmethod
    def table(self) -> pd.DataFrame:
        """Return what was found, one row per finding, intervals and n beside each effect."""

    @abstractmethod
    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the figure that shows it, on ``ax`` or on axes of its own."""

    def __init_subclass__(cls) -> None:
        """Show every result as :meth:`__str__` does.

        The decorator ``dataclass`` keeps a ``__repr__`` that the class holds already. Its own would write out every
        array of the result.
        """
        cls.__repr__ = MethodResult.__str__

    def __str__(self) -> str:
        """Return the settings and the first rows of the table, as text."""
        table = self.table()
        rest = f"\n... {len(table) - _ROWS} more rows: .table()" if len(table) > _ROWS else ""
        return f"{type(self).__name__}: {self.settings}\n\n{table.head(_ROWS).to_string(float_format=_short)}{rest}"

    def _repr_html_(self) -> str:
        table = self.table()
        rest = f"<div>... {len(table) - _ROWS} more rows: <code>.table()</code></div>" if len(table) > _ROWS else ""
        head = f"<div><b>{type(self).__name__}</b> <code>{html.escape(str(self.settings))}</code></div>"
        return f"{head}{table.head(_ROWS).to_html(float_format=_short)}{rest}"

    def cite(self) -> str:
        """Return BibTeX of the papers behind the procedure, and of sinkscope."""
        return cite(xr.Dataset(attrs={"reference": json.dumps(self.reference)}))
