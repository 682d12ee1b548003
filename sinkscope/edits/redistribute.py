"""VAR: give the attention that sinks take to the other tokens of the image, in heads that look at it."""

from __future__ import annotations

import math
import warnings
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
from sinkscope.errors import EditError, SinkscopeWarning
from sinkscope.models.backends.base import Tower

TIE = 1e-6
"""Shares this close to a threshold count as having reached it: sums of float32 weights are no more exact."""


@dataclass
class FoundTokens:
    """Tokens found in the prompt and after it, by residual site: (batch, key) over all positions so far."""

    at_site: dict[str, Bool[torch.Tensor, "batch key"]] = field(default_factory=dict[str, torch.Tensor])


@dataclass
class MoveShare:
    """In rows that qualify, move a part of the weight on sinks to other keys (Kang et al. 2025, VAR).

    ``to`` holds the keys that may receive, those of the image unless told otherwise.
    """

    sinks: Bool[torch.Tensor, "batch key"]
    image: Bool[torch.Tensor, "batch key"]
    rows: Bool[torch.Tensor, "batch query"]
    heads: Bool[torch.Tensor, " head"]
    edit: Redistribute
    tally: Tally
    to: Bool[torch.Tensor, "batch key"] | None = None

    def __call__(
        self, weights: Float[torch.Tensor, "flat query key"], tile: Tile
    ) -> Float[torch.Tensor, "flat query key"]:
        """Return the weights with the share moved; rows keep their sums."""
        sinks = self.sinks[tile.batch][:, None, tile.cols].to(weights.dtype)
        image = self.image[tile.batch][:, None, tile.cols].to(weights.dtype)
        clear = (weights * image * (1 - sinks)).sum(-1)
        receivers = image * (1 - sinks)
        if self.to is not None:
            receivers = self.to[tile.batch][:, None, tile.cols].to(weights.dtype) * (1 - sinks)
        mass, spare = (weights * image).sum(-1), (weights * receivers).sum(-1)
        on_sinks = (weights * sinks).sum(-1)
        where = self.rows[tile.batch, tile.rows] & self.heads[tile.head][:, None]
        # A head that hardly looks at the image is no visual head, however its small share is spread.
        where = where & (mass >= self.edit.min_image_mass - TIE) & (spare > 0) & (on_sinks > 0)
        share = clear / mass.clamp(min=1e-38)
        if self.edit.rule == "non_sink":
            where = where & (share >= self.edit.rho - TIE)
            moved = self.edit.p
        else:
            where = where & (1 - share <= self.edit.rho + TIE)
            # The released code keeps the part p on the sinks where the paper moves the part p away.
            moved = 1 - self.edit.p
        fired = int(where.sum())
        if not fired:
            return weights
        self.tally.fired += fired
        self.tally.touched += fired
        # In proportion to what they have: tokens the head did not look at get nothing out of nowhere.
        gain = 1 + moved * on_sinks / spare.clamp(min=1e-38)
        new = weights * (1 - moved * sinks + (gain[..., None] - 1) * receivers)
        return torch.where(where[..., None], new, weights)


