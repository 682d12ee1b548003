"""Look, crop, look again: a question's attention map finds a box, and the crop is shown beside the whole picture.

ViCrop (Zhang et al. 2025) divides by the map under a neutral question; CARVE (Ge et al. 2025) keeps the components with
most of that contrast; Visual Funnel shows three crops, from detail to surroundings. Here with the first generated
word's map; the answer is generated from all pictures together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr
from PIL import Image

from sinkscope import metrics
from sinkscope.engine.generation import generate, written_texts
from sinkscope.engine.run import find_tower, run
from sinkscope.errors import PromptError
from sinkscope.methods.base import MethodResult
from sinkscope.metrics.looking import box_of, upsampled
from sinkscope.probes import AttentionGradient, KeyMass
from sinkscope.prompts import Prompts
from sinkscope.registry import method

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sinkscope.models.handle import Model

GENERAL = "Write a general description of the image."
"""The neutral question of both papers."""


def question_maps(model: Model, prompts: Prompts, layers: Sequence[int], by: str = "attention") -> list[np.ndarray]:
    """Return the last token's look at the first picture of each prompt: (row, column), mean of heads and layers.

    ``by="attention"`` is its attention; ``by="gradient"`` is attention times the positive part of the gradient of the
    log probability of the most likely next token (grad-att of Zhang et al. 2025): one pass with autograd a prompt, no
    neutral question.

    Raises:
        PromptError: a prompt has no picture, or no one grid for it; or another ``by``.
    """
    if by == "attention":
        reading = run(model, prompts, [KeyMass("image", queries="last")])
        mass = reading["key_mass"].sel(layer=list(layers)).mean(["layer", "head"]).values
    elif by == "gradient":
        mass = _gradients(model, prompts, layers)
    else:
        raise PromptError(f"question_maps(by={by!r}): use 'attention' or 'gradient'.")
    maps: list[np.ndarray] = []
    for which, grid in enumerate(prompts.grids):
        if grid is None:
            raise PromptError(f"zoom: prompt {which} has no picture to look at.")
        own = np.flatnonzero((grid.image == 0) & (grid.tile == 0) & np.isfinite(grid.row))
        rows, columns = grid.row[own].astype(int), grid.col[own].astype(int)
        found = np.zeros((rows.max() + 1, columns.max() + 1)) if len(own) else np.zeros((0, 0))
        if found.size != len(own) or not len(own):
            raise PromptError(f"zoom: prompt {which} has no view of its whole picture on one grid.")
        found[rows, columns] = mass[which, own]
        maps.append(found)
    return maps


def contrast_maps(
    model: Model, items: Sequence[Mapping[str, Any]], layers: Sequence[int], lam: float = 1e-8,
    prompts: Prompts | None = None,
) -> list[np.ndarray]:  # fmt: skip
    """Return the last token's look at each picture over its look under a neutral question: (row, column).

    ``items`` are those of ``Prompts.from_chat``, one picture each, and ``prompts`` what was made of them; mean of heads
    and layers before the ratio. See ``metrics.relative_attention`` for ``lam``.

    Raises:
        PromptError: as :func:`question_maps`.
    """
    own = question_maps(model, Prompts.from_chat(items, model) if prompts is None else prompts, layers)
    neutral = Prompts.from_chat([{**item, "text": GENERAL} for item in items], model)
    pairs = zip(own, question_maps(model, neutral, layers), strict=True)
    return [metrics.relative_attention(one, general, lam) for one, general in pairs]


def contrast_layers(model: Model) -> list[int]:
    """Return the layers that CARVE reads, 20 to 25 of 28 (ge2025), at the same depth of another model."""
    depth = find_tower(model, None).depth
    first, last = (round(layer / 28 * depth) for layer in (20, 25))
    return list(range(min(first, depth - 1), min(last, depth - 1) + 1))


def masked(picture: np.ndarray | Image.Image, region: np.ndarray, *, crop: bool = True) -> Image.Image:
    """Return a picture with what lies outside of a region black, cut to the region's tight box (CARVE, ge2025).

    The released code enlarges the cut picture; a model's own image processor does that anyway. ``crop=False`` leaves
    the picture's size.

    Args:
        picture: pixels ``(row, column, 3)``, or an image.
        region: which pixels stay, bool ``(row, column)``, such as ``metrics.kept_region`` gives.
        crop: whether to cut.

    Raises:
        PromptError: the region is empty or of another size than the picture.
    """
    pixels = np.asarray(picture)
    if region.shape != pixels.shape[:2] or region.dtype != bool or not region.any():
        raise PromptError(
            f"masked: a region of {int(np.count_nonzero(region))} pixels, {region.dtype} {region.shape}, for a picture "
            f"of {pixels.shape[:2]}. Give a bool map of the picture's size with a pixel that stays."
        )
    image = Image.fromarray(np.where(region[..., None], pixels, 0).astype(np.uint8))
    return image.crop(box_of(region)) if crop else image


def _gradients(model: Model, prompts: Prompts, layers: Sequence[int]) -> np.ndarray:
    """Attention of the last row times the positive part of its gradient, by key; prompt by prompt, as maps are kept."""
    heads = range(find_tower(model, None).attention[0].heads)
    mass = np.full((len(prompts), max(prompts.lengths)), np.nan)
    for which, length in enumerate(prompts.lengths):
        found = run(model, prompts.subset([which]), [AttentionGradient(list(layers), heads)]).attention_gradient
        rows = found[0].isel(query=length - 1).transpose("layer", "head", "key").values
        # A weight is not negative: the positive part of the product is the weight times that of the gradient.
        mass[which, :length] = np.maximum(rows, 0.0).mean((0, 1))[:length]
    return mass


Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


@dataclass(frozen=True)
class ZoomSettings:
    """What is fixed beforehand.

    Attributes:
        layers: whose attention is read; None takes the middle third. ``metrics.attention_ratio`` tells more.
        rule: ``"window"`` (ViCrop), ``"components"`` (CARVE) or ``"funnel"`` (the three crops of Visual Funnel).
        base: side of a window in pixels at ratio 1; None takes a quarter of the picture's shorter side.
        lam: added below in the contrast.
        max_new_tokens: of each answer.
        by: ``"attention"``, over that under a neutral question, or ``"gradient"``: attention times gradient, alone.
    """

    layers: Sequence[int] | None = None
    rule: str = "window"
    base: float | None = None
    lam: float = 1e-8
    max_new_tokens: int = 8
    by: str = "attention"


@dataclass(frozen=True, eq=False)
class ZoomResult(MethodResult):
    """What :func:`zoom` found: maps and crops of each prompt, and answers without and with them."""

    reference: ClassVar[tuple[str, ...]] = ("zhang2025", "ge2025", "visionfunnel2025")

    maps: tuple[np.ndarray, ...]
    crops: tuple[tuple[Box, ...], ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    settings: ZoomSettings

    @property
    def boxes(self) -> tuple[Box, ...]:
        """The first crop of each prompt, the closest one: left, top, right, bottom in pixels."""
        return tuple(crops[0] for crops in self.crops)

    def table(self) -> pd.DataFrame:
        """Return box and both answers, one row per prompt."""
        edges = pd.DataFrame(list(self.boxes), columns=["left", "top", "right", "bottom"])
        return edges.assign(before=list(self.before), after=list(self.after))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the first prompt's contrast."""
        from sinkscope.plot.theme import axes_for

        axes = axes_for(xr.DataArray(self.maps[0], dims=("row", "column")), ax)
        axes.imshow(self.maps[0], cmap="viridis")
        axes.set(title="Attention over that under a neutral question", xlabel="column", ylabel="row")
        return axes


