"""Negative controls: random tokens and random heads, matched in number, never the ones under test."""

# What xarray leaves untyped is not counted against this file.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from sinkscope.arguments import checked
from sinkscope.errors import MetricError
from sinkscope.metrics.base import of_role


@checked(MetricError)
def matched_controls(
    sinks: xr.DataArray,
    seed: int = 0,
    n: int = 1,
    *,
    within: str = "prompt",
    roles: str | Sequence[str] = "all",
    redraw: bool = False,
) -> xr.DataArray:
    """Draw random tokens to set beside the sinks: as many in each prompt, layer and head, never a sink, never padding.

    ``sinks`` is bool with dims ``prompt`` and ``key`` (and any others) and the coordinate ``token_role``. Candidates
    are the real tokens of ``roles`` that are no sink in any layer or head; ``within="range"`` keeps those between the
    first and the last sink of the prompt. One draw serves all layers and heads of a prompt, as sinks
    persist over layers; ``redraw=True`` draws anew for each. ``n`` > 1 puts a dim ``draw`` in front.

    Raises:
        MetricError: sinks without these dims, or a prompt with fewer candidates than sinks.
    """
    if within not in ("prompt", "range"):
        raise MetricError(f"matched_controls(within={within!r}): choose 'prompt' or 'range'.")
    if n < 1:
        raise MetricError(f"matched_controls(n={n}): at least one draw is needed.")
    absent = [dim for dim in ("prompt", "key") if dim not in sinks.dims]
    if absent:
        raise MetricError(f"matched_controls: sinks have dims {list(sinks.dims)}; {absent} are needed.")
    others = [dim for dim in sinks.dims if dim not in ("prompt", "key")]
    flags = sinks.astype(bool).transpose("prompt", *others, "key")
    pool = of_role(sinks, "matched_controls", roles).transpose("prompt", "key").values
    rng = np.random.default_rng(seed)
    draws = np.stack([_draw(flags, pool, rng, within, redraw) for _ in range(n)])
    result = xr.concat([flags.copy(data=drawn).transpose(*sinks.dims) for drawn in draws], dim="draw")
    result = result.assign_coords(draw=np.arange(n)) if n > 1 else result.isel(draw=0, drop=True)
    result.attrs = {"metric": "matched_controls", "units": "1", "n": int(flags.sum()), "seed": seed, "within": within}
    return result.rename("matched_controls")


def _draw(flags: xr.DataArray, pool: np.ndarray, rng: np.random.Generator, within: str, redraw: bool) -> np.ndarray:
    drawn = np.zeros(flags.shape, dtype=bool)
    for p, prompt in enumerate(flags["prompt"].values.tolist() if "prompt" in flags.coords else range(len(pool))):
        here = flags.values[p].reshape(-1, flags.sizes["key"])
        any_sink = here.any(0)
        if not any_sink.any():
            continue
        candidates = pool[p] & ~any_sink
        if within == "range":
            first, last = np.nonzero(any_sink)[0][[0, -1]]
            candidates[:first] = candidates[last + 1 :] = False
        places = np.nonzero(candidates)[0]
        most = int(here.sum(1).max())
        if most > len(places):
            raise MetricError(
                f"matched_controls: prompt {prompt} has {most} sinks and only {len(places)} other tokens to draw from "
                f"(within={within!r}). Use within='prompt', more roles, or longer prompts."
            )
        out = drawn[p].reshape(-1, flags.sizes["key"])
        order = rng.permutation(places)
        for row, count in enumerate(here.sum(1)):
            out[row, (rng.permutation(places) if redraw else order)[:count]] = True
        drawn[p] = out.reshape(drawn[p].shape)
    return drawn


@checked(MetricError)
def random_heads(heads: xr.DataArray, seed: int = 0, *, same_layer: bool = True) -> xr.DataArray:
    """Draw as many other heads: bool, dims (layer head), none of them among ``heads``.

    ``heads`` is bool with dims ``layer`` and ``head``; any other dim (prompt, key) is reduced by "any", so the result
    of ``sink_mask`` serves. ``same_layer=True`` draws as many in each layer, so that depth is the same.

    Raises:
        MetricError: dims are missing, or there are not enough other heads.
    """
    absent = [dim for dim in ("layer", "head") if dim not in heads.dims]
    if absent:
        raise MetricError(f"random_heads: got dims {list(heads.dims)}; {absent} are needed.")
    chosen = heads.astype(bool).any([dim for dim in heads.dims if dim not in ("layer", "head")])
    chosen = chosen.transpose("layer", "head").reset_coords(drop=True)
    taken = chosen.values
    rng = np.random.default_rng(seed)
    drawn = np.zeros_like(taken)
    rows = [[i] for i in range(len(taken))] if same_layer else [list(range(len(taken)))]
    for group in rows:
        wanted = int(taken[group].sum())
        layer, head = np.nonzero(~taken[group])
        if wanted > len(layer):
            where = f"layer {chosen['layer'].values[group[0]]}" if same_layer else "the model"
            raise MetricError(
                f"random_heads: {where} has {wanted} chosen heads and only {len(layer)} others. "
                "Choose fewer heads, or pass same_layer=False."
            )
        pick = rng.permutation(len(layer))[:wanted]
        drawn[np.array(group)[layer[pick]], head[pick]] = True
    result = chosen.copy(data=drawn).rename("random_heads")
    result.attrs = {"metric": "random_heads", "units": "1", "n": int(drawn.sum()), "seed": seed}
    return result


@checked(MetricError)
def head_list(heads: xr.DataArray) -> dict[int, list[int]]:
    """Return a bool map (layer head) as the mapping ``{layer: [heads]}`` that edits take; empty layers are left out."""
    flags = heads.astype(bool).transpose("layer", "head")
    found = {
        int(layer): [int(head) for head in flags["head"].values[flags.sel(layer=layer).values]]
        for layer in flags["layer"].values
    }
    return {layer: chosen for layer, chosen in found.items() if chosen}
