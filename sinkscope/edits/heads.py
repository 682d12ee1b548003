"""Edits of whole heads: gated, or replaced by zero, their mean, or uniform attention."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float

from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.primitives import Tally
from sinkscope.attention.tile import Tile
from sinkscope.edits.base import AttentionEdit
from sinkscope.edits.selectors import Numbers
from sinkscope.errors import EditError

if TYPE_CHECKING:
    from sinkscope.edits.site import CallSite
    from sinkscope.models.backends.base import Tower


@dataclass
class HeadOutput:
    """Replace the output of some heads in some rows by ``scale`` times it, plus ``shift`` (batch, head, dim)."""

    heads: Bool[torch.Tensor, " head"]
    rows: Bool[torch.Tensor, "batch query"] | None
    scale: float
    shift: Float[torch.Tensor, "#batch head dim"] | None
    tally: Tally

    def __call__(self, out: Float[torch.Tensor, "batch query head dim"]) -> Float[torch.Tensor, "batch query head dim"]:
        """Return the outputs with the heads changed."""
        where = self.heads[None, None, :, None]
        if self.rows is not None:
            where = where & self.rows[:, :, None, None]
        self.tally.touched = self.tally.touched or int(where.any(-1).any(-1).sum())
        new = out * self.scale if self.shift is None else out * self.scale + self.shift[:, None].to(out.dtype)
        return torch.where(where, new, out)


@dataclass
class MeanOutput:
    """Replace the output of some heads by its mean over the prompt's tokens, remembered for decoding steps."""

    change: HeadOutput
    real: Float[torch.Tensor, "batch query"]
    memory: dict[str, Any]
    cached: bool

    def __call__(self, out: Float[torch.Tensor, "batch query head dim"]) -> Float[torch.Tensor, "batch query head dim"]:
        """Return the outputs with the heads changed."""
        if not self.cached or "mean" not in self.memory:
            total = torch.einsum("bqhd,bq->bhd", out, self.real.to(out.dtype))
            self.memory["mean"] = total / self.real.sum(-1).clamp(min=1).to(out.dtype)[:, None, None]
        self.change.shift = self.memory["mean"]
        return self.change(out)


@dataclass
class UniformWeights:
    """Spread each row's sum evenly over the keys the query sees, in some heads."""

    heads: Bool[torch.Tensor, " head"]
    rows: Bool[torch.Tensor, "batch query"] | None
    tally: Tally

    def __call__(
        self, weights: Float[torch.Tensor, "flat query key"], tile: Tile
    ) -> Float[torch.Tensor, "flat query key"]:
        """Return the weights with the heads made uniform."""
        where = self.heads[tile.head][:, None]
        if self.rows is not None:
            where = where & self.rows[tile.batch, tile.rows]
        if not bool(where.any()):
            return weights
        seen = tile.visible
        seen = torch.ones_like(weights) if seen is None else seen.to(weights.dtype)
        even = weights.sum(-1, keepdim=True) * seen / seen.sum(-1, keepdim=True).clamp(min=1)
        self.tally.touched = self.tally.touched or int(where.sum())
        return torch.where(where[..., None], even, weights)


@dataclass(frozen=True, repr=False)
class AblateHeads(AttentionEdit):
    """Take heads out: ``how`` is ``"zero"``, ``"mean"`` or ``"uniform"``.

    ``"zero"`` sets the head's output (before W_O) to 0. ``"mean"`` replaces it by ``reference``, an array (layer, head,
    dim) such as :func:`sinkscope.edits.mean_outputs` makes from a reference set; without one, by the mean over the
    prompt's own tokens, so that no other prompt of a batch plays a part. ``"uniform"`` gives every key the query sees
    the same weight and the row its old sum: attention without a choice, which is not the same as no output.
    """

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
        """The reference must fit the tower too."""
        super().check(tower)
        if self.reference is None:
            return
        shape = tuple(self.reference.shape)
        needed = [(site.heads, site.head_dim) for site in tower.attention]
        if shape[0] != len(needed) or any(shape[1] < heads or shape[2] < dim for heads, dim in needed):
            raise EditError(
                f"AblateHeads(reference=...): its shape is {shape}; this model has {len(needed)} layers of "
                f"{max(needed)[0]} heads with {max(needed)[1]} dimensions."
            )

    def build(self, edits: CallEdits, site: CallSite) -> None:
        """A gate on the output, or uniform weights."""
        rows = site.queries()
        if self.how == "uniform":
            edits.weights.append(UniformWeights(site.heads, rows, site.tally))
            return
        change = HeadOutput(site.heads, rows, 0.0, None, site.tally)
        if self.how == "zero":
            edits.gates.append(change)
        elif self.reference is not None:
            array = torch.from_numpy(self.reference.array())[site.layer, : site.head_count]
            change.shift = array[None, :, : site.call.value.shape[-1]].to(site.call.query.device)
            edits.gates.append(change)
        else:
            real = site.rows(site.tokens.prompt, False).float()
            edits.gates.append(MeanOutput(change, real, site.memory, site.diagonal > 0))


@dataclass(frozen=True, repr=False)
class GateHeads(AttentionEdit):
    """Multiply the output of the heads (before W_O) by ``scale``."""

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

    def build(self, edits: CallEdits, site: CallSite) -> None:
        """A gate on the output."""
        edits.gates.append(HeadOutput(site.heads, site.queries(), self.scale, None, site.tally))
