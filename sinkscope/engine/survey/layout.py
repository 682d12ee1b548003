"""What a survey knows of the model it read: enough to label its results, without the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from sinkscope.models.backends.base import Tower


@dataclass(frozen=True)
class SurveyLayout:
    """Blocks, heads and residual sites of the tower that was read."""

    kinds: tuple[str, ...]
    """Kind of each block."""
    heads: int
    """Heads of the block that has most."""
    kv_heads: int
    calls: int
    """Attention calls of a block, 1 but in blocks that attend twice."""
    readings: int
    """Heads that read each token, all attention calls together."""
    sites: tuple[str, ...]
    site_names: tuple[str, ...]
    """TransformerLens's names of the sites."""
    causal: bool

    @classmethod
    def of(cls, tower: Tower) -> Self:
        """Describe a tower."""
        return cls(
            kinds=tuple(tower.kind(layer) for layer in range(tower.depth)),
            heads=max((site.heads for site in tower.attention), default=0),
            kv_heads=max((site.kv_heads for site in tower.attention), default=0),
            calls=tower.calls,
            readings=sum(site.heads for site in tower.attention),
            sites=tuple(site.name for site in tower.residual),
            site_names=tuple(site.lens_name for site in tower.residual),
            causal=tower.causal,
        )

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Self:
        """Take up what :meth:`to_json` gave."""
        plain: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in given.items()}
        return cls(**plain)

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON data."""
        return asdict(self)
