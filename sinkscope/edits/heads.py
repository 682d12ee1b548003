"""Edits of whole heads: gated, or replaced by zero, their mean, or uniform attention."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float

from sinkscope.attention.tile import Tile
from sinkscope.edits.base import AttentionEdit
from sinkscope.edits.call import EditedCall
from sinkscope.edits.selectors import whole_numbers
from sinkscope.edits.values import Numbers, is_empty
from sinkscope.errors import EditError
from sinkscope.models.backends.base import Tower

Output = Float[torch.Tensor, "batch query head dim"]


@dataclass
class MeanOutputs:
    """Mean output of the heads over each prompt, by layer and call, kept for decoding steps."""

    at: dict[tuple[int, int], Float[torch.Tensor, "batch head dim"]] = field(
        default_factory=dict[tuple[int, int], torch.Tensor]
    )


def uniform(weights: Float[torch.Tensor, "flat query key"], tile: Tile) -> Float[torch.Tensor, "flat query key"]:
    """Return each row's sum spread evenly over the keys the query sees."""
    visible = tile.visible
    seen = torch.ones_like(weights) if visible is None else visible.to(weights.dtype)
    # The row keeps its sum, so that a model with an implicit sink keeps that sink: only the choice is taken away.
    return weights.sum(-1, keepdim=True) * seen / seen.sum(-1, keepdim=True).clamp(min=1)


@dataclass(frozen=True, repr=False)
class AblateHeads(AttentionEdit):
    """Take heads out: ``how`` is ``"zero"``, ``"mean"`` or ``"uniform"``.

    ``"zero"`` sets the head's output (before W_O) to 0. ``"mean"`` replaces it by ``reference``, an array (layer, head,
    dim) such as :func:`sinkscope.edits.mean_outputs` makes from a reference set; without one, by the mean over the
    prompt's own tokens, so that no other prompt of a batch plays a part. ``"uniform"`` gives every key the query sees
    the same weight and the row its old sum: attention without a choice, which is not the same as no output.
    """

    papers = ("guo2024",)
    heads: Any = field()
    _: KW_ONLY
    how: str = "zero"
    reference: Any = None

    def __post_init__(self) -> None:
        """Check how, the reference and the selectors."""
        self._choice("how", ("zero", "mean", "uniform"))
        if self.reference is not None:
            if self.how != "mean":
                raise EditError(f"AblateHeads(how={self.how!r}): a reference belongs to how='mean'. Leave it out.")
            self._set("reference", Numbers.of(self.reference, "AblateHeads(reference=...)"))
            if len(self.reference.shape) != 3:
                raise EditError(
                    f"AblateHeads(reference=...): its shape is {self.reference.shape}. Give (layer, head, dim), "
                    "such as sinkscope.edits.mean_outputs makes."
                )
        super().__post_init__()

    def check(self, tower: Tower) -> None:
        """Refuse a reference that does not fit ``tower``."""
        super().check(tower)
        if self.reference is None:
            return
        shape = tuple(self.reference.shape)
        needed = [(site.heads, site.head_dim) for site in tower.attention]
        if shape[0] != tower.depth or any(shape[1] < heads or shape[2] < dim for heads, dim in needed):
            raise EditError(
                f"AblateHeads(reference=...): its shape is {shape}; this model has {tower.depth} layers of "
                f"{max(needed)[0]} heads with {max(needed)[1]} dimensions."
            )

    def change_attention(self, call: EditedCall) -> None:
        """Replace the output, or the weights."""
        if self.how == "uniform":
            call.change_weights(uniform)
        elif self.how == "zero":
            call.change_output(torch.zeros_like)
        elif self.reference is not None:
            array = torch.as_tensor(self.reference.array())[call.layer, : call.head_count]
            mean = array[:, : call.call.value.shape[-1]].to(call.call.query.device)
            call.change_output(lambda out: mean.to(out.dtype).expand_as(out))
        else:
            call.change_output(lambda out: self._own_mean(out, call))

    def _own_mean(self, out: Output, call: EditedCall) -> Output:
        """The mean over the prompt's own tokens; that of the prompt at decoding steps."""
        means = call.state(MeanOutputs).at
        if call.diagonal <= 0 or call.place not in means:
            # No other prompt plays a part: a mean over the batch would make a reading depend on what stands beside
            # it.
            real = call.rows(call.tokens.prompt, False).to(out.dtype)
            total = torch.einsum("bqhd,bq->bhd", out, real)
            means[call.place] = total / real.sum(-1).clamp(min=1)[:, None, None]
        return means[call.place][:, None].expand_as(out)


