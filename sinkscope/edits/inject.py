"""IRI: what early blocks wrote at the last token is written there once more by later ones, at their own size."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
from jaxtyping import Float

from sinkscope.arguments import as_float
from sinkscope.edits.base import Edit, Hidden
from sinkscope.edits.fields import LARGEST
from sinkscope.edits.patch import component_sites, need_sites
from sinkscope.edits.selectors import whole_numbers
from sinkscope.edits.stream import EditedStream
from sinkscope.edits.tokens import place
from sinkscope.errors import EditError
from sinkscope.models.backends.base import Tower

Write = Float[torch.Tensor, "... dim"]


def injected(write: Write, added: Write) -> Write:
    """Return ``write + added`` at the norm of ``write``; where the two cancel, ``write``."""
    total = write + added
    size, norm = (part.square().sum(-1, keepdim=True).sqrt() for part in (write, total))
    return torch.where(norm > 0, total * (size / norm.clamp(min=1e-30)), write)


class Writes:
    """The stream before each block's component, and what source blocks wrote, in this pass."""

    def __init__(self) -> None:
        self.before: dict[str, torch.Tensor] = {}
        self.wrote: dict[int, torch.Tensor] = {}


@dataclass(frozen=True, repr=False)
class InjectWrites(Edit):
    """Add what source blocks wrote at the last token to what each target block writes there (IRI, Li et al. 2026).

    ``a_l + strength * sum_k weight_k a_k`` over the sources k before l, then rescaled to the norm of ``a_l``; ``a`` is
    what ``component`` (``"attention"`` or ``"mlp"``) adds to the stream, as it stands in this pass before injection.
    At the prompt's last token, then at each step. ``weights`` are the recovery rates of the sources, as
    :func:`sinkscope.methods.tracing.injection` takes them off a trace; the paper takes 3 sources, 10 targets, and a
    strength of .26 (attention) and .16 (MLP) for LLaVA-1.5.
    """

    papers = ("li2026",)
    component: str
    _: KW_ONLY
    sources: Any = field()
    weights: Any = field()
    targets: Any = field()
    strength: float = 0.26

    def __post_init__(self) -> None:
        """Check the component, the blocks and the numbers."""
        self._choice("component", ("attention", "mlp"))
        self._number("strength")
        self._set("targets", whole_numbers(self.targets, self._asked("targets"), "targets"))
        given: Any = self.sources
        sources: list[Any] = [given] if isinstance(given, int) else list(given)
        weights: list[float] = [as_float(weight) for weight in self.weights]
        if not all(abs(weight) <= LARGEST for weight in weights):
            raise EditError(f"{self._asked('weights')}: weights must be numbers that are finite in float32.")
        if len(set(whole_numbers(sources, self._asked("sources"), "sources"))) != len(weights) or len(sources) != len(
            weights
        ):
            raise EditError(
                f"{self._asked('weights')}: {len(sources)} sources but {len(weights)} weights. Give one each, each "
                "source once."
            )
        pairs = sorted(zip((int(source) for source in sources), weights, strict=True))
        self._set("sources", tuple(source for source, _ in pairs))
        self._set("weights", tuple(weight for _, weight in pairs))
        if self.targets and (not pairs or pairs[0][0] >= max(self.targets)):
            raise EditError(f"{self._asked('targets')}: no source lies before a target. Sources come first.")

    @property
    def identity(self) -> bool:
        """Strength 0, or weights of 0."""
        return self.strength == 0.0 or not any(self.weights)

    def check(self, tower: Tower) -> None:
        """Refuse blocks that this tower does not have, or whose sublayers cannot be told apart."""
        for name in ("sources", "targets"):
            if wrong := [layer for layer in getattr(self, name) if not 0 <= layer < tower.depth]:
                raise EditError(
                    f"{self._asked(name)}: this model has layers 0..{tower.depth - 1}, not {wrong[0]}. Use these."
                )
        for layer in (*self.sources, *self.targets):
            need_sites(self.component, layer, tower, self._asked("component"))

    def sites_in(self, tower: Tower) -> tuple[str, ...]:
        """Return the sites before and behind every block named."""
        pairs = [component_sites(self.component, layer) for layer in (*self.sources, *self.targets)]
        return tuple({site for pair in pairs for site in pair if site is not None})

    def watch_residual(self, hidden: Hidden, stream: EditedStream) -> None:
        """Keep the stream before a component, as all edits leave it."""
        stream.state(Writes).before[stream.site] = hidden

    def change_residual(self, hidden: Hidden, stream: EditedStream) -> Hidden | None:
        """Note what a source wrote; give a target what was noted."""
        at = {component_sites(self.component, layer)[1]: layer for layer in (*self.sources, *self.targets)}
        layer = at.get(stream.site)
        if layer is None:
            return None
        state, before = stream.state(Writes), component_sites(self.component, layer)[0]
        assert before is not None
        write = hidden - state.before[before]
        earlier = [(k, w) for k, w in zip(self.sources, self.weights, strict=True) if k < layer]
        if layer in self.sources:
            state.wrote[layer] = write
        if layer not in self.targets or not earlier:
            return None
        added = torch.stack([weight * state.wrote[source] for source, weight in earlier]).sum(0)
        last = stream.tokens.named("last")
        every = torch.ones(len(last), dtype=torch.bool, device=last.device)
        # Behind the prompt every token of a step is the last one of its time.
        chosen = place(last, every, stream.offset, stream.length, stream.rows)
        new = state.before[before] + injected(write, self.strength * added)
        return torch.where(chosen[..., None], new, hidden)
