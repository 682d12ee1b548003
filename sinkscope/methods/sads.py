"""SADS: heads that look at the image stay, heads stuck on a few words are dropped, in late layers.

Kan et al. 2025 (RAR, OpenReview xTbFeDhdRG). Neither code nor the paper's text could be had. What the sources say is
implemented; what they leave open is an argument, and the result lists in ``gaps`` what was assumed: dropping zeroes the
head's output, nothing is rescaled, heads are classified for each prompt and then frozen, rows are the tokens after the
image. Training under the constraint is out of scope. "Sink head" there means a head with a low maximum of visual
attention (``resink`` here), not one with a text sink.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import xarray as xr

from sinkscope import metrics
from sinkscope.edits.heads import AblateHeads
from sinkscope.engine.run import find_tower
from sinkscope.errors import EditError, PromptError
from sinkscope.methods.base import MethodResult
from sinkscope.methods.parts import run_in_parts
from sinkscope.methods.sads_trigger import Trigger, find_trigger
from sinkscope.probes.attention import AttentionMap, MaxAttention
from sinkscope.registry import method
from sinkscope.roles import ROLE_INDEX

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from sinkscope.models.handle import Model
    from sinkscope.prompts import Prompts

SCOPES: dict[str, tuple[str, ...] | None] = {"layer": ("head",), "late_layers": ("layer", "head"), "dataset": None}
"""What one valley is taken over, beside each prompt (``dataset``: everything at once)."""
RULES = ("valley", "top_fraction")
SHARED_HEAD = 0
GAPS = (
    "what dropping does (here: the head's output is zeroed before W_O)",
    "whether the rest is rescaled (here: no)",
    "which rows a head is judged by (here: all tokens after the image, mean of the row maxima)",
    "when heads are classified (here: for each prompt at its prefill, then frozen)",
)


@dataclass(frozen=True)
class SadsSettings:
    """Where SADS begins and how heads are classified.

    Attributes:
        start: first layer, or what :func:`sinkscope.methods.sads_trigger.find_trigger` found; None finds it on the
            prompts themselves.
        scope: ``"layer"`` (one valley per prompt and layer; 16 to 40 heads are few), ``"late_layers"`` (one per prompt)
            or ``"dataset"`` (one over all prompts).
        rule: which re-sinking heads stay: ``"valley"`` (entropy at or above the valley) or ``"top_fraction"``.
        fraction: the part with the highest entropy that stays under ``"top_fraction"`` (a reviewer's account: 25 %).
        reduce: how a head's maxima over the rows become one number: ``"mean"``, ``"max"`` or ``"last"``.
    """

    start: int | Trigger | None = None
    scope: str = "late_layers"
    rule: str = "valley"
    fraction: float = 0.25
    reduce: str = "mean"

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            EditError: an unknown scope or rule, or a fraction outside 0 to 1.
        """
        if self.scope not in SCOPES or self.rule not in RULES:
            raise EditError(
                f"SadsSettings(scope={self.scope!r}, rule={self.rule!r}): scopes are {list(SCOPES)}, "
                f"rules are {list(RULES)}."
            )
        if not 0 <= self.fraction <= 1:
            raise EditError(f"SadsSettings(fraction={self.fraction}): the fraction is from 0 to 1.")


@dataclass(frozen=True, eq=False)
class SadsResult(MethodResult):
    """What :func:`sads` chose.

    Attributes:
        edits: one edit per prompt; it selects nothing where no head is dropped.
        kind: (prompt layer head) ``"vision"``, ``"resink_global"``, ``"resink_isolated"``, ``"shared"``, or
            ``"unsplit"`` where the layer has no two classes.
        dropped: bool (prompt layer head).
        measured: ``max_visual_attention`` and ``non_vision_entropy`` (prompt layer head).
        split: valleys, and whether the distributions were bimodal at all, as from ``metrics.split_heads``.
        start_layer: first layer that is changed.
        gaps: what the sources leave open and what was assumed.
        settings: what was fixed beforehand.
    """

    reference: ClassVar[tuple[str, ...]] = ("kan2025",)

    edits: tuple[AblateHeads, ...]
    kind: xr.DataArray
    dropped: xr.DataArray
    measured: xr.Dataset
    split: xr.Dataset
    start_layer: int
    gaps: tuple[str, ...]
    settings: SadsSettings

    def table(self) -> pd.DataFrame:
        """Return how many heads of each kind a layer has: one row per layer, mean over the prompts."""
        import pandas as pd

        kinds = [name for name in np.unique(self.kind.values).tolist() if name]
        counts = {name: (self.kind == name).sum("head").mean("prompt").values for name in kinds}
        return pd.DataFrame(counts, index=pd.Index(self.kind["layer"].values, name="layer"))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the share of the prompts in which each head is dropped."""
        from sinkscope import plot

        share = self.dropped.mean("prompt").assign_attrs(long_name="share of prompts with the head dropped")
        return plot.effect_map(share, limit=1.0, title="Heads that SADS drops", ax=ax)

    def controls(self, seed: int = 0) -> tuple[AblateHeads, ...]:
        """As many other heads of the same layers for each prompt, drawn at random, the shared head never among them.

        Raises:
            MetricError: a layer has fewer other heads than dropped ones.
        """
        free = self.dropped.isel(head=slice(SHARED_HEAD + 1, None))
        drawn = [metrics.random_heads(free.isel(prompt=i), seed + i) for i in range(free.sizes["prompt"])]
        return tuple(_dropping(one) for one in drawn)


def _dropping(heads: xr.DataArray) -> AblateHeads:
    """The edit that drops some heads; of a prompt without such heads it does nothing, as the method says."""
    chosen = metrics.head_list(heads)
    return AblateHeads(chosen, how="zero", allow_empty=not chosen)


@method()
def sads(model: Model, prompts: Prompts, settings: SadsSettings | None = None) -> SadsResult:
    """Classify the heads of the layers from ``settings.start`` on, for each prompt, and say which to drop.

    Vision heads (maximum visual attention at or above the valley) stay. Of the rest those with a high entropy over the
    other tokens stay and the isolated ones are dropped. Head 0, the shared head, always stays. Where a distribution is
    not bimodal nothing is split and nothing dropped. The maps of the late layers are kept for the entropy.

    Raises:
        EditError: no such layer.
        PromptError: a prompt has no image.
    """
    chosen = settings or SadsSettings()
    tower = find_tower(model, None)
    bare = [i for i, roles in enumerate(prompts.roles) if not (roles == ROLE_INDEX["image"]).any()]
    if bare:
        raise PromptError(f"sads: prompt {bare[0]} has no image. Give prompts with images.")
    start = find_trigger(model, prompts)[0] if chosen.start is None else chosen.start
    first = start.layer if isinstance(start, Trigger) else int(start)
    if not 0 <= first < tower.depth:
        raise EditError(f"SadsSettings(start={first}): this model has layers 0..{tower.depth - 1}.")
    measured = measure(model, prompts, range(first, tower.depth), chosen.reduce)
    split, kind = classify(measured["max_visual_attention"], measured["non_vision_entropy"], chosen)
    dropped = (kind == "resink_isolated").rename("dropped")
    edits = tuple(_dropping(dropped.isel(prompt=i)) for i in range(dropped.sizes["prompt"]))
    reason = (start.reason,) if isinstance(start, Trigger) else ()
    return SadsResult(edits, kind, dropped, measured, split, first, (*GAPS, *reason), chosen)


def measure(model: Model, prompts: Prompts, layers: Sequence[int], reduce: str = "mean") -> xr.Dataset:
    """Read what heads are judged by: ``max_visual_attention``, ``non_vision_entropy`` (prompt layer head)."""
    heads = range(max(site.heads for site in find_tower(model, None).attention))
    probes = [MaxAttention(keys="image", queries="after_image"), AttentionMap(layers=list(layers), heads=list(heads))]

    def judged(reading: xr.Dataset) -> xr.Dataset:
        reading = reading.sel(layer=list(layers))
        largest = metrics.max_visual_attention(reading, reduce=reduce, over=())
        rows = reading["max_attention"].notnull().any(["layer", "head"])
        after = reading.assign(attention=reading["attention"].where(rows))
        return xr.Dataset(
            {
                "max_visual_attention": largest.transpose("prompt", "layer", "head"),
                "non_vision_entropy": metrics.non_vision_entropy(after).transpose("prompt", "layer", "head"),
            }
        )

    return run_in_parts(model, prompts, probes, judged, maps=len(layers) * len(heads))


def classify(largest: xr.DataArray, entropy: xr.DataArray, settings: SadsSettings) -> tuple[xr.Dataset, xr.DataArray]:
    """Split heads by both valleys; gives the split and the kind of every head (prompt layer head)."""
    over = SCOPES[settings.scope]
    split = metrics.split_heads(largest, entropy, over=over)
    kind = split["kind"].transpose(*largest.dims)
    if settings.rule == "top_fraction":
        kind = _by_fraction(kind, entropy, over, settings.fraction)
    shared = xr.DataArray(kind["head"].values == SHARED_HEAD, dims="head", coords={"head": kind["head"].values})
    return split, xr.where(shared & (kind != ""), "shared", kind).transpose(*largest.dims).astype(str)


def _by_fraction(
    kind: xr.DataArray, entropy: xr.DataArray, over: tuple[str, ...] | None, fraction: float
) -> xr.DataArray:
    """Keep the part of the re-sinking heads with the highest entropy, of each group that has one valley."""
    order = tuple(kind.dims)
    inner = order if over is None else tuple(dim for dim in order if dim in over)
    outer = tuple(dim for dim in order if dim not in inner)
    kinds, values = (array.transpose(*outer, *inner) for array in (kind, entropy))
    shape = [kinds.sizes[dim] for dim in outer]
    names, numbers = kinds.values.astype(object).reshape(*shape, -1), values.values.reshape(*shape, -1)
    for at in np.ndindex(*shape):
        rest = np.flatnonzero(np.char.startswith(names[at].astype(str), "resink"))
        ranked = rest[np.argsort(-numbers[at][rest], kind="stable")]
        kept = round(fraction * len(ranked))
        names[at][ranked[:kept]], names[at][ranked[kept:]] = "resink_global", "resink_isolated"
    return kinds.copy(data=names.reshape(kinds.shape).astype(str)).transpose(*order)
