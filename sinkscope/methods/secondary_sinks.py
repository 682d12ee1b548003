"""Secondary sinks (Wong et al. 2025, arXiv 2512.22213): where they are, how long they live, which MLP makes them.

A later token becomes a sink when the MLP of a middle layer writes onto it a vector along the first token's massive
direction. Detection is by states, never by attention (:func:`sinkscope.metrics.secondary_sinks`), so every sink comes
with the attention it gets and that of its nearest neighbours that are none. Layers are numbered by block output: a sink
that starts at layer l is read by the attention of layer l + 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import xarray as xr
from jaxtyping import Bool

from sinkscope import metrics
from sinkscope.engine.run import run
from sinkscope.methods.base import MethodResult
from sinkscope.methods.residual import residual_stream
from sinkscope.metrics.base import require
from sinkscope.probes.attention import KeyMass
from sinkscope.registry import method

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from sinkscope.models.handle import Model
    from sinkscope.prompts import Prompts


@dataclass(frozen=True)
class SecondarySinkSettings:
    """How secondary sinks are found, see :func:`sinkscope.metrics.secondary_sinks`.

    ``"wong2025"`` finds none in models of up to 19 layers; ``"relative"`` scales with depth. ``min_norm=0`` is the
    paper's rule; 3 guards narrow models. ``candidates`` is 3 for prompts with a chat template.
    """

    definition: str = "relative"
    candidates: int = 2
    min_norm: float = 3.0


@dataclass(frozen=True, eq=False)
class SecondarySinksResult(MethodResult):
    """What :func:`find_secondary_sinks` found.

    Attributes:
        found: what :func:`detect` gives; :func:`levels`, :func:`norm_profiles` and the functions of
            :mod:`sinkscope.methods.secondary_mlp` go on from it.
        settings: what was fixed beforehand.
    """

    reference: ClassVar[tuple[str, ...]] = ("wong2025",)

    found: xr.Dataset
    settings: SecondarySinkSettings

    def table(self) -> pd.DataFrame:
        """Return one row per secondary sink: prompt, token, first layer, lifetime, its score and that beside it."""
        names = ["token", "start", "lifetime", "score", "score_beside"]
        rows = self.found[names].where(self.found["kind"] == "secondary").to_dataframe().dropna(subset=["start"])
        return rows[names].astype({"start": int, "lifetime": int}).reset_index()

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw how many tokens are secondary sinks at each layer, per prompt."""
        from sinkscope import plot

        layers = np.arange(self.found.sizes["layer"])
        start, life = (self.found[name].values[..., None] for name in ("start", "lifetime"))
        secondary = (self.found["kind"].values == "secondary")[..., None]
        alive = secondary & (start <= layers) & (layers < start + life)
        mean = xr.DataArray(
            alive.sum(1).mean(0), dims="layer", coords={"layer": self.found["layer"].values},
            attrs={"long_name": "secondary sinks", "units": "tokens per prompt", "n": self.found.sizes["prompt"]},
        )  # fmt: skip
        return plot.layer_profile(mean, title="Secondary sinks by layer", ax=ax)


@method()
def find_secondary_sinks(
    model: Model, prompts: Prompts, settings: SecondarySinkSettings | None = None
) -> SecondarySinksResult:
    """Find the tokens of each prompt that become sinks in later layers, see :func:`detect`.

    Raises:
        MetricError: fewer than three layers.
    """
    chosen = settings or SecondarySinkSettings()
    return SecondarySinksResult(detect(model, prompts, chosen), chosen)


def detect(model: Model, prompts: Prompts, settings: SecondarySinkSettings | None = None) -> xr.Dataset:
    """Find the secondary sinks of each prompt.

    Returns a Dataset with dims ``(prompt, key)``: ``start`` (-1: none), ``lifetime``, ``stage`` and ``kind`` as the
    metric gives them, ``born`` (layer at which the primary sink's stage begins, -1: none), ``score`` (attention it
    gets, mean over heads and over the layers that read it as a sink), ``score_beside`` (the same layers, mean over the
    nearest token on either side that is no sink: position matters, so this is the control); and ``(prompt, layer,
    key)``: ``cosine`` with the primary sink, ``norm`` of the block output, ``mass`` (key mass, mean over heads).
    ``primary`` has dims ``(prompt,)``, ``stage_first`` and ``stage_last`` ``(prompt, stages)``, -1 beyond a prompt's
    last stage. It carries the attributes of a reading and can be saved as one.

    Raises:
        MetricError: fewer than three layers.
    """
    how = settings or SecondarySinkSettings()
    parts = [detect_one(model, prompts, index, how) for index in range(len(prompts))]
    # Prompts differ in length and in their number of stages: numbered, both are padded by the outer join.
    parts = [part.assign_coords(stages=np.arange(part.sizes["stages"])) for part in parts]
    found = xr.concat(parts, dim="prompt", join="outer", fill_value=_FILL, combine_attrs="override")
    found = found.drop_vars("stages").assign_coords(prompt=np.arange(len(prompts)))
    found.attrs |= {"min_norm": how.min_norm, "candidates": how.candidates, "prompts_hash": prompts.digest}
    return found


_FILL: dict[str, Any] = {
    "start": -1, "lifetime": 0, "stage": -1, "born": -1, "stage_first": -1, "stage_last": -1, "kind": "", "token": "",
    "token_role": "pad", "cosine": np.nan, "norm": np.nan, "mass": np.nan, "score": np.nan, "score_beside": np.nan,
}  # fmt: skip