@dataclass(frozen=True, repr=False)
class GateHeads(AttentionEdit):
    """Multiply the output of the heads (before W_O) by ``scale``."""

    papers = ("he2025",)
    scale: float
    _: KW_ONLY
    heads: Any = None

    def __post_init__(self) -> None:
        """Check the scale and the selectors."""
        self._number("scale")
        super().__post_init__()

    @property
    def identity(self) -> bool:
        """Scale 1."""
        return self.scale == 1.0

    def change_attention(self, call: EditedCall) -> None:
        """Multiply the output."""
        call.change_output(lambda out: out * self.scale)


@dataclass(frozen=True, repr=False)
class RouteHeads(AttentionEdit):
    """Keep the shared heads and, of the others, the ``top`` with the largest query norm at each token (MoH).

    The rule of the released LLaMA3 version without its training: the other heads' outputs (before W_O) become 0 at that
    token, those kept are not weighted. ``shared`` heads are kept always; ``heads`` limits which may be switched off.
    With ``top`` as large as the number of other heads nothing changes. An edit with a gate for each row and head.
    """

    conditional: ClassVar[bool] = True
    papers = ("moh",)
    top: int
    _: KW_ONLY
    shared: Any = ()

    def __post_init__(self) -> None:
        """Check the number, the shared heads and the selectors."""
        top: Any = self.top
        if isinstance(top, bool) or not isinstance(top, int) or top < 0:
            raise EditError(f"{self._asked('top')}: top must be a whole number of heads, 0 or above.")
        self._set("shared", whole_numbers(self.shared, self._asked("shared"), "shared"))
        super().__post_init__()

    @property
    def selects_nothing(self) -> bool:
        """No shared head is a choice, not an empty selection."""
        return any(is_empty(getattr(self, name)) for name in ("layers", "heads", "queries"))

    def change_attention(self, call: EditedCall) -> None:
        """Gate the heads of each row."""
        norm = call.call.query.float().square().sum(-1).transpose(1, 2)  # (batch, query, head), ranked as the norm is
        routed = call.heads.clone()
        routed[[head for head in self.shared if head < call.head_count]] = False
        count = int(routed.sum())
        if self.top >= count:
            return
        norm = norm.masked_fill(~routed, -torch.inf)
        kept = torch.zeros_like(norm, dtype=torch.bool).scatter(-1, norm.topk(self.top, dim=-1).indices, True)
        gate = (kept | ~routed)[..., None]
        call.fire(gate.shape[0] * gate.shape[1])
        call.change_output(lambda out: out * gate.to(out.dtype))


@dataclass(frozen=True, repr=False)
class MixIdentity(AttentionEdit):
    """Mix each row with attention to the token itself: ``(1 - s) A + s I`` (SoftPAG, Ahn et al. 2025).

    ``s`` 0 is no edit, 1 leaves each token its own value alone (PAG). A row keeps its sum.
    """

    papers = ("ahn2025",)
    s: float

    def __post_init__(self) -> None:
        """Check s and the selectors."""
        self._number("s", 0.0, 1.0)
        super().__post_init__()

    @property
    def identity(self) -> bool:
        """s 0."""
        return self.s == 0.0

    def change_attention(self, call: EditedCall) -> None:
        """Move a share of each row to its diagonal."""

        def mix(weights: torch.Tensor, tile: Tile) -> torch.Tensor:
            rows = torch.arange(tile.rows.start, tile.rows.stop, device=weights.device) + call.diagonal
            own = rows[:, None] == torch.arange(tile.cols.start, tile.cols.stop, device=weights.device)
            return (1 - self.s) * weights + self.s * weights.sum(-1, keepdim=True) * own

        call.change_weights(mix)
