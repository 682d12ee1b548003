"""What each head writes into the residual stream for each key: |weight x value x W_O|, by the module's own map.

What stands between the heads and W_O is taken from the pass itself: nothing (nearly every model), a gate of each query
(Qwen3-Next, AFMoE), or a norm whose statistics are held at their value (BitNet). Anything else is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float

from sinkscope.attention import paths, seam
from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.rows import RowEdits, cut_call
from sinkscope.attention.statistic import CallFacts
from sinkscope.attention.tile import Tile
from sinkscope.attention.view import Context, LayerStats, Wants
from sinkscope.errors import UnsupportedModelError
from sinkscope.models.backends.base import AttentionSite
from sinkscope.models.backends.projections import Factor, write_norms

PAIRS = 1 << 24
"""Numbers formed at once where a gate of each query makes every pair of query and key a case of its own."""


@dataclass(eq=False)
class HeadOutputs:
    """The outputs of the heads of one site on their way to W_O, and what the module makes of them.

    ``calls`` are the site's calls with their edits (several where it attends window by window); ``made`` the outputs
    before any gate of an edit, ``given`` behind it; ``read`` what W_O reads; ``ones`` what it would read if every head
    gave ones. All are (batch, query, head, dim).
    """

    site: AttentionSite
    calls: list[tuple[Call, CallEdits | RowEdits | None]] = field(default_factory=list)
    made: list[torch.Tensor] = field(default_factory=list)
    given: list[torch.Tensor] = field(default_factory=list)
    read: torch.Tensor | None = None
    ones: torch.Tensor | None = None
    _compared: tuple[tuple[int, bool], bool] | None = None

    def watch(self, call: Call, edits: CallEdits | RowEdits | None) -> CallEdits | RowEdits:
        """Take note of a call; return its edits, with a look at the outputs before and behind their gates."""
        self.calls.append((call, edits))
        if isinstance(edits, RowEdits):
            return RowEdits([(rows, self._looking(each)) for rows, each in edits.parts])
        return self._looking(edits)

    def _looking(self, edits: CallEdits | None) -> CallEdits:
        edits = edits or CallEdits()

        def before(out: torch.Tensor) -> torch.Tensor:
            self.made.append(out.detach().clone())  # a copy: a module may gate in place
            return out

        def behind(out: torch.Tensor) -> torch.Tensor:
            self.given.append(out.detach().clone() if edits.gates else self.made[-1])
            return out

        return replace(edits, gates=[before, *edits.gates, behind])

    def whole(self, parts: Sequence[torch.Tensor]) -> Float[torch.Tensor, "batch query head dim"]:
        """Join the parts and windows of ``made`` or ``given``."""
        if len(parts) == 1:
            return parts[0].float()
        return torch.cat(list(parts), dim=0 if isinstance(self.calls[0][1], RowEdits) else 1).float()

    @property
    def edits(self) -> CallEdits | RowEdits | None:
        """The edits of the call; a window has the same for its own keys."""
        return self.calls[0][1]

    @property
    def plain(self) -> bool:
        """True where W_O reads the outputs of the heads as they are given."""
        seen = len(self.given), self.read is not None
        if self._compared is None or self._compared[0] != seen:
            self._compared = seen, self._compare()
        return self._compared[1]

    def _compare(self) -> bool:
        given = self.whole(self.given)
        if self.read is None or self.read.numel() != given.numel():
            return False
        read = self.read.reshape(given.shape).float()
        # Nearly every model reads them digit for digit, which one pass over them shows.
        return torch.equal(read, given) or torch.allclose(read, given, rtol=1e-3, atol=1e-6)

    @property
    def edit_gate(self) -> Float[torch.Tensor, "batch query head"] | None:
        """What edits multiply each head's output by; NaN where they put something else in its place; None for none."""
        if all(given is made for given, made in zip(self.given, self.made, strict=True)):
            return None
        made, given = self.whole(self.made), self.whole(self.given)
        size = made.square().sum(-1)
        scale = torch.where(size > 0, (made * given).sum(-1) / size, 1.0)
        left = (given - scale[..., None] * made).norm(dim=-1)
        replaced = (left > 5e-3 * given.norm(dim=-1)).any(1, keepdim=True)
        return scale.masked_fill(replaced, torch.nan)


