"""Visual attention: which heads look at the image, which sit on its sinks, and whether sinks lie on background."""

# What xarray leaves untyped is not counted against this file.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from sinkscope.arguments import checked
from sinkscope.definitions import Definition, define
from sinkscope.errors import MetricError
from sinkscope.metrics.base import dims_over, masked, mean_over, metric, of_role, require, stamp
from sinkscope.metrics.bimodal import bimodality
from sinkscope.metrics.residual import at_block_inputs, phi_sinks


@metric(
    Definition(
        "image_centric_heads",
        "paper",
        "visual mass at least min_image_mass and its non-sink share at least rho",
        "1",
        (("min_image_mass", 0.2), ("rho", 0.5)),
        "kang2025",
    ),
    Definition(
        "image_centric_heads",
        "released_code",
        "visual mass at least min_image_mass and its sink share at most rho; none where no visual token is a sink",
        "1",
        (("min_image_mass", 0.2), ("rho", 0.5)),
        "kang2025",
    ),
)
def image_centric_heads(
    ds: xr.Dataset,
    definition: str = "paper",
    *,
    sinks: xr.DataArray | None = None,
    min_image_mass: float | None = None,
    rho: float | None = None,
) -> xr.Dataset:
    """Say, query by query, which heads look at the image beyond its sinks; dims (prompt layer head query).

    Needs ``attention``, and ``phi`` for the sinks unless ``sinks`` (bool with ``prompt``, ``key``, perhaps ``layer``)
    is given. Rows are the tokens after the last image token. Returns ``image_mass``, ``non_sink_share`` (0 where the
    mass is 0) and ``selected`` (bool). ``"paper"``: mass >= 0.2 and non-sink share >= rho. ``"released_code"``: mass >=
    0.2 and sink share <= rho, and no head at all in a layer without a visual sink. Equal at rho = 0.5 when there is a
    sink. Source: Kang et al. (kang2025).

    Raises:
        MetricError: no ``attention``, no ``phi`` and no ``sinks``, or an unknown definition.
    """
    chosen = define("image_centric_heads", definition)
    require(ds, "image_centric_heads", "attention")
    least = chosen.default("min_image_mass") if min_image_mass is None else min_image_mass
    bound = chosen.default("rho") if rho is None else rho
    image = of_role(ds, "image_centric_heads", "image")
    if sinks is None:
        require(ds, "image_centric_heads", "phi")
        sinks = at_block_inputs(phi_sinks(ds, roles="image"), ds["layer"].values.tolist())
    visual_sinks = sinks.drop_vars([name for name in sinks.coords if name not in sinks.dims]) & image
    rows = masked(ds["attention"].astype("float64"), _after_image(ds))
    mass = masked(rows, image).sum("key", min_count=1)
    clear = masked(rows, ~visual_sinks & image).sum("key").where(mass.notnull())
    share = (clear / mass.where(mass > 0)).fillna(0.0).where(mass.notnull())
    if definition == "paper":
        selected = (mass >= least) & (share >= bound)
    else:
        selected = (mass >= least) & (mass > 0) & (1.0 - share <= bound) & visual_sinks.any("key")
    selected = selected.transpose(*mass.dims)
    flags = stamp(
        selected, "image_centric_heads", definition, n=int(mass.notnull().sum()), min_image_mass=least, rho=bound
    )
    result = xr.Dataset(
        {name: array.reset_coords(drop=True) for name, array in (("image_mass", mass), ("non_sink_share", share))}
    )
    result["selected"] = flags.reset_coords(drop=True)
    result.attrs = dict(flags.attrs)
    return result


def _after_image(ds: xr.Dataset) -> xr.DataArray:
    """Say which queries are real tokens after the last image token: dims (prompt, query)."""
    image = of_role(ds, "image_centric_heads", "image", dim="query")
    later = image.isel(query=slice(None, None, -1)).cumsum("query").isel(query=slice(None, None, -1))
    return of_role(ds, "image_centric_heads", "all", dim="query") & (later == 0) & image.any("query")


