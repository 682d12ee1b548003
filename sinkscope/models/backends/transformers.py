"""The primary backend: any transformers model whose attention goes through the library's attention interface.

What a model is made of is found by running one token (or one blank image): the modules that call the attention function
in order, the block each sits in, the projection that reads its output, and where the residual stream can be read.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float

from sinkscope.attention import seam
from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.rows import RowEdits
from sinkscope.attention.view import LayerStats, Wants, join
from sinkscope.errors import UnsupportedModelError
from sinkscope.models.backends import vision
from sinkscope.models.backends.base import (
    AttentionSite,
    Instruments,
    Output,
    ResidualHook,
    ResidualSite,
    Tower,
    add_written,
    carried,
)
from sinkscope.models.backends.discovery import discover, no_cache


class TransformersBackend:
    """Drives a ``transformers`` model in place; leaves it as it was after every pass."""

    name = "transformers"

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.why_not = ""
        self.towers: Mapping[str, Tower] = {}
        try:
            self.towers = vision.Towers(model, discover(model))
        except UnsupportedModelError as error:
            self.why_not = str(error)
        self.reading = "streaming" if self.towers else "none"
        self.edits = bool(self.towers)
        self.default_tower = next(iter(self.towers), "text")
        self._factors: dict[str, tuple[tuple[int, int], torch.Tensor]] = {}

    def forward(
        self, inputs: Mapping[str, torch.Tensor], tower: Tower, instruments: Instruments, logits: str | None = None
    ) -> Output:
        """Run the model once under ``instruments``; see :class:`sinkscope.models.backends.base.Backend`."""
        collector = _Collector(self, tower, instruments)
        alone = self._alone(tower, inputs)
        if alone is not None:
            vision.Portions(collector.session, collector.site_of)
        with ExitStack() as stack:
            stack.enter_context(self._hooked(tower, instruments, vision.rows_of(inputs)))
            session = None
            if instruments.wants or instruments.edits:
                session = stack.enter_context(seam.entered(self.model, collector.session))
            hidden, scores = self._run(inputs, logits) if alone is None else (_hidden(alone(**inputs)), None)
        collector.flush()
        return Output(hidden, scores, frozenset(session.paths if session else {"native"}))

    def _run(self, inputs: Mapping[str, torch.Tensor], logits: str | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        base = _headless(self.model, inputs)
        arguments = dict(inputs)
        if logits is None:
            return _hidden(base(**arguments, **no_cache(base))), None
        kept: list[torch.Tensor] = []
        # OPT's head calls the decoder inside the headless model, not that model itself.
        inner = [base, getattr(base, "decoder", None)]
        handles = [
            part.register_forward_hook(lambda _m, _a, out: kept.append(_hidden(out)))
            for part in inner
            if isinstance(part, torch.nn.Module)
        ]
        try:
            extra = no_cache(self.model)
            if logits == "last" and "logits_to_keep" in inspect.signature(self.model.forward).parameters:
                extra["logits_to_keep"] = 1
            out = self.model(**arguments, **extra)
        finally:
            for handle in handles:
                handle.remove()
        scores = getattr(out, "logits", None)
        return (kept[-1] if kept else _hidden(out)), scores

    def _alone(self, tower: Tower, inputs: Mapping[str, torch.Tensor]) -> torch.nn.Module | None:
        """The module to call where a tower inside the model is run by itself; None where the whole model is run."""
        root = vision.vision_root(self.model) if tower.name == vision.NAME and "input_ids" not in inputs else None
        return None if root is None else self.model.get_submodule(root)

    @contextmanager
    def _hooked(self, tower: Tower, instruments: Instruments, batch: int) -> Iterator[None]:
        handles = []
        try:
            residual = carried(instruments.residual)
            for site in tower.residual:
                hooks = residual.get(site.name, ())
                if hooks:
                    handles.append(_hook(self.model.get_submodule(site.path), site, hooks, batch))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def write_factor(self, site: AttentionSite) -> Float[torch.Tensor, "head rank dim"] | None:
        """Triangular factor of each head's slice of W_O: |R v| = |W_O v| at head width instead of model width."""
        if site.output_path is None:
            return None
        module: Any = self.model.get_submodule(site.output_path)
        state = id(module.weight), 0 if module.weight.is_inference() else module.weight._version
        if self._factors.get(site.output_path, (None,))[0] != state:
            weight = module.weight.detach().double()
            if weight.shape[0] == site.heads * site.head_dim and type(module).__name__ == "Conv1D":
                weight = weight.T
            per_head = weight.reshape(weight.shape[0], site.heads, site.head_dim).permute(1, 0, 2)
            self._factors[site.output_path] = state, torch.linalg.qr(per_head, mode="r").R.float()
        return self._factors[site.output_path][1]

    def vision_root(self) -> str | None:
        """Return the path of the vision part inside a larger model, or None."""
        return vision.vision_root(self.model)


