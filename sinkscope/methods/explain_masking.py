"""The masking test of an explanation: what an answer's probability is when the text cannot read some patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from jaxtyping import Bool, Int
from scipy.special import log_softmax

from sinkscope.edits.keys import MaskKeys
from sinkscope.engine.sweep import sweep
from sinkscope.probes.output import Logits
from sinkscope.roles import ROLE_INDEX

if TYPE_CHECKING:
    from sinkscope.models.handle import Model
    from sinkscope.prompts import Prompts


LEVEL = 0.05
"""A set is said to harm where the permutation p-value is below this."""

SLIGHT = 0.05
"""Part of the answer's probability that a set must cost beyond random patches for the answer to need it. Ours."""


@dataclass(frozen=True, eq=False)
class Masking:
    """The answer's probability with one set of patches masked, and with random sets of the same size.

    Attributes:
        patches: how many are masked.
        plain: probability without a mask.
        masked: probability with these patches masked.
        random: probability with each random set masked, none of which holds a patch of any named set.
    """

    patches: int
    plain: float
    masked: float
    random: np.ndarray

    @property
    def interval(self) -> tuple[float, float]:
        """Range of the middle 95 % of the random sets."""
        low, high = np.quantile(self.random, [0.025, 0.975])
        return float(low), float(high)

    @property
    def p(self) -> float:
        """Permutation p-value: how often a random set harms at least as much, this set counted among them."""
        return float((1 + (self.random <= self.masked).sum()) / (1 + len(self.random)))

    @property
    def harms(self) -> bool:
        """Whether the answer loses, and more than with random sets: p below .05, and below the interval of those."""
        return self.p < LEVEL and self.masked < min(self.plain, self.interval[0])

    @property
    def share(self) -> float:
        """Part of the answer's probability that goes with this set beyond what random sets of its size cost."""
        return float((min(self.plain, self.random.mean()) - self.masked) / self.plain) if self.plain else 0.0

    @property
    def judged(self) -> bool:
        """Whether there are enough random sets for ``p`` to pass below .05 at all: 20 or more."""
        return 1 / (1 + len(self.random)) < LEVEL

    def row(self) -> dict[str, float]:
        """The numbers, as a row of a table."""
        low, high = self.interval
        return {
            "patches": self.patches, "probability": self.masked, "change": self.masked - self.plain,
            "random": float(self.random.mean()), "random_low": low, "random_high": high, "draws": len(self.random),
            "p_value": self.p,
        }  # fmt: skip


def probability(logits: np.ndarray, targets: Sequence[int]) -> np.ndarray:
    """Return the probability of a run of tokens, given logits (..., position, vocab) where they are predicted."""
    scores = log_softmax(logits.astype(np.float64), axis=-1)
    return np.exp(scores[..., np.arange(len(targets)), list(targets)].sum(-1))


def mask_patches(
    model: Model,
    prompts: Prompts,
    answer: tuple[Sequence[int], Sequence[int]],
    sets: Mapping[str, Int[np.ndarray, " patch"]],
    draws: int,
    seed: int = 0,
) -> dict[str, Masking]:
    """Mask each set of patches of one prompt from everything after the picture, and random sets of the same sizes.

    Args:
        model: the model.
        prompts: one prompt with a picture.
        answer: positions that predict the answer's tokens, and these tokens.
        sets: numbers of visual tokens by name; empty ones are left out.
        draws: random sets for each size, drawn from the visual tokens in no set.
        seed: of the draws.
    """
    positions, targets = answer
    visual = np.flatnonzero(prompts.roles[0] == ROLE_INDEX["image"])
    sets = {name: np.asarray(one) for name, one in sets.items() if len(one)}
    free = np.setdiff1d(np.arange(len(visual)), np.concatenate([*sets.values(), np.empty(0, int)]))
    rng, chosen = np.random.default_rng(seed), dict(sets)
    sizes = {min(len(one), len(free)) for one in sets.values()}
    for size in sorted(sizes - {0}):
        chosen |= {f"{size}#{n}": rng.choice(free, size, replace=False) for n in range(draws)}
    length = prompts.lengths[0]
    variants = {name: [_masking(visual[one], length)] for name, one in chosen.items()}
    reading = sweep(model, prompts, variants, [Logits(positions=list(positions))], baseline=True)
    found = probability(reading["logits"].isel(prompt=0).transpose("edit", "position", "vocab").values, targets)
    value = dict(zip(reading["edit"].values.tolist(), found.tolist(), strict=True))
    return {
        name: Masking(
            len(one), value["baseline"], value[name],
            np.array([value[f"{min(len(one), len(free))}#{n}"] for n in range(draws)] if len(free) else []),
        )
        for name, one in sets.items()
    }  # fmt: skip


def _masking(keys: Int[np.ndarray, " key"], length: int) -> Any:
    chosen: Bool[np.ndarray, "1 key"] = np.isin(np.arange(length), keys)[None]
    return MaskKeys(xr.DataArray(chosen, dims=("prompt", "key")), queries="after_image")
