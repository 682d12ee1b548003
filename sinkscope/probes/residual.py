"""Probes of the residual stream: norms, massive activations, and phi on sink dimensions.

Read by hooks on the blocks, never from ``hidden_states``, whose last entry is after the final norm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from jaxtyping import Float

from sinkscope.errors import ProbeError
from sinkscope.models.backends.base import Tower
from sinkscope.probes.base import Probe, ProbeContext, whole_numbers
from sinkscope.schema import Variable

__all__ = ["BosCosine", "MassiveActivations", "ResidualNorm", "SinkDims"]

PHI_EPSILON = 1e-6
_TOP = ("top_value", "top_dim", "top_position", "top_token_median", "top_dim_median", "median_abs")


@dataclass(frozen=True)
class ResidualNorm(Probe):
    """l2 norm of the residual stream at each token and site. Makes ``residual_norm`` (prompt, site, key)."""

    variables: ClassVar[Mapping[str, Variable]] = {
        "residual_norm": Variable(("prompt", "site", "key"), "activation", "l2 norm of the residual stream"),
    }
    papers = ("guo2024",)

    def sites(self, tower: Tower) -> tuple[str, ...]:
        """All sites."""
        return tower.site_names

    def at_site(
        self, hidden: Float[torch.Tensor, "batch key d_model"], context: ProbeContext
    ) -> dict[str, torch.Tensor]:
        """Return the norm over the width."""
        return {"residual_norm": torch.linalg.vector_norm(hidden.float(), dim=-1)}  # pyright: ignore[reportUnknownMemberType]


@dataclass(frozen=True)
class BosCosine(Probe):
    """Cosine between each token's residual stream and that of the prompt's first token (Anand et al. 2026).

    Makes ``bos_cosine`` (prompt, site, key), 1 at the first token. A sink in the middle of a prompt points along it.
    """

    variables: ClassVar[Mapping[str, Variable]] = {
        "bos_cosine": Variable(("prompt", "site", "key"), "1", "cosine to the first token's residual stream"),
    }
    papers = ("anand2026",)

    def sites(self, tower: Tower) -> tuple[str, ...]:
        """All sites."""
        return tower.site_names

    def at_site(
        self, hidden: Float[torch.Tensor, "batch key d_model"], context: ProbeContext
    ) -> dict[str, torch.Tensor]:
        """Compare every token with the first real one."""
        states, first = hidden.float(), context.batch.real.int().argmax(-1)
        start = states[torch.arange(len(states), device=states.device), first]
        return {"bos_cosine": torch.nn.functional.cosine_similarity(states, start[:, None], dim=-1)}


@dataclass(frozen=True)
class MassiveActivations(Probe):
    """The largest entries of the residual stream at each site, and the median magnitude (Sun et al. 2024).

    Makes ``top_value`` (signed), ``top_dim``, ``top_position`` (prompt, site, rank), ranked by magnitude over all real
    tokens and dimensions, and ``median_abs`` (prompt, site), the mid-point median of all magnitudes. The paper's code
    takes the lower middle element instead of the mid-point. ``top_token_median`` and ``top_dim_median`` (prompt, site,
    rank) are the median magnitudes of the entry's own token and of its own dimension: a massive activation stands out
    of both, an outlier feature, which is large at every token, of the first alone.
    """

    top: int = 10

    def __post_init__(self) -> None:
        whole_numbers(self.top, "MassiveActivations(top")

    variables: ClassVar[Mapping[str, Variable]] = {
        "top_value": Variable(("prompt", "site", "rank"), "activation", "signed entry, ranked by magnitude"),
        "top_dim": Variable(
            ("prompt", "site", "rank"), "index", "residual dimension of the ranked entry", discrete=True
        ),
        "top_position": Variable(
            ("prompt", "site", "rank"), "index", "token position of the ranked entry", discrete=True
        ),
        "top_token_median": Variable(
            ("prompt", "site", "rank"), "activation", "median magnitude of the ranked entry's token over its dimensions"
        ),
        "top_dim_median": Variable(
            ("prompt", "site", "rank"), "activation", "median magnitude of the ranked entry's dimension over the tokens"
        ),
        "median_abs": Variable(("prompt", "site"), "activation", "mid-point median of the magnitudes"),
    }
    papers = ("sun2024",)

    def check(self, tower: Tower) -> None:
        """At least one entry, at most one token's width."""
        top: Any = self.top
        if isinstance(top, bool) or not isinstance(top, int) or not 1 <= top <= tower.d_model:
            raise ProbeError(f"MassiveActivations(top={top}): top must be from 1 to the width {tower.d_model}.")

    def sites(self, tower: Tower) -> tuple[str, ...]:
        """All sites."""
        return tower.site_names

    def at_site(
        self, hidden: Float[torch.Tensor, "batch key d_model"], context: ProbeContext
    ) -> dict[str, torch.Tensor]:
        """Rank the entries of each prompt."""
        rows = [
            _top((state if bool(real.all()) else state[real]).float(), self.top)
            for state, real in zip(hidden, context.batch.real, strict=True)
        ]
        return {name: torch.stack(column) for name, column in zip(_TOP, zip(*rows, strict=True), strict=True)}


