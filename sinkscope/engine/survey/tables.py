"""The statistics of one variable over many prompts: by position bucket, by role, and as histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from sinkscope.engine.survey.accumulators import Histogram, Index, Moments
from sinkscope.engine.survey.layout import SurveyLayout
from sinkscope.models.backends.base import AttentionSite
from sinkscope.prompts import Batch
from sinkscope.roles import ATTENDED_ROLES
from sinkscope.schema import Variable

if TYPE_CHECKING:
    from collections.abc import Iterator

BUCKETS = (0, 1, *(2**k for k in range(1, 21)))
"""First position of each bucket: 0, 1, 2 to 3, 4 to 7, and so on, each twice as long as the one before."""
UNIT_EDGES = np.concatenate([[np.float32(0.0)], (np.arange(1, 101) / 100).astype(np.float32)])
"""Bins of attention weights: hundredths, so that the share above a threshold of two digits is exact."""
LOG_EDGES = (2.0 ** (np.arange(-48, 129) / 4)).astype(np.float32)
"""Bins of all other magnitudes: four to an octave, from 2**-12 to 2**32, so that a quantile is right within 9 %."""

Parts = dict[str, NDArray[np.float64]]


def edges_of(variable: Variable) -> NDArray[np.float32]:
    """Return the bins of a variable's histogram."""
    return UNIT_EDGES if variable.units == "attention weight" else LOG_EDGES


