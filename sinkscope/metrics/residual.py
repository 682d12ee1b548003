"""Sink positions by the residual stream: phi, its bound, its distribution, and which state each layer reads."""

# What xarray leaves untyped is not counted against this file.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from scipy import stats

from sinkscope.arguments import checked
from sinkscope.definitions import Definition, define
from sinkscope.errors import MetricError
from sinkscope.metrics.base import attribute, masked, metric, of_role, require, stamp


@metric(
    Definition("phi_sinks", "kang2025", "phi at least tau", "1", (("tau", 20.0),), "kang2025"),
    Definition(
        "phi_sinks",
        "width_relative",
        "phi at least tau sqrt(d_model), and twice what normal entries would show",
        "1",
        (("tau", 0.3125),),
        "kang2025",
    ),
)
def phi_sinks(
    ds: xr.Dataset,
    definition: str = "kang2025",
    *,
    tau: float | None = None,
    roles: str | Sequence[str] = "all",
) -> xr.DataArray:
    """Say which tokens are sinks by their residual stream: bool, dims (prompt site key).

    Needs ``phi`` (from ``SinkDims``). ``"kang2025"``: phi >= 20. ``"width_relative"``: phi / sqrt(d_model) >= 0.3125,
    the same at width 4096, and twice what normal entries would show (``phi_threshold``); phi never exceeds
    sqrt(d_model), so 20 is out of reach below width 400. ``roles="image"``
    keeps visual sinks only. Plot ``phi_histogram`` before trusting a threshold. Source: Kang et al. (kang2025).

    Raises:
        MetricError: no ``phi`` or ``d_model``, or an unknown definition.
    """
    chosen = define("phi_sinks", definition)
    require(ds, "phi_sinks", "phi")
    bound = chosen.default("tau") if tau is None else tau
    level = ds["phi"].astype("float64")
    limit = phi_threshold(bound, attribute(ds, "phi_sinks", "d_model")) if definition == "width_relative" else bound
    found = (masked(level, of_role(ds, "phi_sinks", roles)) >= limit).transpose(*ds["phi"].dims)
    return stamp(found, "phi_sinks", definition, n=int(level.notnull().sum()), tau=bound)


def phi_threshold(tau: float, width: int) -> float:
    """Return the bound on phi of the width-relative rule: ``tau sqrt(width)``, at least twice what normal entries show.

    The largest of ``width`` normal entries is about ``isf(1 / 2 width)`` root mean squares; in narrow models that
    alone is above ``tau sqrt(width)``.
    """
    return float(max(tau * np.sqrt(width), 2 * stats.norm.isf(0.5 / width)))


SEPARATION = 1.2
"""phi of the first tokens over that of the others from which on the two are taken to be apart. Ours."""