@dataclass(frozen=True, repr=False)
class Redistribute(AttentionEdit):
    """Move attention from sinks to the other visual tokens in heads that look at the image (Kang et al. 2025, VAR).

    For each head and each row after the image: sinks are keys whose phi (:class:`sinkscope.SinkDims`, on the residual
    stream entering the layer, over ``dims`` or all dimensions) is at least ``tau``; text sinks are freed too. The row
    must give at least ``min_image_mass`` to visual tokens.

    ``rule="non_sink"`` (the paper) acts where the share of that mass on visual tokens that are no sinks is at least
    ``rho``, and moves the part ``p`` of the sinks' weight. ``rule="sink"`` (the released code) acts where the sink
    share is at most ``rho``, and ``p`` is the part a sink keeps. A layer whose prompt has no visual sink is left alone,
    as the released code does; the paper's formula gives a non-sink share of 1 there, so that text sinks are freed all
    the same: ``need_visual_sink=False``. The rules select the same rows as
    :func:`sinkscope.metrics.image_centric_heads`: its definition "paper" is ``"non_sink"`` with
    ``need_visual_sink=False``, its "released_code" is ``"sink"``.

    ``receivers`` says who gets what is freed: the ``"image"``'s other tokens, those of the ``"text"`` (all that are not
    visual), or ``"all"``; sinks receive nothing. Rows keep their sums. Layers before ``start_layer`` and, with
    ``skip_last``, the last layer are left alone. At decoding steps keys of the prompt keep their phi, and each new
    token gets its own. phi is at most the square root of the model's width: a ``tau`` beyond it never acts. The
    reading's ``edit_notes`` say so, with a warning where you chose such a ``tau``, and where a model is too shallow for
    ``start_layer``.
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
    receivers: str = "image"
    need_visual_sink: bool = True
    skip_last: bool = True
    start_layer: int = 2

    def __post_init__(self) -> None:
        """Check the numbers, the rule and the selectors."""
        for name in ("p", "rho", "min_image_mass"):
            self._number(name, 0.0, 1.0)
        self._number("tau", low=1e-30, hint="phi is never negative: tau=0 would call every token a sink.")
        self._choice("rule", ("non_sink", "sink"))
        self._choice("receivers", ("image", "text", "all"))
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
        """Refuse layers, heads and dimensions that do not exist.

        Warns:
            SinkscopeWarning: a ``tau`` was chosen that phi cannot reach in this model.
        """
        super().check(tower)
        asked = self.layers is not None or self.start_layer != type(self).start_layer
        if asked and not self.layers_in(tower) and not self.selects_nothing:
            raise EditError(f"{self._asked('start_layer')}: {self._none_left(tower)}. Use a smaller start_layer.")
        wrong = [d for d in self.dims or () if not 0 <= d < tower.d_model]
        if wrong:
            raise EditError(
                f"{self._asked('dims')}: the residual stream has dimensions 0..{tower.d_model - 1}. "
                "Name dimensions in that range, or None for all."
            )
        if self.tau > math.sqrt(tower.d_model) and self.tau != type(self).tau:
            warnings.warn(f"{self!r} can change nothing: {self._tau_beyond(tower)}.", SinkscopeWarning, stacklevel=4)

    def layers_in(self, tower: Tower) -> tuple[int, ...]:
        """Return the named layers from ``start_layer`` on, the last one left out where asked."""
        last = tower.attention[-1].layer
        named = super().layers_in(tower)
        return tuple(n for n in named if n >= self.start_layer and not (self.skip_last and n == last))

    def notes(self, tower: Tower) -> tuple[str, ...]:
        """Say where no layer is left to change, and where ``tau`` is beyond what phi can reach."""
        said: list[str] = []
        if not self.layers_in(tower) and not self.selects_nothing:
            said.append(self._none_left(tower))
        if self.tau > math.sqrt(tower.d_model):
            said.append(self._tau_beyond(tower))
        return tuple(said)

    def _tau_beyond(self, tower: Tower) -> str:
        width = tower.d_model
        return f"tau {self.tau:g} is never reached: in a model of width {width} phi is at most {math.sqrt(width):.4g}"

    def _none_left(self, tower: Tower) -> str:
        last = tower.attention[-1].layer
        left_out = f", and skip_last leaves out the last layer {last}" if self.skip_last else ""
        return f"no layer is left to change: this model has layers 0..{last}, it starts at {self.start_layer}{left_out}"

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
        # phi of a prompt token is not seen again at a decoding step: its keys come from the cache.
        if stream.offset > 0 and stream.site in known:
            found = torch.cat([known[stream.site], found], dim=1)
        known[stream.site] = found

    def change_attention(self, call: EditedCall) -> None:
        """Move weights where there are sinks, of the image where one is needed."""
        found = call.state(FoundTokens).at_site.get(_input_of(call.layer))
        if found is None:
            return
        image = call.tokens.named("image")
        width, each = image.shape[1], len(found) // len(image)
        # Rows of padding have a phi as well: only real tokens count.
        real = call.tokens.batch.real.repeat_interleave(each, 0)
        found = torch.cat([found[:, :width] & real, found[:, width:]], dim=1)
        if self.need_visual_sink:
            visual = found[:, :width] & image.repeat_interleave(each, 0)
            found = found & visual.any(-1, keepdim=True)
        if not bool(found.any()):
            return
        rows = call.queries("after_image")
        assert rows is not None
        sinks, seen = call.along_keys(found, False), call.along_keys(image, False)
        to = {"image": None, "text": ~seen, "all": torch.ones_like(seen)}[self.receivers]
        call.written.weights.append(MoveShare(sinks, seen, rows, call.heads, self, call.tally, to))


def _input_of(layer: int) -> str:
    """The residual site that a layer's block reads."""
    return f"{layer - 1}.post" if layer > 0 else "embed"