def add_written(outputs: HeadOutputs, stats: LayerStats, factor: Factor, context: Context | None) -> None:
    """Turn the values behind ``write_norm`` into norms of what each head writes for each key, (batch, head, key).

    Where a gate makes the norm differ from query to query it is the mean by attention, so that the attention a key gets
    times its norm is what is written for it. Heads whose output an edit replaced write nothing for a key: NaN.

    Raises:
        UnsupportedModelError: what stands between the heads and W_O is neither a gate nor a norm.
    """
    value = _edited_values(outputs.edits, stats["write_norm"].float(), factor.shape[0])
    edited = outputs.edit_gate
    if outputs.plain and edited is None:
        norms = write_norms(factor, value)
    else:
        gate = torch.ones_like(outputs.whole(outputs.made)) if outputs.plain else _gate_of(outputs)
        gate = gate if edited is None else gate * edited[..., None]
        value = value.repeat_interleave(factor.shape[0] // value.shape[1], dim=1)
        shared = _shared_gate(gate)
        if shared is not None:
            by_query, by_dim = shared
            norms = write_norms(factor * by_dim[:, None], value)
            norms = norms * _mean_over_tiles(outputs, context, lambda weights, tile: _scaled(weights, tile, by_query))
        else:
            norms = _mean_over_tiles(
                outputs, context, lambda weights, tile: _pairwise(weights, tile, factor, gate, value)
            )
    stats["write_norm"] = norms


def _gate_of(outputs: HeadOutputs) -> Float[torch.Tensor, "batch query head dim"]:
    """What each entry of the heads' outputs is multiplied by on its way to W_O, norms held at their statistics."""
    given, site = outputs.whole(outputs.given), outputs.site
    refused = UnsupportedModelError(
        f"Contribution(): layer {site.layer} ({site.path}) does more to the outputs of its heads before W_O than scale "
        "them by a gate or a norm, so what one key writes is not defined. Use ValueNorm() instead."
    )
    sizes = {given.numel(), *(0 if t is None else t.numel() for t in (outputs.read, outputs.ones))}
    if len(sizes) > 1 or len(outputs.calls) > 1 or outputs.read is None or outputs.ones is None:
        raise refused
    read, gate = outputs.read.float().reshape(given.shape), outputs.ones.float().reshape(given.shape)
    parts = gate * given
    # A norm scales all entries of a head by one number of the query, which is what is left when the gate is known.
    size = parts.square().sum(-1, keepdim=True)
    scale = (read * parts).sum(-1, keepdim=True) / size.clamp(min=torch.finfo(torch.float32).tiny)
    if not bool((read - scale * parts).norm() <= 5e-3 * read.norm()):
        raise refused
    return scale * gate


def _shared_gate(gate: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The gate as (batch, head, query) times (head, dim), where every query's gate has one shape."""
    flat = gate.flatten(0, 1)
    largest = flat.abs().nan_to_num(0.0).flatten(2).amax(-1).argmax(0)
    by_dim = torch.stack([flat[row, head] for head, row in enumerate(largest.tolist())])
    by_query = torch.einsum("bqhd,hd->bhq", gate, by_dim) / by_dim.square().sum(-1).clamp(min=1e-30)[:, None]
    product = torch.einsum("bhq,hd->bqhd", by_query, by_dim)
    close = torch.allclose(product, gate, rtol=1e-4, atol=1e-6, equal_nan=True)
    return (by_query.abs(), by_dim) if close else None


def _edited_values(
    edits: CallEdits | RowEdits | None, value: Float[torch.Tensor, "batch kv_head key dim"], heads: int
) -> Float[torch.Tensor, "batch head_or_kv key dim"]:
    """The values as edits leave them, for each head where an edit changed any."""
    parts = edits.parts if isinstance(edits, RowEdits) else [(slice(None), edits)]
    if not any(part and part.values for _, part in parts):
        return value
    value = value.repeat_interleave(heads // value.shape[1], dim=1).clone()
    for rows, part in parts:
        for change in part.values if part else ():
            value[rows] = change.apply(value[rows])
    return value


def _mean_over_tiles(
    outputs: HeadOutputs,
    context: Context | None,
    reduce: Callable[[Float[torch.Tensor, "flat query key"], Tile], Float[torch.Tensor, "flat key"]],
) -> Float[torch.Tensor, "batch head key"]:
    """Run the call again; return what ``reduce`` makes of the weights of real queries, per attention of the key."""
    call = outputs.calls[0][0]
    batch, heads, keys = call.key.shape[0], call.query.shape[1], call.key.shape[2]
    context = context or seam.everything_real(call.key)
    real = CallFacts.of(call, context).real_queries.float().expand(batch, -1)
    total = torch.zeros(2, batch, heads, keys, device=call.query.device)

    def looking(edits: CallEdits | None, first: int) -> CallEdits:
        def look(weights: torch.Tensor, tile: Tile) -> torch.Tensor:
            where = replace(tile, batch=tile.batch + first)
            counted = weights.detach() * real[where.batch][:, tile.rows, None]
            total[0, where.batch, tile.head, tile.cols] += reduce(counted, where)
            total[1, where.batch, tile.head, tile.cols] += counted.sum(1)
            return weights

        edits = edits or CallEdits()
        return replace(edits, weights=[*edits.weights, look], gates=[])

    parts = outputs.edits.parts if isinstance(outputs.edits, RowEdits) else [(slice(0, batch), outputs.edits)]
    for span, edits in parts:
        part = call if len(parts) == 1 else cut_call(call, span)
        with _uncounted(edits):
            paths.attend(part, Wants(), context, looking(edits, span.start))
    return torch.where(total[1] > 0, total[0] / total[1], total[0])


@contextmanager
def _uncounted(edits: CallEdits | None) -> Iterator[None]:
    """Leave the edits' tallies as they are: a call that is run a second time was edited once."""
    changes = [*edits.biases, *edits.weights, *edits.values] if edits else []
    tallies = [getattr(getattr(change, "target", change), "tally", None) for change in changes]
    before = [(tally, replace(tally)) for tally in tallies if tally is not None]
    try:
        yield
    finally:
        for tally, kept in before:
            vars(tally).update(vars(kept))


def _scaled(weights: torch.Tensor, tile: Tile, by_query: torch.Tensor) -> Float[torch.Tensor, "flat key"]:
    return torch.einsum("fqk,fq->fk", weights, by_query[tile.batch, tile.head][:, tile.rows])


def _pairwise(
    weights: torch.Tensor, tile: Tile, factor: Factor, gate: torch.Tensor, value: torch.Tensor
) -> Float[torch.Tensor, "flat key"]:
    """Sum of weight x |R (gate of the query x value of the key)|, a few queries at a time."""
    total = torch.zeros_like(weights[:, 0])
    for i, (batch, head) in enumerate(zip(tile.batch.tolist(), tile.head.tolist(), strict=True)):
        keys = value[batch, head, tile.cols]
        step = max(1, PAIRS // (factor.shape[1] * len(keys)))
        gates = gate[batch, tile.rows, head]
        for start in range(0, len(gates), step):
            maps = factor[head] * gates[start : start + step, None]
            norms = torch.linalg.vector_norm(maps @ keys.T, dim=1)
            total[i] += (weights[i, start : start + step] * norms).sum(0)
    return total


class Reader:
    """Hooks of one pass that see what W_O reads, and ask the module what it would make of ones.

    ``at`` gives the outputs that are under way, or None where nothing is wanted.
    """

    def __init__(
        self, model: torch.nn.Module, sites: Sequence[AttentionSite], at: Callable[[], HeadOutputs | None]
    ) -> None:
        self.model, self.sites, self.at = model, sites, at
        self.asking = False
        self.handles: list[Any] = []
        self._given: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def open(self) -> None:
        """Place the hooks."""
        outputs = {s.output_path for s in self.sites if s.output_path is not None}
        for path in outputs:
            module = self.model.get_submodule(path)
            self.handles.append(module.register_forward_pre_hook(self._on_read))
        for path in {_common(self.model, s) for s in self.sites if s.output_path is not None}:
            module = self.model.get_submodule(path)
            self.handles.append(module.register_forward_pre_hook(self._on_start, with_kwargs=True))
            self.handles.append(module.register_forward_hook(self._on_end))

    def close(self) -> None:
        """Take them out."""
        for handle in self.handles:
            handle.remove()
        self._given.clear()

    def _on_read(self, _: torch.nn.Module, args: tuple[Any, ...]) -> None:
        outputs = self.at()
        if outputs is None or not args:
            return
        if self.asking:
            outputs.ones = args[0].detach()
        elif outputs.read is None:
            outputs.read = args[0].detach()

    def _on_start(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._given[id(module)] = args, kwargs

    def _on_end(self, module: torch.nn.Module, _args: Any, _output: Any) -> None:
        args, kwargs = self._given.pop(id(module), ((), {}))
        outputs = self.at()
        if self.asking or outputs is None or outputs.read is None or not outputs.given or outputs.plain:
            return
        self.asking = True
        try:
            ones = CallEdits(gates=[torch.ones_like])
            with torch.no_grad(), seam.replaced(seam.Session(edits=lambda _module, _call: ones)):
                module.forward(*args, **kwargs)
        finally:
            self.asking = False


def _common(model: torch.nn.Module, site: AttentionSite) -> str:
    """Path of the smallest module that holds both the attention call and W_O."""
    assert site.output_path is not None
    pairs = zip(site.path.split("."), site.output_path.split("."), strict=False)
    shared: list[str] = []
    for first, second in pairs:
        if first != second:
            break
        shared.append(first)
    while shared and isinstance(model.get_submodule(".".join(shared)), torch.nn.ModuleList):
        shared.pop()
    return ".".join(shared)
