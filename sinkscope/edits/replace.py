"""Values replaced rather than removed: zeroing a token takes more away than what it carries of its own.

A model trained with a token there may need some vector in its place. Replacing it by the mean, by noise of the same
size, or by the value of another token asks what this token's own content does.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float

from sinkscope.edits.base import AttentionEdit
from sinkscope.edits.call import EditedCall
from sinkscope.edits.tokens import TokenMask
from sinkscope.errors import EditError
from sinkscope.prompts.selection import positions

Values = Float[torch.Tensor, "batch kv_head key vdim"]


@dataclass(frozen=True, repr=False)
class ReplaceValues(AttentionEdit):
    """Put other vectors in the place of the value vectors of the selected keys; the weights stay (arXiv 2604.14433).

    ``how`` is ``"mean"``: the mean over all tokens of the prompt; ``"donor"``: the value of one other token of the
    prompt, ``donor`` (a position, such as 3 or -1), or without it one drawn at random that is not selected;
    ``"noise"``: normal numbers with the mean and standard deviation that each dimension has over the prompt;
    ``"shuffle"``: the selected keys exchange their values at random, none keeps its own (two keys at least).
    Beside :class:`ZeroValues` these say how much of an effect of zeroing is due to the zero. In a decoder the mean and
    the donor may lie behind the query. ``seed`` fixes what is drawn; it is the same for every prompt.
    """

    papers = ("registers2026",)
    keys: Any
    _: KW_ONLY
    how: str = "mean"
    donor: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check how, the donor, the seed and the selectors."""
        self._choice("how", ("mean", "donor", "noise", "shuffle"))
        for name in ("donor", "seed"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int if name == "seed" else int | None):
                raise EditError(f"{self._asked(name)}: a whole number is needed.")
        if self.donor is not None and self.how != "donor":
            raise EditError(f"ReplaceValues(how={self.how!r}): a donor belongs to how='donor'. Leave it out.")
        if self.seed < 0:
            raise EditError(f"{self._asked('seed')}: seed must be 0 or above.")
        super().__post_init__()
        self._refuse_queries("a value vector is the same for every query. Leave queries out")

    def change_attention(self, call: EditedCall) -> None:
        """Replace the values."""
        keys, values = call.keys(), call.call.value.float()
        prompt = call.along_keys(call.tokens.prompt, False)
        if self.how == "shuffle":
            self._shuffle(call, keys, values)
            return
        make = {"mean": _mean, "donor": self._donor, "noise": self._noise}[self.how]
        call.change_values(keys, new=make(values, prompt, keys, call.layer).expand_as(values))

    def _donor(
        self, values: Values, prompt: Bool[torch.Tensor, "batch key"], keys: TokenMask, layer: int
    ) -> Float[torch.Tensor, "batch kv_head one vdim"]:
        place = positions(prompt)
        rows: list[torch.Tensor] = []
        for row in range(len(values)):
            length = int(prompt[row].sum())
            if self.donor is None:
                free = (prompt[row] & ~keys[row].any(0)).nonzero()[:, 0]
                if not len(free):
                    raise EditError(f"{self!r}: every token of a prompt is selected, none can be the donor.")
                # One donor for all layers: the values of one token belong together.
                column = free[np.random.default_rng(self.seed).integers(len(free))]
            else:
                if not -length <= self.donor < length:
                    raise EditError(f"{self._asked('donor')}: a prompt has {length} tokens. Use 0 to {length - 1}.")
                column = (place[row] == self.donor % length).nonzero()[0, 0]
            rows.append(values[row, :, column])
        return torch.stack(rows)[:, :, None]

    def _noise(self, values: Values, prompt: Bool[torch.Tensor, "batch key"], keys: TokenMask, layer: int) -> Values:
        mean = _mean(values, prompt, keys, layer)
        spread = _mean((values - mean).square(), prompt, keys, layer).sqrt()
        # Drawn by position, one token after the other: a longer or padded batch gives each token the same numbers.
        place = positions(prompt | (keys.any(1))).clamp(min=0)
        count = int(place.max()) + 1
        drawn = np.random.default_rng([self.seed, layer]).standard_normal((count, values.shape[1] * values.shape[3]))
        noise = torch.as_tensor(drawn, dtype=values.dtype, device=values.device)[place]
        return mean + spread * noise.view(*noise.shape[:2], values.shape[1], values.shape[3]).transpose(1, 2)

    def _shuffle(self, call: EditedCall, keys: TokenMask, values: Values) -> None:
        group, order = call.call.group, torch.arange(values.shape[2]).repeat(*keys.shape[:2], 1)
        pairs: Any = cast(Any, keys.any(-1).nonzero()).tolist()
        for row, head in pairs:
            chosen = keys[row, head].nonzero()[:, 0].cpu()
            if len(chosen) > 1:
                # Each takes the value of the next one in a random order, so none keeps its own.
                mixed = chosen[torch.as_tensor(np.random.default_rng(self.seed).permutation(len(chosen)))]
                order[row, head, mixed] = mixed.roll(1)
        moved = order.to(values.device) != torch.arange(values.shape[2], device=values.device)
        new = values.repeat_interleave(group, 1)
        new = new.gather(2, order.to(values.device)[..., None].expand_as(new))
        call.change_values(keys & moved, new=new)


def _mean(
    values: Values, prompt: Bool[torch.Tensor, "batch key"], keys: TokenMask, layer: int
) -> Float[torch.Tensor, "batch kv_head one vdim"]:
    weight = prompt.to(values.dtype)
    total = torch.einsum("bhkd,bk->bhd", values, weight)
    return (total / weight.sum(-1).clamp(min=1)[:, None, None])[:, :, None]
