"""Edits of the residual stream: activations set to a number or to their mean."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
from jaxtyping import Float

from sinkscope.arguments import as_float
from sinkscope.edits.base import Hidden, ResidualEdit
from sinkscope.edits.fields import LARGEST
from sinkscope.edits.selectors import whole_numbers
from sinkscope.edits.stream import EditedStream
from sinkscope.errors import EditError
from sinkscope.models.backends.base import Tower


@dataclass
class PromptMean:
    """Mean of the edited dimensions over each prompt, kept for decoding steps."""

    value: Float[torch.Tensor, "batch dim"] | None = None


@dataclass(frozen=True, repr=False)
class SetActivations(ResidualEdit):
    """Set dimensions of the residual stream at a site and some tokens (Sun et al. 2024, set to zero or to the mean).

    ``site`` is a residual site such as ``"1.post"``. ``value`` is a number for all ``dims``, one number per dimension,
    or ``"mean"``: each dimension's mean over the prompt's own tokens at that site. The mean of an activation over a
    reference set, as in the paper, is :func:`sinkscope.edits.mean_activations`, given here as one number per dimension.
    """

    papers = ("sun2024",)
    _: KW_ONLY
    dims: Any = field()
    value: Any = 0.0

    def __post_init__(self) -> None:
        """Check the dimensions, the value and the keys."""
        super().__post_init__()
        if isinstance(self.value, str):
            self._choice("value", ("mean",))
        elif isinstance(self.value, int | float) or not hasattr(self.value, "__len__"):
            self._number("value", hint="Or one number per dimension, or 'mean'.")
        self._set_dims()

    def _set_dims(self) -> None:
        dims = whole_numbers(self.dims, self._asked("dims"), "dims")
        given = [self.dims] if isinstance(self.dims, int) else list(self.dims)
        if isinstance(self.value, str | float):
            self._set("dims", dims)
            return
        values = [as_float(v) for v in self.value]
        if len(values) != len(given) or len(dims) != len(given):
            raise EditError(
                f"{self._asked('dims')}: {len(given)} dims ({len(dims)} different) but {len(values)} values. "
                "Give one value per dimension, each dimension once."
            )
        if not all(abs(value) <= LARGEST for value in values):
            raise EditError(f"{self._asked('value')}: value must hold numbers that are finite in float32.")
        pairs = sorted(zip((int(d) for d in given), values, strict=True))
        self._set("dims", tuple(d for d, _ in pairs))
        self._set("value", tuple(v for _, v in pairs))

    def check(self, tower: Tower) -> None:
        """Refuse a site or dimensions that do not exist."""
        super().check(tower)
        if wrong := [d for d in self.dims if not 0 <= d < tower.d_model]:
            raise EditError(
                f"{self._asked('dims')}: the residual stream has dimensions 0..{tower.d_model - 1}, not {wrong[0]}. "
                "Name dimensions in that range."
            )

    def change_residual(self, hidden: Hidden, stream: EditedStream) -> Hidden | None:
        """Return the residual stream with the dimensions set at the selected tokens."""
        dims = list(self.dims)
        mean = stream.state(PromptMean)
        # Over all real tokens, the sink among them: one entry of 20,000 in 100 tokens lifts this mean by 200.
        if self.value == "mean" and (stream.offset == 0 or mean.value is None):
            # The mean of the prompt, not of what is generated: at a decoding step one token would be its own mean.
            real = stream.prompt().float()
            total = torch.einsum("bkd,bk->bd", hidden[..., dims].float(), real)
            mean.value = total / real.sum(-1, keepdim=True).clamp(min=1)
        chosen = stream.keys()
        if not bool(chosen.any()):
            return None
        stream.tally.touched += int(chosen.sum())
        part = hidden[..., dims]
        values = torch.tensor(self.value, device=hidden.device) if mean.value is None else mean.value[:, None]
        new = torch.where(chosen[..., None], values.to(hidden.dtype).expand_as(part), part)
        # A copy: the caller may hold the tensor (a residual branch, a cache of hidden states).
        return hidden.index_copy(2, torch.tensor(dims, device=hidden.device), new)
