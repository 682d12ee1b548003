"""What every metric shares: looking up what a reading holds, exact joins, means that count, and labels on results."""

# What xarray leaves untyped is not counted against this file.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeGuard, TypeVar, cast

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from sinkscope import registry
from sinkscope.arguments import checked
from sinkscope.definitions import DEFINITIONS, Definition, define
from sinkscope.errors import MetricError
from sinkscope.registry import probe_for as probe_for

P = ParamSpec("P")
R = TypeVar("R")


def metric(*definitions: Definition) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that makes a function a metric: registered, its definitions known, its joins exact."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        DEFINITIONS.update({(each.metric, each.name): each for each in definitions})
        return registry.register("metric", exact(function))

    return decorate


def exact(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function with exact joins: readings whose labels differ are an error, never a silent intersection.

    Its arguments are checked against their annotations (:func:`sinkscope.arguments.checked`).
    """
    name = getattr(function, "__name__", "metric")

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with xr.set_options(arithmetic_join="exact", keep_attrs=False):
                return function(*args, **kwargs)
        except xr.AlignmentError as error:
            dims = sorted(set(re.findall(r"'(\w+)'", str(error).partition("(dimensions)")[2])))
            raise MetricError(
                f"{name}: the labels of the inputs differ along {', '.join(dims) or error}. Select the same prompts, "
                "layers and heads in both."
            ) from None

    return checked(MetricError)(wrapped)


def require(ds: object, metric: str, *variables: str) -> None:
    """Check that a reading holds the variables a metric needs.

    Raises:
        MetricError: ``ds`` is not a Dataset, or lacks one; the message names the probe to add.
    """
    if not isinstance(ds, xr.Dataset):
        raise MetricError(
            f"{metric}: expected a reading (xarray.Dataset), got {type(ds).__name__}. Pass what sinkscope.run returns."
        )
    for name in variables:
        if name not in ds:
            held = sorted(map(str, ds.data_vars))
            raise MetricError(
                f"{metric} needs {name!r}; this reading holds {held}.",
                advice=f"Add {probe_for(name)} to the probes of the run.",
            )


def attribute(ds: xr.Dataset | xr.DataArray, metric: str, name: str) -> int:
    """Return an integer attribute of a reading, such as ``d_model``.

    Raises:
        MetricError: the reading does not carry it.
    """
    if name not in ds.attrs:
        raise MetricError(
            f"{metric} needs the attribute {name!r}, which this reading lacks. "
            f"Use a reading made by sinkscope.run, or set ds.attrs[{name!r}]."
        )
    return int(ds.attrs[name])


def real_tokens(ds: xr.Dataset | xr.DataArray, metric: str, dim: str = "key") -> xr.DataArray:
    """Say which tokens are real: bool, dims ``(prompt, dim)``; false beyond a prompt's end.

    Raises:
        MetricError: the coordinate ``token_role`` is missing.
    """
    roles = token_roles(ds, metric, dim)
    return (roles != "") & (roles != "pad")


def token_roles(ds: xr.Dataset | xr.DataArray, metric: str, dim: str = "key") -> xr.DataArray:
    """Return the role of each token, dims ``(prompt, dim)``, without other coordinates than those of its dims."""
    if "token_role" not in ds.coords:
        raise MetricError(
            f"{metric} needs the coordinate 'token_role', which is missing. Readings made by sinkscope.run have it; "
            "do not drop coordinates before calling a metric."
        )
    roles = ds["token_role"]
    roles = roles.drop_vars([name for name in roles.coords if name not in roles.dims])
    return roles.rename(key=dim) if dim != "key" and "key" in roles.dims else roles


def of_role(ds: xr.Dataset | xr.DataArray, metric: str, roles: str | Sequence[str], dim: str = "key") -> xr.DataArray:
    """Say which tokens have one of ``roles``: bool, dims ``(prompt, dim)``. ``"all"`` means every real token."""
    if roles == "all":
        return real_tokens(ds, metric, dim)
    return token_roles(ds, metric, dim).isin([roles] if isinstance(roles, str) else list(roles))


def positions(values: ArrayLike, metric: str, name: str) -> NDArray[np.int64]:
    """Return indices as an array; numbers that are not whole, and masks, are refused: a cast would make others of them.

    Raises:
        MetricError: they are not whole numbers.
    """
    found = np.asarray(values)
    if found.dtype.kind not in "iu":
        raise MetricError(f"{metric}({name}=): whole numbers are needed, got {found.dtype}. Of a mask: np.flatnonzero.")
    return found.astype(np.int64)


def lengths(ds: xr.Dataset | xr.DataArray, metric: str) -> xr.DataArray:
    """Return the number of real tokens of each prompt."""
    return real_tokens(ds, metric).sum("key")


def even_attention(length: int, causal: bool) -> NDArray[np.float64]:
    """Return the key mass of each position when every row spreads evenly over the keys it sees; shape ``(key,)``.

    In a decoder position k of n gets the mean of 1/(q + 1) over the rows q from k on, so that the first token of a
    short prompt passes any threshold without a sink: above 0.3 up to n = 9.
    """
    if not causal:
        return np.full(length, 1.0 / length)
    rows = 1.0 / np.arange(1, length + 1)
    return rows[::-1].cumsum()[::-1] / np.arange(length, 0, -1)


def even_key_mass(ds: xr.Dataset, metric: str) -> xr.DataArray:
    """Return :func:`even_attention` of every prompt: dims ``(prompt, key)``, NaN beyond a prompt's end."""
    real = real_tokens(ds, metric)
    causal = bool(int(ds.attrs.get("causal", 1)))
    rows = np.full(real.transpose("prompt", "key").shape, np.nan)
    for row, length in enumerate(real.sum("key").values.tolist()):
        rows[row, :length] = even_attention(int(length), causal)
    return xr.DataArray(
        rows, dims=("prompt", "key"), coords={"prompt": real["prompt"]} if "prompt" in real.coords else {}
    )


def dims_over(values: xr.DataArray, over: str | Iterable[Hashable], metric: str) -> list[Hashable]:
    """Check the dims to average over and give them as a list.

    Raises:
        MetricError: a dim is not there.
    """
    wanted: list[Hashable] = [over] if isinstance(over, str) else list(over)
    absent = [dim for dim in wanted if dim not in values.dims]
    if absent:
        raise MetricError(f"{metric}(over={wanted}): {absent} are not dims; there are {list(values.dims)}.")
    return wanted


def coords_within(array: xr.DataArray, dims: Iterable[Hashable]) -> dict[Hashable, xr.Variable]:
    """Return the coordinates of an array that need no other dims than these."""
    kept = set(dims)
    return {name: array[name].variable for name in array.coords if kept.issuperset(array[name].dims)}


def is_labels(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Say whether a value names labels of dims; a Dataset is a mapping too, of its variables."""
    return isinstance(value, Mapping) and not isinstance(value, xr.Dataset)


def real_numbers(values: xr.DataArray, metric: str) -> xr.DataArray:
    """Return the values as float64.

    Raises:
        MetricError: they are texts, dates, or complex, of which half would be lost.
    """
    if values.dtype.kind not in "biuf":
        raise MetricError(f"{metric}: {values.name or 'the values'} are of type {values.dtype}. Give real numbers.")
    return values.astype("float64")


def mean_over(values: xr.DataArray, over: Sequence[Hashable]) -> xr.DataArray:
    """Average finite values over dims; a mean over nothing is NaN. The coordinate ``n`` counts what went in."""
    # Prompts differ in length: how many went into a mean differs from cell to cell.
    count = values.notnull().sum(list(over))
    total = values.astype("float64").sum(list(over), skipna=True)
    mean = total / count.where(count > 0)
    return mean.assign_coords(n=count.astype("int64"))


def masked(values: xr.DataArray, mask: xr.DataArray) -> xr.DataArray:
    """Keep values where a mask holds, NaN elsewhere, joining exactly: ``where`` alone would intersect the labels."""
    mask = mask.drop_vars([name for name in mask.coords if name not in mask.dims])
    values, mask = xr.align(values, mask, join="exact", copy=False)
    return values.where(mask)


def stamp(result: xr.DataArray, metric: str, name: str, n: int | None = None, **parameters: object) -> xr.DataArray:
    """Label a result: name, units, definition, reference, n and the parameters used, as netCDF-safe attributes."""
    definition = define(metric, name)
    if n is None:
        n = int(result["n"].sum()) if "n" in result.coords else int(result.notnull().sum())
    result = result.rename(metric)
    result.attrs = {
        "metric": metric,
        "definition": name,
        "units": definition.units,
        "meaning": definition.meaning,
        "reference": definition.reference,
        "n": n,
        **{key: plain(value) for key, value in parameters.items()},
    }
    return result


def plain(value: Any) -> str | int | float:
    """Make a parameter storable as a netCDF attribute."""
    scalar = cast(object, value.item() if isinstance(value, np.generic) else value)
    if isinstance(scalar, bool):
        return int(scalar)
    return scalar if isinstance(scalar, int | float | str) else str(scalar)


def no_leading(array: xr.DataArray, dims: tuple[str, ...], metric: str) -> None:
    """Refuse dims in front of those of a reading.

    Raises:
        MetricError: there are some.
    """
    extra = [dim for dim in array.dims if dim not in dims]
    if extra:
        raise MetricError(
            f"{metric}: the reading has the dims {extra} in front. Select one label first: ds.sel(edit=...)."
        )
