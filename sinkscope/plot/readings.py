"""What a figure draws of a whole reading or of bare numbers: the selection and mean that its array is made by."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from sinkscope import registry
from sinkscope.arguments import RAW
from sinkscope.errors import SchemaError
from sinkscope.plot.theme import described, themed, with_look
from sinkscope.schema import refuse_nothing

P = ParamSpec("P")
Drawable = xr.DataArray | xr.Dataset | np.ndarray
Arguments = tuple[Sequence[xr.DataArray], dict[str, Any]]
Takes = Callable[[xr.Dataset, str], Arguments]
"""Makes a figure's own arguments of a reading; gets the figure's name for its errors."""


def drawn(
    *dims: str, takes: Takes | None = None
) -> Callable[[Callable[Concatenate[xr.DataArray, P], Axes]], Callable[Concatenate[Drawable, P], Axes]]:
    """Return a decorator of a figure that draws an array: it then takes a reading or bare numbers as well.

    Args:
        dims: what the dimensions of bare numbers (a numpy array) are; none: they are refused.
        takes: makes the figure's arguments of a reading or of what a metric returned; None: it is refused, and the
            message lists its variables.
    """

    def decorate(draw: Callable[Concatenate[xr.DataArray, P], Axes]) -> Callable[Concatenate[Drawable, P], Axes]:
        inner: Callable[..., Axes] = themed(draw)
        name = getattr(draw, "__name__", "figure")
        first = next(iter(inspect.signature(draw).parameters))

        @functools.wraps(draw)
        def wrapper(*given: Any, **kwargs: Any) -> Axes:
            # Each figure has a name of its own for what it draws, by which it may be given.
            if not given and first not in kwargs:
                return inner(**kwargs)  # Python says what is missing
            array, *args = given or (kwargs.pop(first),)
            if isinstance(array, xr.DataArray):
                return inner(array, *args, **kwargs)
            if isinstance(array, xr.Dataset) and takes is not None:
                refuse_nothing(array, name)
                try:
                    made, chosen = takes(array, name)
                except RAW as error:
                    raise SchemaError(
                        f"{name}: the variables of this Dataset are not shaped as those of a reading ({error}). Pass "
                        "what sinkscope.run returns, or an array."
                    ) from error
                return inner(*made, *args, **{**chosen, **kwargs})
            return inner(_labelled(array, dims, name), *args, **kwargs)

        wrapper.__signature__ = with_look(draw)  # type: ignore[attr-defined]
        return wrapper

    return decorate


def _labelled(array: Any, dims: tuple[str, ...], name: str) -> xr.DataArray:
    if isinstance(array, xr.Dataset):
        held = sorted(map(str, array.data_vars))
        raise SchemaError(f"{name}: expected an array, got a Dataset. Take one of its variables: {held}.")
    if isinstance(array, np.ndarray) and dims and array.ndim == len(dims) and array.size:
        return xr.DataArray(array, dims=dims)
    shape = f" of shape {array.shape}" if isinstance(array, np.ndarray) else ""
    raise SchemaError(
        f"{name}: expected an xarray.DataArray or a reading, got a {type(array).__name__}{shape}."
        + (f" Bare numbers need the dimensions {dims}." if dims else "")
    )


def take(ds: xr.Dataset, name: str, *variables: str) -> list[xr.DataArray]:
    """Return variables of a reading, without coordinates that are not labels of a dimension.

    Raises:
        SchemaError: one is missing; the message names the probe that makes it.
    """
    missing = [each for each in variables if each not in ds]
    if missing:
        raise SchemaError(
            f"{name} draws {missing[0]!r}, which this reading lacks; it holds {sorted(map(str, ds.data_vars))}. "
            f"Add {registry.probe_for(missing[0])} to the probes, or pass an array."
        )
    return [ds[each].drop_vars([n for n in ds[each].coords if n not in ds[each].dims]) for each in variables]


def _mean(ds: xr.Dataset, array: xr.DataArray, dims: Sequence[str], says: str) -> xr.DataArray:
    return described(array.mean([dim for dim in dims if dim in array.dims]), ds, says)


def on_first_token(ds: xr.Dataset, name: str) -> Arguments:
    """Mean attention of each head on the first token."""
    mass = take(ds, name, "key_mass")[0].isel(key=0)
    says = "mean attention on the first token from the queries that see it (Gu et al. 2025)"
    return [_mean(ds, mass, ["prompt"], says)], {"title": "Attention on the first token"}


def entropy_of_heads(ds: xr.Dataset, name: str) -> Arguments:
    """Mean entropy of each head's rows."""
    rows = take(ds, name, "entropy")[0]
    return [_mean(ds, rows, ["prompt", "query"], "entropy of the attention row, mean over queries, natural log")], {}


