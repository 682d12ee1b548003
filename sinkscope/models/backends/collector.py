"""Turning the calls that modules make in one pass into statistics of attention sites."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from sinkscope.attention import seam
from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.rows import RowEdits
from sinkscope.attention.view import LayerStats, Wants, join
from sinkscope.errors import UnsupportedModelError
from sinkscope.models.backends.base import AttentionSite, Instruments, Tower
from sinkscope.models.backends.projections import Factor
from sinkscope.models.backends.written import HeadOutputs, Reader, add_written


class Collector:
    """Joins the windows of a call, tells apart the sites of one module, and adds what the heads write.

    A module may stand for several layers (ALBERT, Zamba) or be called twice in one (DiffLlama); its calls then come in
    the order of its sites. A module with one site may be called once for each window or image.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tower: Tower,
        instruments: Instruments,
        factor_of: Callable[[AttentionSite], Factor | None],
    ) -> None:
        self.model, self.tower, self.instruments, self.factor_of = model, tower, instruments, factor_of
        self.sites: dict[int, list[AttentionSite]] = {}
        for site in tower.attention:
            self.sites.setdefault(id(model.get_submodule(site.path)), []).append(site)
        self.count: dict[int, int] = {}
        self.pending: tuple[AttentionSite, list[LayerStats]] | None = None
        self.outputs: HeadOutputs | None = None
        self.session = seam.Session(
            wants=self._wants, context=instruments.context, edits=self._edits, collect=self._collect
        )

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While a pass runs inside, see what output projections read, where a contribution is wanted."""
        wanted = [site for site in self.tower.attention if self._writes(site)]
        reader = Reader(self.model, wanted, lambda: self.outputs)
        try:
            if wanted:
                reader.open()
            yield
        finally:
            reader.close()

    def site_of(self, module: torch.nn.Module) -> AttentionSite | None:
        """Site that the next call of ``module`` belongs to; None where the tower has none."""
        sites = self.sites.get(id(module))
        return None if sites is None else sites[self.count.get(id(module), 0) % len(sites)]

    def flush(self) -> None:
        """Hand over the site whose calls are complete."""
        if self.pending is not None:
            site, calls = self.pending
            self.pending = None
            stats = join(calls, self.instruments.wants[site.layer])
            factor = self.factor_of(site) if self._writes(site) else None
            if self.outputs is not None and factor is not None:
                add_written(self.outputs, stats, factor, self.instruments.context)
            self.instruments.collect(site, stats)

    def _writes(self, site: AttentionSite) -> bool:
        return "write_norm" in self.instruments.wants.get(site.layer, Wants())

    def _wants(self, module: torch.nn.Module) -> Wants:
        site = self.site_of(module)
        return Wants() if site is None else self.instruments.wants.get(site.layer, Wants())

    def _edits(self, module: torch.nn.Module, call: Call) -> CallEdits | RowEdits | None:
        site = self.site_of(module)
        if site is None:
            return None
        self._refuse_other_keys(site, call)
        self.count[id(module)] = self.count.get(id(module), 0) + 1
        asked = self.instruments.edits
        edits = None if asked is None else asked(site.layer, replace(call, index=site.call))
        if not self._writes(site):
            return edits
        if self.outputs is None or self.outputs.site is not site:
            self.flush()
            self.outputs = HeadOutputs(site)
        return self.outputs.watch(call, edits)

    def _refuse_other_keys(self, site: AttentionSite, call: Call) -> None:
        """What is read is by token: an encoder that pads to blocks has keys that are none (Granite Speech)."""
        context = self.instruments.context
        if context is None or not self.instruments.wants.get(site.layer, Wants()).anything:
            return
        keys, tokens = call.key.shape[2], context.real.shape[1]
        if keys > tokens:
            raise UnsupportedModelError(
                f"{type(self.model).__name__}: layer {site.layer} attends to {keys} keys, and its input has {tokens} "
                "tokens: it pads or packs them by itself, so which key is which token is not known. Take its maps "
                "from the model itself (output_attentions=True), where it returns them."
            )

    def _collect(self, module: torch.nn.Module, stats: LayerStats) -> None:
        sites = self.sites[id(module)]
        site = sites[(self.count.get(id(module), 1) - 1) % len(sites)]
        if self.pending is not None and self.pending[0] is not site:
            self.flush()
        if self.pending is None:
            self.pending = (site, [])
        self.pending[1].append(stats)