def detect_one(model: Model, prompts: Prompts, index: int, settings: SecondarySinkSettings) -> xr.Dataset:
    """As :func:`detect`, for one prompt: no dim ``prompt``."""
    at = residual_stream(model, prompts, index)
    hidden = np.stack([state for name, state in at.items() if name.endswith(".post")]).astype(np.float64)
    one = metrics.secondary_sinks(
        hidden, settings.definition, candidates=settings.candidates, min_norm=settings.min_norm
    )
    norm = np.linalg.norm(hidden, axis=-1)
    primary = int(one.attrs["primary"])
    safe = np.where(norm > 0, norm, 1.0)
    one["cosine"] = (("layer", "key"), np.einsum("ltd,ld->lt", hidden, hidden[:, primary]) / safe / safe[:, [primary]])
    one["norm"] = (("layer", "key"), norm)
    reading = run(model, prompts.subset([index]), [KeyMass()])
    mass = reading["key_mass"].isel(prompt=0).mean("head")
    one["mass"] = (("layer", "key"), mass.transpose("layer", "key").values)
    lives = one["lifetime"].values > 0
    scores = [
        score_of(one["mass"].values, key, int(one["start"][key]), int(one["lifetime"][key]), lives)
        for key in range(len(lives))
    ]
    one["score"], one["score_beside"] = (("key", np.array(column)) for column in zip(*scores, strict=True))
    born = np.append(one["first"].values, -1)[one["stage"].values]
    one = one.assign(primary=primary, born=("key", born)).rename(first="stage_first", last="stage_last")
    one.attrs = reading.attrs | {name: value for name, value in one.attrs.items() if name not in ("n", "primary")}
    coords: dict[str, Any] = {"key": np.arange(len(lives)), "layer": mass["layer"].values}
    coords |= {name: ("key", mass[name].values.astype(str)) for name in ("token", "token_role")}
    return one.assign_coords(coords)


def score_of(mass: np.ndarray, key: int, start: int, lifetime: int, lives: np.ndarray) -> tuple[float, float]:
    """Key mass (layer, key) of a sink and of its neighbours over the layers that read it; NaN where nothing does."""
    readers = [layer + 1 for layer in range(start, start + lifetime) if layer + 1 < len(mass)]
    if not lifetime or not readers:
        return np.nan, np.nan
    beside = neighbours(lives, key)
    return float(mass[readers, key].mean()), float(mass[np.ix_(readers, beside)].mean()) if beside else np.nan


def neighbours(sinks: Bool[np.ndarray, " key"], key: int) -> list[int]:
    """Positions of the nearest tokens before and after ``key`` that are no sinks; position 0 is never one of them."""
    free = np.flatnonzero(~sinks)
    before, after = free[(free < key) & (free > 0)], free[free > key]
    return [*before[-1:].tolist(), *after[:1].tolist()]


def levels(found: xr.Dataset, kind: str = "secondary") -> xr.DataArray:
    """Count the sinks of a kind by first layer and lifetime: dims ``(start, lifetime)``, the paper's sink levels."""
    at = found["kind"].values == kind
    layers = found.sizes["layer"]
    table = np.zeros((layers, layers + 1), dtype=int)
    np.add.at(table, (found["start"].values[at].astype(int), found["lifetime"].values[at].astype(int)), 1)
    result = xr.DataArray(table, dims=("start", "lifetime"), name="sinks")
    result = result.assign_coords(start=np.arange(layers), lifetime=np.arange(layers + 1))
    return result.assign_attrs(found.attrs | {"units": "tokens", "n": int(at.sum())})


def norm_profiles(reading: xr.Dataset, found: xr.Dataset) -> xr.Dataset:
    """Mean norms by layer of three groups of tokens: ``residual``, ``key``, ``value``, dims ``(group, layer)``.

    ``reading`` holds ``residual_norm``, ``key_norm`` and ``value_norm`` of the same prompts; key-value heads count as
    one long vector. Groups: ``primary``, ``secondary`` (wherever the token is one for some layer), ``others``. NaN
    where a group is empty; the coordinate ``n`` counts its tokens.
    """
    require(reading, "norm_profiles", "residual_norm", "key_norm", "value_norm")
    layers = reading["layer"].values
    residual = reading["residual_norm"].sel(site=[f"{layer}.post" for layer in layers])
    residual = residual.transpose("prompt", "site", "key").values
    arrays = {"residual": residual}
    for name in ("key", "value"):
        squared = reading[f"{name}_norm"].transpose("prompt", "layer", "kv_head", "key") ** 2
        arrays[name] = np.sqrt(squared.sum("kv_head", skipna=False).values)
    kind = found["kind"].values
    real = np.isfinite(residual[:, 0])
    groups = {"primary": kind == "primary", "secondary": kind == "secondary", "others": (kind == "") & real}
    columns = {
        name: (("group", "layer"), np.stack([_mean(array, mask) for mask in groups.values()]))
        for name, array in arrays.items()
    }
    counts = [int(mask.sum()) for mask in groups.values()]
    coords = {"group": list(groups), "layer": layers, "n": ("group", counts)}
    return xr.Dataset(columns, coords=coords, attrs=dict(found.attrs))


def _mean(array: np.ndarray, mask: np.ndarray) -> np.ndarray:
    if not mask.any():
        return np.full(array.shape[1], np.nan)
    return np.array([array[:, layer][mask].mean() for layer in range(array.shape[1])])