def shares_of_roles(ds: xr.Dataset, name: str) -> Arguments:
    """Share of attention on each role, by layer."""
    says = "share of attention on the keys of each role, mean over heads and queries"
    return [_mean(ds, take(ds, name, "role_share")[0], ["prompt", "head"], says)], {}


def first_and_others(variable: str, says: str) -> Takes:
    """Return what takes a variable of the first token, and of the other tokens, as two arrays."""

    def takes(ds: xr.Dataset, name: str) -> Arguments:
        whole = take(ds, name, variable)[0]
        return [described(whole.isel(key=[0]), ds, says), whole.isel(key=slice(1, None))], {}

    return takes


def two_lines(variable: str, says: str) -> Takes:
    """Return what takes a variable of the first token and of the others as two lines over depth."""

    def takes(ds: xr.Dataset, name: str) -> Arguments:
        parts, _ = first_and_others(variable, says)(ds, name)
        dims = [dim for dim in ("prompt", "key") if dim in parts[0].dims]
        lines = xr.concat([part.mean(dims) for part in parts], "tokens").assign_coords(tokens=["sink", "others"])
        return [described(lines, ds, says)], {}

    return takes


def largest_entries(ds: xr.Dataset, name: str) -> Arguments:
    """Largest magnitudes of the residual stream and their median, mean over prompts."""
    top, median = take(ds, name, "top_value", "median_abs")
    says = "three largest magnitudes in the residual stream and the median, mean over prompts (Sun et al. 2024)"
    return [_mean(ds, abs(top), ["prompt"], says), median.mean("prompt")], {}


def largest_attention(ds: xr.Dataset, name: str) -> Arguments:
    """One number per prompt, layer and head: the largest weight on the chosen keys, mean over queries."""
    says = "largest weight on the chosen keys, mean over queries, one number per prompt, layer and head (Kan et al.)"
    values = take(ds, name, "max_attention")[0].rename("largest attention weight on the chosen keys")
    return [_mean(ds, values, ["query"], says)], {}


def first_map(ds: xr.Dataset, name: str) -> Arguments:
    """The first map that was kept, of the first prompt."""
    take(ds, name, "attention")
    one = ds["attention"].isel(prompt=0) if "prompt" in ds["attention"].dims else ds["attention"]
    known = one.notnull().any(["query", "key"])
    if known.ndim:
        known = known.transpose("layer", "head")
        layer, head = (int(i) for i in np.argwhere(known.values)[0]) if known.any() else (0, 0)
        one = one.isel(layer=layer, head=head)
    return [described(one, ds, "attention map of the first prompt")], {}


def differences(ds: xr.Dataset, name: str) -> Arguments:
    """What ``metrics.compare`` found: the difference with its interval."""
    found, low, high = _compared(ds, name)
    return [found], {"interval": (low, high)}


def estimates(ds: xr.Dataset, name: str) -> Arguments:
    """A share with its interval, as ``tasks.rate`` gives it, or what ``metrics.compare`` found."""
    if {"value", "low", "high"} <= set(map(str, ds.data_vars)):
        share = ds["value"].assign_attrs(ds["value"].attrs or {"long_name": "share"})
        return [share], {"interval": (ds["low"], ds["high"]), "reference": None}
    return differences(ds, name)


def differences_of_heads(ds: xr.Dataset, name: str) -> Arguments:
    """What ``metrics.compare`` found for each head; heads whose q-value is below .05 are marked."""
    found = _compared(ds, name)[0]
    return [found], {"marked": ds["q_value"] < 0.05}


def _compared(ds: xr.Dataset, name: str) -> list[xr.DataArray]:
    if not {"difference", "low", "high", "q_value"} <= set(map(str, ds.data_vars)):
        held = sorted(map(str, ds.data_vars))
        raise SchemaError(
            f"{name}: expected what metrics.compare returns, or an array; this Dataset holds {held}. "
            "Compare first, or take one of its variables."
        )
    said = f"{ds.attrs.get('variable', '')}: mean difference to {ds.attrs.get('to', 'the other')}, 95% interval"
    attrs = {**ds.attrs, "definition": said, "n_prompts": int(ds.attrs["n"]), "long_name": "difference"}
    attrs.pop("meaning", None)
    return [ds["difference"].assign_attrs(attrs), ds["low"], ds["high"]]