class VariableTable:
    """What is kept of one variable: moments by position bucket and by role, and a histogram by position bucket.

    A variable without a token axis has one cell in the place of the buckets. Of discrete variables (indices) the values
    of rank 0 are counted instead.
    """

    def __init__(self, name: str, variable: Variable, layout: SurveyLayout, reduce: Sequence[str]) -> None:
        self.name, self.variable, self.layout = name, variable, layout
        dims = variable.dims[1:]
        self.stacked = bool(dims) and dims[0] in ("layer", "site")
        self.axes = dims[1:] if self.stacked else dims
        self.token_axis = next((i for i, dim in enumerate(self.axes) if dim in ("key", "query")), None)
        self.lead = tuple(dim for dim in self.axes if dim not in ("key", "query"))
        self.reduce = reduce
        self.moments: dict[str, Moments] = {}
        self.histogram: Histogram | None = None
        self.values: NDArray[np.int64] | None = None

    @property
    def dims(self) -> tuple[str, ...]:
        """Dims of the cells, buckets and roles left out."""
        call = ("call",) if self.stacked and self.variable.dims[1] == "layer" and self.layout.calls > 1 else ()
        return (*(self.variable.dims[1:2] if self.stacked else ()), *call, *self.lead)

    def add(self, found: torch.Tensor, batch: Batch, roles: NDArray[np.bool_], at: AttentionSite | int | None) -> None:
        """Add what one pass read of the prompts of ``batch``; ``roles`` says (prompt, token, role) which each has."""
        values = found.detach().float().cpu().numpy()
        if self.variable.discrete:
            self._count_values(values, at)
            return
        if self.token_axis is None:
            values = values[..., None]
        else:
            values = np.moveaxis(values, self.token_axis + 1, -1)
        here = (*self._place(at), *(slice(0, n) for n in values.shape[1:-1]))
        there = ~np.isnan(values)
        if self.token_axis is not None:
            there &= batch.real.cpu().numpy().reshape(len(values), *(1,) * (values.ndim - 2), -1)
        self._add_moments(values, there, roles, here)
        if "histogram" in self.reduce:
            self._add_histogram(values, there, here)

    def _add_moments(
        self, values: NDArray[np.float32], there: NDArray[np.bool_], roles: NDArray[np.bool_], here: Index
    ) -> None:
        tokens = self.token_axis is not None
        starts = [start for start in BUCKETS if start < values.shape[-1]] if tokens else [0]
        by = "position" if tokens else "all"
        table = self._table(by, values.shape[1:-1], len(BUCKETS) if tokens else 1)
        table.add(_by_bucket(values, there, starts), (*here, slice(0, len(starts))))
        if tokens and "roles" in self.reduce:
            table = self._table("role", values.shape[1:-1], len(ATTENDED_ROLES))
            for role in np.flatnonzero(roles.any((0, 1))).tolist():
                of_role = there & roles[:, :, role].reshape(len(values), *(1,) * (values.ndim - 2), -1)
                parts = _by_bucket(values, of_role, [0])
                table.add({name: part[..., 0] for name, part in parts.items()}, (*here, role))

    def _add_histogram(self, values: NDArray[np.float32], there: NDArray[np.bool_], here: Index) -> None:
        groups = len(BUCKETS) if self.token_axis is not None else 1
        if self.histogram is None:
            shape = (*self._shape(values.shape[1:-1]), groups)
            self.histogram = Histogram.zeros(shape, edges_of(self.variable))
        bucket = np.searchsorted(BUCKETS, np.arange(values.shape[-1]), side="right") - 1
        lead = np.arange(int(np.prod(values.shape[1:-1], dtype=np.int64))).reshape(*values.shape[1:-1], 1)
        cells = np.broadcast_to(lead * groups + bucket, values.shape)
        self.histogram.add(np.abs(values[there]), cells[there], (*here, slice(None)))

    def _count_values(self, values: NDArray[np.float32], at: AttentionSite | int | None) -> None:
        """Count whole numbers of rank 0, such as the dimension of the largest activation."""
        first = values[..., 0] if "rank" in self.lead else values
        if first.ndim != 1 or not self.stacked:
            return
        number = first[~np.isnan(first)].astype(np.int64)
        counts = np.bincount(number)
        if self.values is None:
            self.values = np.zeros((self._stack, 0), dtype=np.int64)
        self.values = _wide(self.values, len(counts))
        self.values[self._place(at)[0], : len(counts)] += counts

    @property
    def _stack(self) -> int:
        return len(self.layout.kinds if self.variable.dims[1] == "layer" else self.layout.sites)

    def _shape(self, lead: Sequence[int]) -> tuple[int, ...]:
        most = {"head": self.layout.heads, "kv_head": self.layout.kv_heads}
        sizes = [max(size, most.get(dim, 0)) for dim, size in zip(self.lead, lead, strict=True)]
        calls = (self.layout.calls,) if "call" in self.dims else ()
        return (*((self._stack,) if self.stacked else ()), *calls, *sizes)

    def _place(self, at: AttentionSite | int | None) -> tuple[int, ...]:
        if not self.stacked:
            return ()
        if isinstance(at, AttentionSite):
            return (at.layer, *((at.call,) if "call" in self.dims else ()))
        return (at or 0,)

    def _table(self, by: str, lead: Sequence[int], groups: int) -> Moments:
        if by not in self.moments:
            self.moments[by] = Moments.zeros((*self._shape(lead), groups))
        return self.moments[by]

    def join(self, other: VariableTable) -> None:
        """Add what was kept of other prompts."""
        for by, moments in other.moments.items():
            if by in self.moments:
                self.moments[by].join(moments)
            else:
                self.moments[by] = moments
        if self.histogram is None:
            self.histogram = other.histogram
        elif other.histogram is not None:
            self.histogram.join(other.histogram)
        if self.values is None:
            self.values = other.values
        elif other.values is not None:
            width = max(self.values.shape[-1], other.values.shape[-1])
            self.values = _wide(self.values, width) + _wide(other.values, width)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the content, to be stored."""
        found: dict[str, NDArray[np.generic]] = {
            f"moments/{by}/{part}": array
            for by, moments in self.moments.items()
            for part, array in moments.arrays().items()
        }
        if self.histogram is not None:
            found["histogram"] = self.histogram.counts
        if self.values is not None:
            found["values"] = self.values
        return found

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up content that was stored."""
        for by in dict.fromkeys(_groupings(arrays)):
            prefix = f"moments/{by}/"
            self.moments[by] = Moments({n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)})
        if "histogram" in arrays:
            counts = np.asarray(arrays["histogram"], dtype=np.int64)
            self.histogram = Histogram(counts, edges_of(self.variable))
        if "values" in arrays:
            self.values = np.asarray(arrays["values"], dtype=np.int64)


def _groupings(arrays: Mapping[str, NDArray[np.generic]]) -> Iterator[str]:
    return (name.split("/")[1] for name in arrays if name.startswith("moments/"))


def _wide(counts: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    return np.pad(counts, ((0, 0), (0, max(0, width - counts.shape[-1]))))


def _by_bucket(values: NDArray[np.float32], there: NDArray[np.bool_], starts: Sequence[int]) -> Parts:
    """Sum up the numbers that are there over prompts (the first axis) and over each bucket of the last one."""
    kept = np.where(there, values, np.float32(0)).astype(np.float64)
    # Summed over prompts first: then a few numbers are left to be cut into buckets.
    per_token = {"count": there.sum(0, dtype=np.float64), "sum": kept.sum(0), "squares": (kept * kept).sum(0)}
    parts = {name: np.add.reduceat(part, starts, axis=-1) for name, part in per_token.items()}
    low = np.where(there, values, np.float32(np.inf)).min(0)
    high = np.where(there, values, np.float32(-np.inf)).max(0)
    parts["smallest"] = np.minimum.reduceat(low, starts, axis=-1).astype(np.float64)
    parts["largest"] = np.maximum.reduceat(high, starts, axis=-1).astype(np.float64)
    return parts