@metric(
    Definition(
        "phi_gap",
        "gap",
        "half way between the median phi of the first tokens and the 95th percentile of the other text tokens, over "
        "the sites at which the first token is a sink by width_relative",
        "1",
        (("separation", SEPARATION),),
    ),
)
def phi_gap(ds: xr.Dataset) -> xr.DataArray:
    """Return the threshold on phi that stands in the gap between first tokens and ordinary ones: a number.

    Needs ``phi`` (from ``SinkDims``). A threshold by width alone may lie among the ordinary tokens: in SmolLM2-135M
    7.5 marks 96 % of visual tokens, whose phi is 8 to 18, where that of the first token is 23. Tokens of the role
    image are in neither group. Attributes ``first`` and ``ordinary`` are the two edges of the gap, ``sites`` the sites
    that counted. The rule is this project's own.

    Raises:
        MetricError: no ``phi``; the first token is no sink at any site; or no gap: ``first`` is below 1.2 times
            ``ordinary``.
    """
    require(ds, "phi_gap", "phi")
    width = attribute(ds, "phi_gap", "d_model")
    level = ds["phi"].astype("float64").transpose("prompt", "site", "key")
    bound = phi_threshold(define("phi_sinks", "width_relative").default("tau"), width)
    first = level.isel(key=0)
    at = (first.median("prompt") >= bound).values
    sites = [str(site) for site, held in zip(ds["site"].values, at, strict=True) if held]
    if not sites:
        raise MetricError(
            f"phi_gap: the first token is a sink at no site: its phi is at most {float(first.max()):.3g}, a sink has "
            f"{bound:.3g}. This model may have no such sink; name tau= yourself, or look at phi_histogram."
        )
    text = of_role(ds, "phi_gap", "all") & ~of_role(ds, "phi_gap", "image")
    others = masked(level, text).isel(site=np.flatnonzero(at), key=slice(1, None)).values
    high = float(first.isel(site=np.flatnonzero(at)).median())
    low = float(np.nanquantile(others, 0.95))
    if high < SEPARATION * low:
        raise MetricError(
            f"phi_gap: no gap at {len(sites)} sites: phi is {high:.3g} at first tokens (median) and {low:.3g} at other "
            "text tokens (95th percentile). Name tau= yourself, or other dims="
        )
    found = xr.DataArray((high + low) / 2, name="phi_gap")
    found = stamp(found, "phi_gap", "gap", n=int(np.isfinite(others).sum()), separation=SEPARATION)
    return found.assign_attrs(first=high, ordinary=low, sites=sites)


@metric()
def relative_phi(ds: xr.Dataset) -> xr.DataArray:
    """Return phi over its upper bound sqrt(d_model), in [0, 1]; dims (prompt site key)."""
    require(ds, "relative_phi", "phi")
    return (ds["phi"].astype("float64") / np.sqrt(attribute(ds, "relative_phi", "d_model"))).rename("relative_phi")


@metric()
def phi_histogram(ds: xr.Dataset, bins: int = 50, *, roles: str | Sequence[str] = "all") -> xr.DataArray:
    """Count tokens by phi / sqrt(d_model) at each site: dims (site bin), ``bin`` labelled by its centre, 0 to 1.

    Raises:
        MetricError: no ``phi`` or ``d_model``, or fewer than one bin.
    """
    if bins < 1:
        raise MetricError(f"phi_histogram(bins={bins}): at least one bin is needed.")
    level = masked(relative_phi(ds), of_role(ds, "phi_histogram", roles))
    edges = np.linspace(0.0, 1.0, bins + 1)
    counts = [
        np.histogram(np.clip(values[np.isfinite(values)], 0.0, 1.0), edges)[0]
        for values in level.transpose("site", ...).values
    ]
    result = xr.DataArray(
        np.array(counts).reshape(-1, bins), dims=("site", "bin"),
        coords={"site": ds["site"].values, "bin": (edges[:-1] + edges[1:]) / 2},
    )  # fmt: skip
    result = stamp(result, "phi_sinks", "width_relative", n=int(level.notnull().sum()))
    return result.rename("phi_histogram").assign_attrs(units="tokens")


@checked(MetricError)
def at_block_inputs(array: xr.DataArray, layers: Sequence[int]) -> xr.DataArray:
    """Turn the dim ``site`` into ``layer``: the state that each layer reads (``embed``, then ``(l-1).post``).

    Raises:
        MetricError: a site is missing.
    """
    wanted = ["embed" if int(layer) == 0 else f"{int(layer) - 1}.post" for layer in layers]
    absent = [site for site in wanted if site not in array["site"].values]
    if absent:
        raise MetricError(
            f"at_block_inputs: the sites {absent} are missing; there are {array['site'].values.tolist()}. "
            "Read all sites, or fewer layers."
        )
    picked = array.sel(site=wanted)
    picked = picked.drop_vars([name for name in picked.coords if "site" in picked[name].dims])
    return picked.rename(site="layer").assign_coords(layer=list(layers))