@method()
def zoom(model: Model, items: Sequence[Mapping[str, Any]], settings: ZoomSettings | None = None) -> ZoomResult:
    """Answer each question about a picture without and with a crop of where the model looks, the crop beside the whole.

    ``items`` are those of ``Prompts.from_chat``, one picture each. A fair control shows the picture twice:
    ``prompts.crop`` with the whole picture's box.

    Raises:
        PromptError: a prompt has no picture, or an unknown rule.
    """
    chosen = settings or ZoomSettings()
    if chosen.rule not in ("window", "components", "funnel"):
        raise PromptError(f"zoom(rule={chosen.rule!r}): use 'window', 'components' or 'funnel'.")
    depth = model.backend.towers[model.backend.default_tower].depth
    layers = list(chosen.layers) if chosen.layers is not None else list(range(depth // 3, max(2 * depth // 3, 1)))
    prompts = Prompts.from_chat(items, model)
    if chosen.by == "attention":
        maps = contrast_maps(model, items, layers, chosen.lam, prompts)
    else:
        maps = question_maps(model, prompts, layers, chosen.by)
    crops = [_crops(found, grid.sizes[0], chosen) for found, grid in zip(maps, prompts.grids, strict=True) if grid]
    shown = beside(prompts, crops, model)
    before, after = (tuple(_answers(model, each, chosen.max_new_tokens)) for each in (prompts, shown))
    return ZoomResult(tuple(maps), tuple(crops), before, after, chosen)


def beside(prompts: Prompts, crops: Sequence[Sequence[Box]], model: Model) -> Prompts:
    """Return the prompts with several crops of each first picture beside it, in the order given."""
    for place in reversed(range(max(map(len, crops)))):
        # A crop stands right behind the whole picture, in front of those that were put there before.
        prompts = prompts.crop([own[place] if place < len(own) else None for own in crops], model)
    return prompts


def _crops(found: np.ndarray, size: tuple[float, float], settings: ZoomSettings) -> tuple[Box, ...]:
    height, width = size
    base = settings.base or min(height, width) / 4
    if settings.rule == "window":
        return (metrics.best_crop(found, (width, height), base),)
    if settings.rule == "funnel":
        return tuple(metrics.funnel_crops(found, (width, height), base))
    pixels = upsampled(found, (int(width), int(height)))
    left, top, right, bottom = box_of(metrics.kept_region(pixels))
    return ((float(left), float(top), float(right), float(bottom)),)


def _answers(model: Model, prompts: Prompts, count: int) -> list[str]:
    return written_texts(model, generate(model, prompts, max_new_tokens=count))
