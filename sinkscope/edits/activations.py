"""Edits of the residual stream: activations set to a number or to their mean."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float

from sinkscope.attention.primitives import Tally
from sinkscope.edits.base import Edit
from sinkscope.edits.selectors import tokens_of, whole_numbers
from sinkscope.edits.site import Tokens, beyond, place
from sinkscope.errors import EditError

if TYPE_CHECKING:
    from sinkscope.models.backends.base import Tower


@dataclass(frozen=True, repr=False)
class SetActivations(Edit):
    """Set dimensions of the residual stream at a site and some tokens (Sun et al. 2024, set to zero or to the mean).

    ``site`` is a residual site such as ``"1.post"``. ``value`` is a number for all ``dims``, one number per dimension,
    or ``"mean"``: each dimension's mean over the prompt's own tokens at that site. The mean of an activation over a
    reference set, as in the paper, is :func:`sinkscope.edits.mean_activations`, given here as one number per dimension.
    """

    site: str
    _: KW_ONLY
    dims: Any = field()
    value: Any = 0.0
    keys: Any = "first"

    def __post_init__(self) -> None:
        """Check the dimensions, the value and the keys."""
        if not isinstance(self.site, str):
            raise EditError(f"{self._asked('site')}: a site is a name such as '1.post'.")
        if isinstance(self.value, str):
            self._choice("value", ("mean",))
        elif isinstance(self.value, int | float) or not hasattr(self.value, "__len__"):
            self._number("value", hint="Or one number per dimension, or 'mean'.")
        self._set_dims()
        self._set("keys", tokens_of(self.keys, self._asked("keys")))

    def _set_dims(self) -> None:
        given = [self.dims] if isinstance(self.dims, int) else list(self.dims)
        dims = whole_numbers(self.dims, self._asked("dims"), "dims")
        if isinstance(self.value, str | float):
            self._set("dims", dims)
            return
        values = [float(v) for v in self.value]
        if len(values) != len(given) or len(dims) != len(given):
            raise EditError(
                f"{self._asked('dims')}: {len(given)} dims ({len(dims)} different) but {len(values)} values. "
                "Give one value per dimension, each dimension once."
            )
        if not all(torch.isfinite(torch.tensor(values)).tolist()):
            raise EditError(f"{self._asked('value')}: value must hold finite numbers.")
        pairs = sorted(zip((int(d) for d in given), values, strict=True))
        self._set("dims", tuple(d for d, _ in pairs))
        self._set("value", tuple(v for _, v in pairs))

    def check(self, tower: Tower) -> None:
        """The site and the dimensions must exist."""
        if self.site not in tower.site_names:
            names = tower.site_names
            shown = list(names) if len(names) < 8 else f"{', '.join(names[:4])}, ... {names[-1]}"
            raise EditError(f"{self._asked('site')}: there is no such residual site. Sites are {shown}.")
        if any(site.post_norm for site in tower.residual if site.name == self.site):
            raise EditError(
                f"{self._asked('site')}: this model normalises behind each sublayer, so a change between attention and "
                f"MLP cannot be carried on. Use {self.site.replace('.mid', '.post')!r}."
            )
        if wrong := [d for d in self.dims if not 0 <= d < tower.d_model]:
            raise EditError(
                f"{self._asked('dims')}: the residual stream has dimensions 0..{tower.d_model - 1}, not {wrong[0]}. "
                "Name dimensions in that range."
            )

    def change(
        self, hidden: Float[torch.Tensor, "batch key d_model"], tokens: Tokens, offset: int, memory: dict[str, Any],
        tally: Tally,
    ) -> Float[torch.Tensor, "batch key d_model"] | None:  # fmt: skip
        """Give the residual stream with the dimensions set; ``offset`` is the position of its first token."""
        dims = list(self.dims)
        rows, length = hidden.shape[:2]
        if self.value == "mean" and (offset == 0 or "mean" not in memory):
            real = place(tokens.prompt, torch.zeros(len(tokens.prompt)).bool().to(hidden.device), 0, length, rows)
            total = torch.einsum("bkd,bk->bd", hidden[..., dims].float(), real.float())
            memory["mean"] = total / real.sum(-1, keepdim=True).clamp(min=1)
        chosen = place(tokens.choose(self, "keys").any(1), beyond(self.keys, tokens), offset, length, rows)
        if not bool(chosen.any()):
            return None
        tally.touched += int(chosen.sum())
        values = memory["mean"][:, None] if self.value == "mean" else torch.tensor(self.value, device=hidden.device)
        part = hidden[..., dims]
        new = torch.where(chosen[..., None], values.to(hidden.dtype).expand_as(part), part)
        return hidden.index_copy(2, torch.tensor(dims, device=hidden.device), new)
