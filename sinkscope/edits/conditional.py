"""Edits that act only on what they find: VAR (visual sinks of a row) and ACT (sinks of a head)."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float

from sinkscope.attention.primitives import Tally
from sinkscope.attention.tile import Tile
from sinkscope.edits.base import AttentionEdit, Hidden
from sinkscope.edits.call import EditedCall
from sinkscope.edits.selectors import whole_numbers
from sinkscope.edits.stream import EditedStream
from sinkscope.errors import EditError
from sinkscope.models.backends.base import Tower

TIE = 1e-6
"""Shares this close to a threshold count as having reached it: sums of float32 weights are no more exact."""


@dataclass
class FoundTokens:
    """Tokens found in the prompt and after it, by residual site: (batch, key) over all positions so far."""

    at_site: dict[str, Bool[torch.Tensor, "batch key"]] = field(default_factory=dict[str, torch.Tensor])


@dataclass
class FoundKeys:
    """Keys found in each head of the prompt, by layer and call: (batch, head, key)."""

    at: dict[tuple[int, int], Bool[torch.Tensor, "batch head key"]] = field(
        default_factory=dict[tuple[int, int], torch.Tensor]
    )


@dataclass
class MoveShare:
    """In rows that qualify, move a part of the weight on sinks to the other visual keys (Kang et al. 2025, VAR)."""

    sinks: Bool[torch.Tensor, "batch key"]
    image: Bool[torch.Tensor, "batch key"]
    rows: Bool[torch.Tensor, "batch query"]
    heads: Bool[torch.Tensor, " head"]
    edit: Redistribute
    tally: Tally

    def __call__(
        self, weights: Float[torch.Tensor, "flat query key"], tile: Tile
    ) -> Float[torch.Tensor, "flat query key"]:
        """Return the weights with the share moved; rows keep their sums."""
        sinks = self.sinks[tile.batch][:, None, tile.cols].to(weights.dtype)
        image = self.image[tile.batch][:, None, tile.cols].to(weights.dtype)
        receivers = image * (1 - sinks)
        mass, spare = (weights * image).sum(-1), (weights * receivers).sum(-1)
        on_sinks = (weights * sinks).sum(-1)
        where = self.rows[tile.batch, tile.rows] & self.heads[tile.head][:, None]
        where = where & (mass >= self.edit.min_image_mass - TIE) & (spare > 0) & (on_sinks > 0)
        share = spare / mass.clamp(min=1e-38)
        if self.edit.rule == "non_sink":
            where = where & (share >= self.edit.rho - TIE)
            moved = self.edit.p
        else:
            where = where & (1 - share <= self.edit.rho + TIE)
            moved = 1 - self.edit.p
        fired = int(where.sum())
        if not fired:
            return weights
        self.tally.fired += fired
        self.tally.touched += fired
        gain = 1 + moved * on_sinks / spare.clamp(min=1e-38)
        new = weights * (1 - moved * sinks + (gain[..., None] - 1) * receivers)
        return torch.where(where[..., None], new, weights)


@dataclass(frozen=True, repr=False)
class Redistribute(AttentionEdit):
    """Move attention from sinks to the other visual tokens in heads that look at the image (Kang et al. 2025, VAR).

    For each head and each row after the image: sinks are keys whose phi (:class:`sinkscope.SinkDims`, on the residual
    stream entering the layer, over ``dims`` or all dimensions) is at least ``tau``; text sinks are freed too. The row
    must give at least ``min_image_mass`` to visual tokens. ``rule="non_sink"`` (the paper) acts where the share of that
    mass on non-sinks is at least ``rho``, and moves the part ``p`` of the sinks' weight. ``rule="sink"`` (the released
    code) acts where the sink share is at most ``rho``, and ``p`` is the part a sink keeps. Rows keep their sums. A
    layer whose prompt has no visual sink, layers before ``start_layer`` and, with ``skip_last``, the last layer are
    left alone. At decoding steps keys of the prompt keep their phi, and each new token gets its own.
    """

    papers = ("kang2025",)
    conditional: ClassVar[bool] = True
    p: float = 0.6
    _: KW_ONLY
    rho: float = 0.5
    min_image_mass: float = 0.2
    tau: float = 20.0
    dims: Any = None
    rule: str = "non_sink"
    skip_last: bool = True
    start_layer: int = 2

    def __post_init__(self) -> None:
        """Check the numbers, the rule and the selectors."""
        for name in ("p", "rho", "min_image_mass"):
            self._number(name, 0.0, 1.0)
        self._number("tau", low=0.0)
        self._choice("rule", ("non_sink", "sink"))
        (start,) = whole_numbers([self.start_layer], self._asked("start_layer"), "start_layer")
        if start < 0:
            raise EditError(f"{self._asked('start_layer')}: start_layer must be a layer number of at least 0.")
        self._set("start_layer", start)
        if self.dims is not None:
            self._set("dims", whole_numbers(self.dims, self._asked("dims"), "dims"))
        super().__post_init__()

    @property
    def identity(self) -> bool:
        """Nothing is moved."""
        return self.p == (0.0 if self.rule == "non_sink" else 1.0)

    def check(self, tower: Tower) -> None:
        """Refuse layers, heads and dimensions that do not exist."""
        super().check(tower)
        wrong = [d for d in self.dims or () if not 0 <= d < tower.d_model]
        if wrong:
            raise EditError(
                f"{self._asked('dims')}: the residual stream has dimensions 0..{tower.d_model - 1}. "
                "Name dimensions in that range, or None for all."
            )

    def layers_in(self, tower: Tower) -> tuple[int, ...]:
        """Return the named layers from ``start_layer`` on, the last one left out where asked."""
        last = tower.attention[-1].layer
        named = super().layers_in(tower)
        return tuple(n for n in named if n >= self.start_layer and not (self.skip_last and n == last))

    def sites_in(self, tower: Tower) -> tuple[str, ...]:
        """Return the inputs of the layers it acts in, where phi is read."""
        return tuple(_input_of(layer) for layer in self.layers_in(tower))

    def sinks(self, hidden: Hidden) -> Bool[torch.Tensor, "batch key"]:
        """Return the tokens whose phi reaches tau."""
        from sinkscope.probes.residual import PHI_EPSILON

        hidden = hidden.detach().float()
        scale = (hidden.square().mean(-1) + PHI_EPSILON).sqrt()
        entries = hidden if self.dims is None else hidden[..., list(self.dims)]
        return entries.abs().amax(-1) / scale >= self.tau

    def watch_residual(self, hidden: Hidden, stream: EditedStream) -> None:
        """Find the sinks at a layer's input; at decoding steps keys of the prompt keep what was found."""
        found, known = self.sinks(hidden), stream.state(FoundTokens).at_site
        if stream.offset > 0 and stream.site in known:
            found = torch.cat([known[stream.site], found], dim=1)
        known[stream.site] = found

    def change_attention(self, call: EditedCall) -> None:
        """Move weights where the prompt has a visual sink."""
        found = call.state(FoundTokens).at_site.get(_input_of(call.layer))
        if found is None:
            return
        image = call.tokens.named("image")
        width = image.shape[1]
        # Rows of padding have no phi; a batch row without a visual sink is left alone as a whole.
        real = call.tokens.batch.real.repeat_interleave(len(found) // len(image), 0)
        found = torch.cat([found[:, :width] & real, found[:, width:]], dim=1)
        visual = found[:, :width] & image.repeat_interleave(len(found) // len(image), 0)
        found = found & visual.any(-1, keepdim=True)
        if not bool(found.any()):
            return
        rows = call.queries("after_image")
        assert rows is not None
        sinks, image = call.along_keys(found, False), call.along_keys(image, False)
        call.written.weights.append(MoveShare(sinks, image, rows, call.heads, self, call.tally))


def _input_of(layer: int) -> str:
    """The residual site that a layer's block reads."""
    return f"{layer - 1}.post" if layer > 0 else "embed"


@dataclass
class DampSinks:
    """Multiply the weight on detected keys by ``beta`` and give what is freed to the others (Yu et al. 2024, ACT)."""

    sinks: Bool[torch.Tensor, "batch head key"]
    rows: Bool[torch.Tensor, "batch query"] | None
    beta: float
    tally: Tally

    def __call__(
        self, weights: Float[torch.Tensor, "flat query key"], tile: Tile
    ) -> Float[torch.Tensor, "flat query key"]:
        """Return the weights with the sinks damped; rows keep their sums."""
        sinks = self.sinks[tile.batch, tile.head][:, None, tile.cols].to(weights.dtype)
        share = (weights * sinks).sum(-1)
        rest = (weights * (1 - sinks)).sum(-1)
        where = share > 0
        if self.rows is not None:
            where = where & self.rows[tile.batch, tile.rows]
        self.tally.spared += int((where & (rest <= 0)).sum())
        where = where & (rest > 0)
        fired = int(where.sum())
        if not fired:
            return weights
        self.tally.fired += fired
        self.tally.touched += fired
        gain = 1 + (1 - self.beta) * share / rest.clamp(min=1e-38)
        new = weights * torch.where(sinks > 0, torch.full_like(gain, self.beta)[..., None], gain[..., None])
        return torch.where(where[..., None], new, weights)


@dataclass(frozen=True, repr=False)
class CalibrateSinks(AttentionEdit):
    """Damp the sinks of each head other than the initial token (Yu et al. 2024, ACT).

    Per prompt and head, sinks are keys whose mean attention over the queries that see them (``key_mass``, as the edits
    standing before this one leave it) exceeds ``threshold``. Their weight is multiplied by ``beta``; what is freed goes
    to all other keys, the initial token among them, in proportion. ``exempt="initial"`` spares the first token;
    ``"first_hit"`` (the released code) spares the first detected key, whichever it is. A row that sees only sinks is
    left unchanged. At decoding steps the sinks found in the prompt hold.
    """

    papers = ("yu2024",)
    conditional: ClassVar[bool] = True
    threshold: float = 0.1
    _: KW_ONLY
    beta: float = 0.4
    exempt: str = "initial"

    def __post_init__(self) -> None:
        """Check the numbers, the choice and the selectors."""
        self._number("threshold", low=0.0)
        self._number("beta", 0.0, 1.0)
        self._choice("exempt", ("initial", "first_hit"))
        super().__post_init__()

    @property
    def identity(self) -> bool:
        """Beta 1."""
        return self.beta == 1.0

    def change_attention(self, call: EditedCall) -> None:
        """Find the sinks in a first pass over the call, then damp them."""
        start, length = call.call.mask.kv_offset, call.call.key.shape[2]
        known = call.state(FoundKeys).at
        if call.diagonal <= 0 or call.place not in known:
            known[call.place] = torch.nn.functional.pad(self._detect(call), (start, 0))
        found = known[call.place]
        sinks = torch.nn.functional.pad(found, (0, max(0, start + length - found.shape[-1])))
        sinks = sinks[..., start : start + length]
        if bool(sinks.any()):
            call.written.weights.append(DampSinks(sinks, call.queries(), self.beta, call.tally))

    def _detect(self, call: EditedCall) -> Bool[torch.Tensor, "batch head key"]:
        stats = call.statistics("key_sum", "key_viewers")
        mass = stats["key_sum"] / stats["key_viewers"].clamp(min=1)[:, None]
        real = call.along_keys(call.tokens.batch.real, True)
        found = (mass > self.threshold) & real[:, None] & call.heads[None, :, None]
        if self.exempt == "initial":
            return found & ~call.along_keys(call.tokens.named("first"), False)[:, None]
        return found & (found.long().cumsum(-1) > 1)