class _Collector:
    """Turns module calls into statistics of attention sites: joins windows, tells apart the sites of one module.

    A module may stand for several layers (ALBERT, Zamba) or be called twice in one (DiffLlama); its calls then come in
    the order of its sites. A module with one site may be called once for each window or image.
    """

    def __init__(self, backend: TransformersBackend, tower: Tower, instruments: Instruments) -> None:
        model = backend.model
        self.tower, self.instruments, self.factor_of = tower, instruments, backend.write_factor
        self.sites: dict[int, list[AttentionSite]] = {}
        for site in tower.attention:
            self.sites.setdefault(id(model.get_submodule(site.path)), []).append(site)
        self.count: dict[int, int] = {}
        self.pending: tuple[AttentionSite, list[LayerStats]] | None = None
        self.session = seam.Session(
            wants=self._wants, context=instruments.context, edits=self._edits, collect=self._collect
        )

    def site_of(self, module: torch.nn.Module) -> AttentionSite | None:
        """Site that the next call of ``module`` belongs to; None where the tower has none."""
        sites = self.sites.get(id(module))
        return None if sites is None else sites[self.count.get(id(module), 0) % len(sites)]

    def _wants(self, module: torch.nn.Module) -> Wants:
        site = self.site_of(module)
        return Wants() if site is None else self.instruments.wants.get(site.layer, Wants())

    def _edits(self, module: torch.nn.Module, call: Call) -> CallEdits | RowEdits | None:
        site = self.site_of(module)
        if site is None:
            return None
        self.count[id(module)] = self.count.get(id(module), 0) + 1
        edits = self.instruments.edits
        return None if edits is None else edits(site.layer, replace(call, index=site.call))

    def _collect(self, module: torch.nn.Module, stats: LayerStats) -> None:
        sites = self.sites[id(module)]
        site = sites[(self.count.get(id(module), 1) - 1) % len(sites)]
        if self.pending is not None and self.pending[0] is not site:
            self.flush()
        if self.pending is None:
            self.pending = (site, [])
        self.pending[1].append(stats)

    def flush(self) -> None:
        """Hand over the site whose calls are complete."""
        if self.pending is not None:
            site, calls = self.pending
            self.pending = None
            stats = join(calls, self.instruments.wants[site.layer])
            add_written(stats, site, self.factor_of)
            self.instruments.collect(site, stats)


def _hook(module: torch.nn.Module, site: ResidualSite, hooks: Any, batch: int) -> Any:
    turns = itertools.count()

    def changed(hidden: torch.Tensor) -> torch.Tensor:
        return hidden if site.turn is not None and next(turns) != site.turn else read(hidden)

    def read(hidden: torch.Tensor) -> torch.Tensor:
        if hidden.ndim == 2:  # OPT flattens batch and tokens before its MLP
            return read(hidden.view(batch, -1, hidden.shape[-1])).flatten(0, 1)
        for hook in hooks:
            new = hook(hidden)
            hidden = hidden if new is None else new
        return hidden

    def before(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if site.argument is None or site.argument not in kwargs:
            return (changed(args[0]), *args[1:]), kwargs
        return args, kwargs | {site.argument: changed(kwargs[site.argument])}

    def after(_: torch.nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (changed(output[0]), *output[1:])
        return changed(output)

    if site.before:
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


def _hidden(output: Any) -> torch.Tensor:
    for name in ("last_hidden_state", "logits", "logits_per_image"):
        found = getattr(output, name, None)
        if found is not None:
            return found
    if isinstance(output, tuple) and output and isinstance(output[0], torch.Tensor):
        return output[0]
    raise UnsupportedModelError(
        f"the model returned {type(output).__name__} without a hidden state or logits. Pass one that returns either."
    )


def _headless(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """The model without its output layer; the model itself where that part takes no raw inputs (DINOv3's encoder).

    Of two encoders side by side (CLIP, SigLIP) the text part alone where no images are given.
    """
    base: Any = getattr(model, "base_model", model)
    if hasattr(base, "get_text_features") and hasattr(base, "text_model") and "pixel_values" not in inputs:
        return base.text_model
    return base if set(inputs) <= set(inspect.signature(base.forward).parameters) else model


__all__ = ["ResidualHook", "TransformersBackend"]
