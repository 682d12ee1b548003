"""Activation patching: what one block wrote, or the state behind it, taken from another run of the same tokens.

Into a corrupted run from the clean one it says what is enough to bring the answer back (denoising), the other way round
what is needed for it (noising). ``record`` keeps the other run, ``Patch`` puts a part of it in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float

from sinkscope.edits.base import Edit, Hidden
from sinkscope.edits.selectors import tokens_of
from sinkscope.edits.stream import EditedStream
from sinkscope.edits.values import Numbers
from sinkscope.errors import EditError
from sinkscope.models.backends.base import Instruments, Tower
from sinkscope.prompts import Prompts
from sinkscope.prompts.identity import check_prompts
from sinkscope.prompts.selection import positions

if TYPE_CHECKING:
    from sinkscope.models.handle import Model

COMPONENTS = ("attention", "mlp", "state")


def component_sites(component: str, layer: int) -> tuple[str | None, str]:
    """Return the site before and the site behind what a component writes; a state has no site before."""
    before = "embed" if layer == 0 else f"{layer - 1}.post"
    sites = {"attention": (before, f"{layer}.mid"), "mlp": (f"{layer}.mid", f"{layer}.post")}
    return sites.get(component, (None, f"{layer}.post"))


def need_sites(component: str, layer: int, tower: Tower, asked: str) -> None:
    """Refuse a block whose sublayers cannot be told apart; ``asked`` opens the message."""
    found = {site.name: site for site in tower.residual}
    for name in component_sites(component, layer):
        if name is not None and (name not in found or found[name].post_norm):
            raise EditError(
                f"{asked}: block {layer} adds attention and MLP to the stream at once, or normalises behind them, so "
                "what one of them writes cannot be put in. Use component='state'."
            )


@dataclass
class StreamBefore:
    """The residual stream before the patched component, in this pass."""

    hidden: torch.Tensor | None = None


@dataclass(frozen=True, repr=False)
class Patch(Edit):
    """Put what ``component`` of block ``layer`` wrote in another run in the place of what it writes here.

    ``component`` is ``"attention"`` or ``"mlp"`` (what the sublayer adds to the residual stream, as it adds it), or
    ``"state"`` (the stream behind the block). ``source`` is an array (prompt, key, d_model), such as :func:`record`
    makes; one row serves every prompt. ``keys`` are the tokens, those of the prompt alone. The other run must have the
    same tokens at the same places; pixels may differ. A patch that changes nothing is a finding, and recorded.
    """

    conditional: ClassVar[bool] = True
    papers = ("li2026",)
    component: str
    _: KW_ONLY
    layer: int = field()
    source: Any = field()
    keys: Any = "all"

    def __post_init__(self) -> None:
        """Check the component, the layer, the array and the selector."""
        self._choice("component", COMPONENTS)
        layer: Any = self.layer
        if isinstance(layer, bool) or not isinstance(layer, int):
            raise EditError(f"{self._asked('layer')}: a patch is of one block. Give its number.")
        self._set("source", Numbers.of(self.source, "Patch(source=...)"))
        if len(self.source.shape) != 3:
            raise EditError(
                f"Patch(source=...): its shape is {self.source.shape}. Give (prompt, key, d_model), such as "
                "sinkscope.edits.record makes."
            )
        self._set("keys", tokens_of(self.keys, self._asked("keys")))

    def check(self, tower: Tower) -> None:
        """Refuse a block, a site or a width that this tower does not have."""
        if not 0 <= self.layer < tower.depth:
            raise EditError(f"{self._asked('layer')}: this model has layers 0..{tower.depth - 1}. Use one of them.")
        need_sites(self.component, self.layer, tower, self._asked("component"))
        if self.source.shape[-1] != tower.d_model:
            raise EditError(
                f"Patch(source=...): its vectors have {self.source.shape[-1]} dimensions, the residual stream has "
                f"{tower.d_model}. Record the source in this model."
            )

    def sites_in(self, tower: Tower) -> tuple[str, ...]:
        """Return the site before the component, where it is a sublayer, and the site behind it."""
        return tuple(site for site in component_sites(self.component, self.layer) if site is not None)

    def watch_residual(self, hidden: Hidden, stream: EditedStream) -> None:
        """Keep the stream before the component, as all edits leave it."""
        if stream.site == component_sites(self.component, self.layer)[0]:
            stream.state(StreamBefore).hidden = hidden

    def change_residual(self, hidden: Hidden, stream: EditedStream) -> Hidden | None:
        """Return the stream with the source's part at the selected tokens."""
        before, behind = component_sites(self.component, self.layer)
        if stream.site != behind:
            return None
        batch = stream.tokens.batch
        numbers = torch.as_tensor(self.source.array(), device=hidden.device)
        place = positions(batch.real)[:, stream.offset : stream.offset + stream.length]
        if not place.shape[1]:
            return None
        prompts = len(batch.indices)
        rows = [batch.indices[row * prompts // stream.rows] for row in range(stream.rows)]
        place = place.repeat_interleave(stream.rows // prompts, 0)
        if len(numbers) > 1 and max(rows) >= len(numbers):
            raise EditError(f"Patch(source=...): it holds {len(numbers)} prompts, not prompt {max(rows)}. Record them.")
        numbers = numbers[rows] if len(numbers) > 1 else numbers.expand(len(rows), -1, -1)
        chosen = stream.keys()[:, : place.shape[1]] & stream.prompt()[:, : place.shape[1]] & (place >= 0)
        if bool((place.masked_fill(~chosen, 0) >= numbers.shape[1]).any()):
            raise EditError(
                f"Patch(source=...): it holds {numbers.shape[1]} tokens, fewer than a prompt here. Record it."
            )
        index = place.clamp(min=0, max=numbers.shape[1] - 1)[..., None].expand(-1, -1, numbers.shape[2])
        new = numbers.gather(1, index).to(hidden.dtype)
        if before is not None:
            held = stream.state(StreamBefore).hidden
            assert held is not None
            new = held[:, : new.shape[1]] + new
        out = hidden.clone()
        out[:, : new.shape[1]] = torch.where(chosen[..., None], new, hidden[:, : new.shape[1]])
        stream.fire(int((out != hidden).any(-1).sum()))
        return out


def record(
    model: Model, prompts: Prompts, component: str, layers: Sequence[int] | None = None, *, batch_size: int = 1
) -> dict[int, Float[np.ndarray, "prompt key d_model"]]:
    """Return what ``component`` writes in each of ``layers`` (None: all): ``source`` of :class:`Patch`, by layer.

    One pass over the prompts. Beyond a prompt's end there are zeros.

    Raises:
        EditError: no such component or layer, or a block whose sublayers cannot be told apart.
        ModelError, PromptError: no model, or no prompts of this model.
    """
    check_prompts(prompts, model, "record")
    tower = model.backend.towers[model.backend.default_tower]
    chosen = list(range(tower.depth)) if layers is None else [int(layer) for layer in layers]
    shape = (len(prompts), max(prompts.lengths), tower.d_model)
    found = {layer: np.zeros(shape, np.float32) for layer in chosen}
    for layer in chosen:
        Patch(component, layer=layer, source=np.zeros((1, 1, tower.d_model))).check(tower)
    wanted = {site for layer in chosen for site in component_sites(component, layer) if site is not None}
    with torch.no_grad(), model.evaluating():
        for span in prompts.spans(batch_size):
            batch = prompts.batch(span, model.device)
            seen: dict[str, torch.Tensor] = {}
            hooks = {site: [_keep(seen, site)] for site in wanted}
            model.backend.forward(batch.inputs, tower, Instruments(residual=hooks))
            for layer in chosen:
                before, behind = component_sites(component, layer)
                written = seen[behind] if before is None else seen[behind] - seen[before]
                for row, prompt in enumerate(batch.indices):
                    own = written[row][batch.real[row]]
                    found[layer][prompt, : len(own)] = own.cpu().numpy()
    return found


def _keep(seen: dict[str, torch.Tensor], site: str) -> Callable[[torch.Tensor], None]:
    def keep(hidden: torch.Tensor) -> None:
        seen[site] = hidden.detach().float().clone()

    return keep
