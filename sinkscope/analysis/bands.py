"""Random bands: what an edit of the first token is held against, drawn several times and shown with their range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from sinkscope import metrics
from sinkscope.roles import padded_names

if TYPE_CHECKING:
    from sinkscope.prompts import Prompts

DRAWS = 3
"""Random tokens, and random sets of heads, that stand beside the first token of a prompt."""
Edges = tuple[xr.DataArray, xr.DataArray]
"""Lower and upper edge of the bands of some lines."""
Curve = tuple[xr.DataArray, Edges]
"""Lines with the edges of their bands."""


def random_tokens(prompts: Prompts, draws: int = DRAWS) -> list[xr.DataArray]:
    """Draw one token of each prompt, never the first, as edits take it: bool (prompt key), one array per draw.

    Args:
        prompts: the prompts.
        draws: how often; draw number ``i`` has the seed ``i``, so that scripts share what they measured of it.

    Raises:
        MetricError: a prompt has no token but its first.
    """
    roles = np.array(padded_names(prompts.roles, max(len(own) for own in prompts.roles)))
    first = xr.DataArray(
        np.broadcast_to(np.arange(roles.shape[1]) == 0, roles.shape), dims=("prompt", "key"),
        coords={"token_role": (("prompt", "key"), roles), "prompt": range(len(roles)), "key": range(roles.shape[1])},
    )  # fmt: skip
    return [metrics.matched_controls(first, seed=draw) for draw in range(draws)]


def add_random_bands(lines: xr.DataArray, interval: Edges, draws: Mapping[str, xr.DataArray], dim: str) -> Curve:
    """Put one line per random control beside ``lines``: its mean over the draws, with a band from least to largest.

    Args:
        lines: dims ``dim`` and one more, such as gamma.
        interval: lower and upper edge of their bands.
        draws: the controls by name (which begins with ``random``, so that they are drawn grey): dims ``draw`` and the
            other one of ``lines``.
        dim: the dimension that holds one line each.

    Returns:
        Lines and edges as :func:`sinkscope.plot.sweep_curve` takes them.
    """
    middle, low, high = [lines], [interval[0]], [interval[1]]
    for name, each in draws.items():
        made = ((middle, each.mean("draw")), (low, each.min("draw")), (high, each.max("draw")))
        for into, part in made:
            into.append(part.reset_coords(drop=True).expand_dims({dim: [name]}))
    joined = [xr.concat(parts, dim, combine_attrs="override") for parts in (middle, low, high)]
    return joined[0], (joined[1], joined[2])