@dataclass(frozen=True)
class SinkDims(Probe):
    """phi: the largest |x_d| over the named dimensions, over the root mean square of the token (Kang et al. 2025).

    Makes ``phi`` (prompt, site, key): max over dims of |x_d| / sqrt(mean(x^2) + 1e-6), on the raw residual stream
    without the norm's weight. ``dims=None`` takes all dimensions; it cannot exceed the square root of the width.
    """

    dims: Sequence[int] | None = None
    variables: ClassVar[Mapping[str, Variable]] = {
        "phi": Variable(("prompt", "site", "key"), "1", "largest sink-dimension entry over the root mean square"),
    }
    papers = ("kang2025",)

    def __post_init__(self) -> None:
        if self.dims is not None:
            object.__setattr__(self, "dims", whole_numbers(self.dims, "SinkDims(dims"))

    def check(self, tower: Tower) -> None:
        """Dimensions must exist."""
        if self.dims is None:
            return
        wrong = [d for d in self.dims if not 0 <= d < tower.d_model]
        if wrong or not self.dims:
            raise ProbeError(
                f"SinkDims(dims={list(self.dims)}): the residual stream has dimensions 0..{tower.d_model - 1}. "
                "Name dimensions in that range, or None for all."
            )

    def sites(self, tower: Tower) -> tuple[str, ...]:
        """All sites."""
        return tower.site_names

    def at_site(
        self, hidden: Float[torch.Tensor, "batch key d_model"], context: ProbeContext
    ) -> dict[str, torch.Tensor]:
        """Return the ratio of the largest named entry to the root mean square."""
        hidden = hidden.float()
        norm = cast(torch.Tensor, torch.linalg.vector_norm(hidden, dim=-1))  # pyright: ignore[reportUnknownMemberType]
        scale = (norm.square() / hidden.shape[-1] + PHI_EPSILON).sqrt()
        entries = hidden if self.dims is None else hidden[..., list(self.dims)]
        return {"phi": _largest_magnitude(entries) / scale}


def _top(hidden: Float[torch.Tensor, "key d_model"], top: int) -> tuple[torch.Tensor, ...]:
    """Signed values, dims, positions and own medians of the ``top`` largest magnitudes, and the median of all."""
    sizes = hidden.abs()
    # The top entries lie in the tokens with the largest maxima, so only those rows are ranked.
    rows = sizes.amax(-1).topk(min(top, len(hidden))).indices
    found = sizes[rows].flatten()
    order = found.topk(min(top, len(found))).indices
    position, dim = rows[order // hidden.shape[1]], order % hidden.shape[1]
    own = [_medians(sizes[position]), _medians(sizes[:, dim].T)]
    return hidden[position, dim], dim.float(), position.float(), *own, midpoint_median(sizes.flatten())


def _medians(rows: Float[torch.Tensor, "entry value"]) -> Float[torch.Tensor, " entry"]:
    """Mid-point median of each row; np.median takes three times as long on rows this short."""
    middle = [(rows.shape[1] - 1) // 2, rows.shape[1] // 2]
    found = np.partition(rows.cpu().numpy(), middle, axis=1)[:, middle].mean(1)
    return torch.as_tensor(found, dtype=rows.dtype, device=rows.device)


def _largest_magnitude(hidden: Float[torch.Tensor, "*tokens dim"]) -> Float[torch.Tensor, "*tokens"]:
    """Largest magnitude of each token, without a copy of the magnitudes."""
    return torch.maximum(hidden.amax(-1), -hidden.amin(-1))  # aminmax takes ten times as long on CPU


def midpoint_median(values: Float[torch.Tensor, " entry"]) -> Float[torch.Tensor, ""]:
    """Exact median, the mean of the two middle elements of an even count.

    A sample brackets the middle, so that only a few per cent of the values are ranked.
    """
    numbers = values.cpu().numpy()
    low_rank, high_rank = (len(numbers) - 1) // 2, len(numbers) // 2
    middle = np.median(numbers) if len(numbers) <= 1 << 14 else _bracketed(numbers, low_rank, high_rank)
    return torch.as_tensor(middle, dtype=values.dtype, device=values.device)


def _bracketed(numbers: Float[np.ndarray, " entry"], low_rank: int, high_rank: int) -> float:
    stride = max(16, len(numbers) >> 14)
    # A stride that shares a factor with the width would see the same few dimensions of every token, and the dimensions
    # of a trained model differ in size: the bracket would miss.
    while math.gcd(stride, len(numbers)) > 1:
        stride += 1
    sample = numbers[::stride].copy()
    # The rank of the median in a sample of n has a standard deviation of at most sqrt(n) / 2: four of them either side.
    reach = 2 * math.sqrt(len(sample))
    ends = [int(len(sample) / 2 - reach), int(len(sample) / 2 + reach)]
    sample.partition(ends)
    low, high = sample[ends]
    below = int(np.count_nonzero(numbers < low))
    inside = numbers[np.flatnonzero((numbers >= low) & (numbers <= high))]
    if not below <= low_rank <= high_rank < below + len(inside):
        return float(np.median(numbers))
    ranks = [low_rank - below, high_rank - below]
    inside.partition(ranks)
    return float(inside[ranks].mean())