@metric(
    Definition("max_attention", "kan2025", "largest weight on the named keys", "attention weight", (), "kan2025"),
)
def max_visual_attention(ds: xr.Dataset, *, reduce: str = "mean", over: str | Iterable[str] = "prompt") -> xr.DataArray:
    """Return the largest attention on the named keys per head, by default (layer, head).

    Needs ``max_attention`` (prompt layer head query), read with ``keys="image"``. ``reduce`` over the queries:
    ``"mean"`` (one lucky row should not make a vision head), ``"max"`` or ``"last"`` (the last query that was read).
    The prompts are then averaged unless ``over=()``. Source: Kan et al. (kan2025); the reduction is not in the source.

    Raises:
        MetricError: no ``max_attention``, an unknown reduction or dim.
    """
    require(ds, "max_visual_attention", "max_attention")
    values = ds["max_attention"].astype("float64").reset_coords(drop=True)
    reductions: dict[str, Callable[[xr.DataArray], xr.DataArray]] = {
        "mean": lambda a: a.mean("query"), "max": lambda a: a.max("query"), "last": _last,
    }  # fmt: skip
    if reduce not in reductions:
        raise MetricError(f"max_visual_attention(reduce={reduce!r}): choose one of {sorted(reductions)}.")
    reduced = reductions[reduce](values)
    result = mean_over(reduced, dims_over(reduced, over, "max_visual_attention"))
    result = stamp(result, "max_attention", "kan2025", reduce=reduce)
    return result.rename("max_visual_attention")


def _last(values: xr.DataArray) -> xr.DataArray:
    place = xr.DataArray(np.arange(values.sizes["query"]), dims="query")
    return values.isel(query=(values.notnull() * place).max("query").reset_coords(drop=True))


@metric(
    Definition(
        "vision_heads",
        "kan2025",
        "heads whose maximum visual attention is at or above the valley of its distribution",
        "1",
        (),
        "kan2025",
    ),
)
def split_heads(
    vmax: xr.DataArray | xr.Dataset, entropy: xr.DataArray | None = None, *, over: str | Iterable[str] | None = None
) -> xr.Dataset:
    """Split heads by the valley of their maximum visual attention, and the rest by that of their non-vision entropy.

    ``vmax`` as from ``max_visual_attention``, or a reading: then its ``max_attention``, mean over queries; ``entropy``
    as from ``non_vision_entropy`` with the same dims. ``over`` names the dims one valley is taken over (None: all;
    ``"head"``: one per layer). Returns ``kind`` (str, dims of
    ``vmax``): ``"vision"`` at or above the valley, else ``"resink"``, and with ``entropy`` ``"resink_global"`` at or
    above its valley or ``"resink_isolated"`` below; ``valley``, ``entropy_valley``; ``bimodal``. Where maximum
    attention has one hump there are no two classes: every head is ``"unsplit"``. Where only the entropy of the rest
    has one, the rest is ``"resink"``. These are not the heads with a text sink. Source: Kan et al. (kan2025), where
    the first head is always kept; here it is treated like every other.

    Raises:
        MetricError: a reading without ``max_attention``, or a dim of ``over`` is not there.
    """
    if isinstance(vmax, xr.Dataset):
        require(vmax, "split_heads", "max_attention")
        vmax = vmax["max_attention"].mean("query")
    first = bimodality(vmax, over=over)
    split = (first["bimodal"] & vmax.notnull()).transpose(*vmax.dims)
    vision = ((vmax >= first["valley"]) & split).transpose(*vmax.dims)
    rest = xr.full_like(vmax, "resink", dtype=object)
    result = xr.Dataset({"bimodal": first["bimodal"], "valley": first["valley"].where(first["bimodal"])})
    if entropy is not None:
        others = entropy.reset_coords(drop=True).transpose(*vmax.dims)
        others = masked(others, split & ~vision)
        second = bimodality(others, over=over)
        isolated = ((others < second["valley"]) & second["bimodal"]).transpose(*vmax.dims)
        rest = xr.where(second["bimodal"], xr.where(isolated, "resink_isolated", "resink_global"), "resink")
        result["entropy_valley"] = second["valley"].where(second["bimodal"])
    kind = xr.where(split, xr.where(vision, "vision", rest), "unsplit")
    kind = kind.where(vmax.notnull(), "").transpose(*vmax.dims)
    result["kind"] = kind.astype(str).reset_coords(drop=True)
    result["kind"].attrs = {}
    definition = define("vision_heads", "kan2025")
    result.attrs = {
        "metric": "vision_heads", "definition": definition.name, "meaning": definition.meaning, "units": "1",
        "reference": definition.reference, "n": int(vmax.notnull().sum()), "verdict": str(first.attrs["verdict"]),
    }  # fmt: skip
    return result


@metric(
    Definition(
        "background_overlap",
        "kang2025",
        "share of the visual sinks that lie on background",
        "share of tokens",
        (),
        "kang2025",
    ),
)
def background_overlap(
    sinks: xr.DataArray, background: xr.DataArray, *, over: str | Iterable[str] = "prompt"
) -> xr.Dataset:
    """Share of the visual sinks that lie on background, beside the share of all visual tokens that do.

    ``sinks`` is bool with dims ``prompt`` and ``key`` and the coordinate ``token_role``; ``background`` is bool (prompt
    key), as from ``patch_background``. Tokens are pooled over ``key`` and ``over``; other dims stay. Returns
    ``sinks_on_background``, ``tokens_on_background`` (NaN over nothing), ``n_sinks`` and ``n_tokens``.
    Source: Kang et al. (kang2025).

    Raises:
        MetricError: ``token_role`` is missing, or labels differ.
    """
    image = of_role(sinks, "background_overlap", "image")
    at = sinks.astype(bool).drop_vars([name for name in sinks.coords if name not in sinks.dims]) & image
    ground = background.astype(bool).reset_coords(drop=True)
    dims = ["key", *dims_over(at, over, "background_overlap")]
    token_dims = [dim for dim in dims if dim in image.dims]
    n_sinks, n_tokens = at.sum(dims), image.sum(token_dims)
    result = xr.Dataset(
        {
            "sinks_on_background": (at & ground).sum(dims) / n_sinks.where(n_sinks > 0),
            "tokens_on_background": (image & ground).sum(token_dims) / n_tokens.where(n_tokens > 0),
            "n_sinks": n_sinks,
            "n_tokens": n_tokens,
        }
    )
    definition = define("background_overlap", "kang2025")
    result.attrs = {
        "metric": "background_overlap", "definition": definition.name, "meaning": definition.meaning,
        "units": definition.units, "reference": definition.reference, "n": int(n_sinks.sum()),
    }  # fmt: skip
    return result


@metric()
def background_share(
    ds: xr.Dataset, background: xr.DataArray, *, over: str | Iterable[str] = ("prompt", "head")
) -> xr.DataArray:
    """Share of the attention that visual tokens get which falls on background, by default per layer: re-sinking.

    Needs ``key_mass`` (prompt layer head key); every visual key counts by its key mass. ``background`` is bool (prompt
    key). A head that gives the image nothing is left out. Source: the kan2025 notes detect re-sinking this way.

    Raises:
        MetricError: no ``key_mass``, or labels differ.
    """
    require(ds, "background_share", "key_mass")
    image = of_role(ds, "background_share", "image")
    mass = ds["key_mass"].astype("float64")
    total = masked(mass, image).sum("key")
    ground = masked(mass, image & background.astype(bool).reset_coords(drop=True)).sum("key")
    share = ground / total.where(total > 0)
    result = stamp(mean_over(share, dims_over(share, over, "background_share")), "background_overlap", "kang2025")
    return result.rename("background_share").assign_attrs(units="share of visual attention")


@checked(MetricError)
def patch_background(mask: ArrayLike, rows: int, cols: int, *, rule: str = "majority") -> np.ndarray:
    """Say which patches of a grid are background, from a pixel mask that is true on the object; bool (rows cols).

    ``rule``: ``"majority"`` (less than half of the patch's pixels are object) or ``"any"`` (no pixel is). The grid may
    not divide the image: a pixel belongs to the patch its centre falls in.

    Raises:
        MetricError: the mask is not two-dimensional or smaller than the grid, or an unknown rule.
    """
    pixels = np.asarray(mask, dtype=bool)
    if rule not in ("majority", "any"):
        raise MetricError(f"patch_background(rule={rule!r}): choose 'majority' or 'any'.")
    if pixels.ndim != 2 or pixels.shape[0] < rows or pixels.shape[1] < cols or rows < 1 or cols < 1:
        raise MetricError(
            f"patch_background: a mask of shape {pixels.shape} cannot be cut into {rows} x {cols} patches."
        )
    row: NDArray[np.intp] = ((np.arange(pixels.shape[0], dtype=np.float64) + 0.5) * rows / pixels.shape[0]).astype(int)
    col: NDArray[np.intp] = ((np.arange(pixels.shape[1], dtype=np.float64) + 0.5) * cols / pixels.shape[1]).astype(int)
    flat = (row[:, None] * cols + col[None, :]).ravel()
    size = np.bincount(flat, minlength=rows * cols)
    covered = np.bincount(flat, weights=pixels.ravel(), minlength=rows * cols)
    ground = covered / size < 0.5 if rule == "majority" else covered == 0
    return ground.reshape(rows, cols)
