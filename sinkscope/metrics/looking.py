"""Where a vision-language model looks: maps corrected by a neutral question, gaze shifts, crops of the image.

A map is over the patches of one image, ``(row, column)`` or flat in raster order. Numbers alone, no model: see
``methods.zoom`` for the procedures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy import ndimage
from scipy.special import entr

from sinkscope.definitions import Definition
from sinkscope.errors import MetricError
from sinkscope.metrics.base import metric, positions

Array = NDArray[np.float64]
RATIOS = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0)
"""Sides of the windows that ViCrop tries, times the size the model was trained on."""


@metric(
    Definition(
        "relative_attention", "zhang2025", "attention under the question over that under a neutral one", "ratio", (),
        "zhang2025",
    ),
    Definition(
        "relative_attention", "ge2025", "the same with lambda added below", "ratio", (("lam", 1e-8),), "ge2025"
    ),
)  # fmt: skip
def relative_attention(question: ArrayLike, general: ArrayLike, lam: float = 0.0) -> Array:
    """Return attention under the question over attention under a neutral one, patch by patch: ``A_q / (A_g + lam)``.

    A sink patch is high in both, so the ratio is no sink map. ``lam`` 0 is MLLMs know where to look (zhang2025), where
    a patch without neutral attention is infinite; 1e-8 the released code of CARVE (ge2025), whose appendix says .05.
    Average heads first.
    """
    top, low = np.asarray(question, dtype=np.float64), np.asarray(general, dtype=np.float64) + lam
    with np.errstate(divide="ignore", invalid="ignore"):
        return top / low


@metric()
def fused_contrast(question: Sequence[ArrayLike], general: Sequence[ArrayLike], steps: str = "all") -> Array:
    """Return the contrast of CARVE fused over generated steps (ge2025): weights 1, 2, 3, ... by step.

    ``question`` and ``general`` hold one map per step; steps are paired and the longer run is cut. ``"first"`` takes
    the first step alone, ``"last"`` the last pair, the setting of the paper's best numbers. Sum layers afterwards.

    Raises:
        MetricError: another ``steps``, no step, or a map that is zero everywhere.
    """
    count = min(len(question), len(general))
    chosen = {"all": range(count), "first": range(min(count, 1)), "last": range(max(count - 1, 0), count)}
    if steps not in chosen or not count:
        raise MetricError(f"fused_contrast(steps={steps!r}): use 'all', 'first' or 'last', and at least one step each.")
    maps = [relative_attention(question[step], general[step], 1e-8) for step in chosen[steps]]
    weights = range(1, count + 1) if steps == "all" else [1]
    total: Array = np.sum([weight * one for weight, one in zip(weights, maps, strict=True)], axis=0)
    if not total.any():
        raise MetricError("fused_contrast: the map is zero everywhere. Is the image where its tokens were taken from?")
    return total


@metric()
def kept_region(values: ArrayLike, share: float = 0.2, components: int | None = None) -> NDArray[np.bool_]:
    """Return which pixels CARVE keeps, bool ``(row, column)``: the top ``share``, in the components with most of it.

    Components join by their four neighbours and are ranked by the sum of the map; ``components`` is how many stay,
    None the released rule, a fifth of them and at least three. Source: Ge et al. (ge2025).

    Raises:
        MetricError: no map of two dimensions, one that is zero everywhere, or a share that is no share.
    """
    pixels = np.asarray(values, dtype=np.float64)
    if pixels.ndim != 2 or not pixels.any() or not 0 < share <= 1:
        raise MetricError(
            f"kept_region(share={share}): a map of two dimensions that is not zero everywhere is needed, and a share "
            f"above 0; got shape {pixels.shape}."
        )
    high = pixels >= np.quantile(pixels, 1 - share)
    labels, count = ndimage.label(high)
    sums = ndimage.sum(pixels, labels, range(1, count + 1))
    keep = max(3, int(0.2 * count)) if components is None else components
    return np.isin(labels, np.argsort(-np.asarray(sums), kind="stable")[:keep] + 1)


def box_of(region: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return the tight box of a region in its own cells: left, top, right, bottom, ends left out."""
    rows, columns = (np.flatnonzero(region.any(axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def upsampled(values: ArrayLike, size: tuple[int, int]) -> Array:
    """Return a patch map at ``size`` (width, height) in pixels, bilinear as Pillow does it."""
    image = Image.fromarray(np.asarray(values, dtype=np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR), dtype=np.float64)


@metric()
def best_crop(
    values: ArrayLike, size: tuple[float, float], base: float, ratios: Sequence[float] = RATIOS
) -> tuple[float, float, float, float]:
    """Return the box that ViCrop takes, left, top, right, bottom in pixels (zhang2025).

    Windows of ``base`` times each ratio slide over the map; of each ratio the one with the largest sum, of these the
    sharpest: the sum less the mean of its neighbours, per patch. An image no larger than ``base`` is given back whole.

    Args:
        values: the map, ``(row, column)``.
        size: width and height of the image in pixels.
        base: side of the images the model was trained on: 336 for LLaVA-1.5, 224 for InstructBLIP.
        ratios: sides to try, times ``base``.
    """
    patches = np.asarray(values, dtype=np.float64)
    width, height = size
    step = width / patches.shape[1], height / patches.shape[0]
    found: list[tuple[float, tuple[float, float, float, float]]] = []
    for ratio in ratios:
        shape = tuple(min(int(base * ratio / step[1 - axis]), patches.shape[axis]) for axis in (0, 1))
        if base >= min(width, height) or min(shape) < 1:
            continue
        windows = np.lib.stride_tricks.sliding_window_view(patches, shape).sum((-2, -1))
        row, column = np.unravel_index(int(windows.argmax()), windows.shape)
        around = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        inside = [windows[r, c] for r, c in around if 0 <= r < windows.shape[0] and 0 <= c < windows.shape[1]]
        # A window that is the whole map has nothing around it to be sharper than.
        sharpness = (windows[row, column] - np.mean(inside)) / (shape[0] * shape[1]) if inside else 0.0
        centre = (column + shape[1] / 2) * step[0], (row + shape[0] / 2) * step[1]
        found.append((float(sharpness), _clamped(centre, base * ratio, size)))
    return max(found, key=lambda pair: pair[0])[1] if found else (0.0, 0.0, float(width), float(height))


def _clamped(centre: tuple[float, float], side: float, size: tuple[float, float]) -> tuple[float, float, float, float]:
    """A square around a centre, moved into the image; cut where the image is smaller."""
    lows: list[float] = []
    sides = [min(side, length) for length in size]
    for middle, length, own in zip(centre, size, sides, strict=True):
        lows.append(min(max(middle - own / 2, 0.0), length - own))
    return lows[0], lows[1], lows[0] + sides[0], lows[1] + sides[1]


@metric()
def funnel_crops(values: ArrayLike, size: tuple[float, float], base: float) -> list[tuple[float, float, float, float]]:
    """Return three boxes around one place, from detail to surroundings, the wider the less sharp the map is.

    After Visual Funnel (visionfunnel2025), of which the abstract was at hand: the first box is :func:`best_crop`, each
    further one ``1 + e`` times as wide (e the map's entropy over its largest value), centred on the map's mass inside
    the box before. The factor is this project's own.
    """
    patches = np.asarray(values, dtype=np.float64)
    spread = map_entropy(patches) / np.log(max(patches.size, 2))
    boxes = [best_crop(patches, size, base)]
    step = size[0] / patches.shape[1], size[1] / patches.shape[0]
    rows, columns = np.indices(patches.shape)
    for _ in range(2):
        left, top, right, bottom = boxes[-1]
        x, y = (columns + 0.5) * step[0], (rows + 0.5) * step[1]
        inside = patches * ((x > left) & (x < right) & (y > top) & (y < bottom))
        mass = inside.sum() or 1.0
        centre = float((inside * x).sum() / mass), float((inside * y).sum() / mass)
        boxes.append(_clamped(centre, (right - left) * (1 + spread), size))
    return boxes


@metric()
def attention_ratio(values: ArrayLike, box: tuple[int, int, int, int]) -> float:
    """Return a map's sum in a box over the mean sum of every box of that size: above 1, the model looks there.

    ``box`` is left, top, right, bottom in patches, ends left out. An even map gives 1. The exact formula of the paper
    (zhang2025) was not found: this is ours.

    Raises:
        MetricError: an empty box, or one outside the map.
    """
    patches = np.asarray(values, dtype=np.float64)
    left, top, right, bottom = box
    if not (0 <= left < right <= patches.shape[1] and 0 <= top < bottom <= patches.shape[0]):
        raise MetricError(
            f"attention_ratio(box={box}): the map has {patches.shape[1]} columns, {patches.shape[0]} rows."
        )
    windows = np.lib.stride_tricks.sliding_window_view(patches, (bottom - top, right - left)).sum((-2, -1))
    return float(windows[top, left] / windows.mean())


def _terms(shares: Array) -> Array:
    return np.asarray(entr(shares), dtype=np.float64)


@metric()
def map_entropy(values: ArrayLike) -> float:
    """Return the entropy (nat) of a map over its sum: how scattered the look is; NaN for zeros (ge2025)."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    total = flat.sum()
    return float(_terms(flat / total).sum()) if total > 0 else float("nan")


def _rgb(image: ArrayLike, name: str) -> Image.Image:
    values = np.asarray(image)
    # Whatever lies outside of a byte would come round to another grey, without a word.
    if values.ndim != 3 or values.shape[-1] != 3 or not bool(((values >= 0) & (values <= 255)).all()):
        raise MetricError(
            f"{name}: expected an RGB image (row, column, 3) of values 0 to 255, got {values.dtype} of shape "
            f"{values.shape}."
        )
    return Image.fromarray(values.astype(np.uint8))


@metric()
def colour_complexity(image: ArrayLike, bins: int = 180) -> float:
    """Return the entropy of the hues of an RGB image ``(row, column, 3)`` over ln of the bins, 0 to 1 (ge2025)."""
    hues = np.asarray(_rgb(image, "colour_complexity").convert("HSV"))[..., 0]
    counts = np.histogram(hues, bins, (0, 256))[0]
    return float(_terms(counts / counts.sum()).sum() / np.log(bins))


@metric()
def texture_complexity(image: ArrayLike, sigma: float = 1.0, low: float = 0.1, high: float = 0.2) -> float:
    """Return the share of the pixels of an RGB image ``(row, column, 3)`` that are edges by Canny's rule (ge2025).

    Edges are the ridges of the gradient of the grey values (0 to 1, blurred by ``sigma`` pixels) above ``high``, and
    what hangs together with them above ``low``. The paper's thresholds were not found: these are this project's own.
    """
    grey = np.asarray(_rgb(image, "texture_complexity").convert("L"), dtype=np.float64) / 255
    smooth = np.asarray(ndimage.gaussian_filter(grey, sigma), dtype=np.float64)
    down, right = (np.asarray(ndimage.sobel(smooth, axis=axis), dtype=np.float64) for axis in (0, 1))
    size = np.hypot(down, right)
    # A ridge is no smaller than its two neighbours along the gradient, in one of four directions.
    turn = np.round(np.degrees(np.arctan2(down, right)) / 45).astype(int) % 4
    ridge, padded = np.zeros(size.shape, dtype=bool), np.pad(size, 1)
    for direction, step in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        beside = [np.roll(padded, (sign * step[0], sign * step[1]), (0, 1))[1:-1, 1:-1] for sign in (1, -1)]
        ridge |= (turn == direction) & (size >= beside[0]) & (size >= beside[1])
    labels, count = ndimage.label(ridge & (size > low), np.ones((3, 3)))
    strong = np.zeros(count + 1, dtype=bool)
    strong[np.unique(np.asarray(labels)[ridge & (size > high)])] = True
    strong[0] = False
    return float(strong[np.asarray(labels)].mean())


@metric()
def gaze_shift(attention: ArrayLike, words: ArrayLike | None = None) -> Array:
    """Return GIFT's saliency of each patch from how attention moves between words, 0 to 1 (gift2026).

    ``attention`` is ``(layer, head, row, patch)``: the row before the question, then those of the question. Rises from
    row to row are kept, of each layer the half of the heads that rise most; their mean over layers, heads and rows is
    cut at 3 standard deviations and scaled to 0..1. ``words`` (bool, one for each row of the question) says which rises
    count: the paper's are those at content words. A map that is even, or no word, gives 0.

    Raises:
        MetricError: not four dimensions, fewer than two rows, or not one of ``words`` for each row but the first.
    """
    weights = np.asarray(attention, dtype=np.float64)
    if weights.ndim != 4 or weights.shape[2] < 2:
        raise MetricError(f"gaze_shift: expected (layer, head, row, patch) with two rows or more, got {weights.shape}.")
    rises = np.maximum(np.diff(weights, axis=2), 0.0)
    if words is not None:
        chosen = np.asarray(words, dtype=bool)
        if chosen.shape != rises.shape[2:3]:
            raise MetricError(
                f"gaze_shift(words=...): shape {chosen.shape} for {rises.shape[2]} rows of the question. Give one each."
            )
        rises = rises[:, :, chosen]
    if not rises.any():
        return np.zeros_like(weights[0, 0, 0])
    kept = max(1, rises.shape[1] // 2)
    order = np.argsort(-rises.sum((2, 3)), axis=1, kind="stable")[:, :kept]
    mean = np.take_along_axis(rises, order[:, :, None, None], axis=1).mean((0, 1, 2))
    spread = mean.std(ddof=1) if mean.size > 1 else 0.0
    mean = np.clip(mean, mean.mean() - 3 * spread, mean.mean() + 3 * spread)
    width = mean.max() - mean.min()
    return (mean - mean.min()) / width if width > 0 else np.zeros_like(mean)


@metric()
def token_saliency(weighted_gradient: ArrayLike, columns: ArrayLike) -> float:
    """Return how much the row that predicts a token owes to some keys, by LVLMs-Saliency (zhang2026).

    ``weighted_gradient`` is that row of ``AttentionGradient``, ``(..., key)``; its magnitude over its norm, averaged
    over ``columns`` (positions) and whatever stands in front. The released code reads the next row, always 0.
    """
    size = np.abs(np.asarray(weighted_gradient, dtype=np.float64))
    size = size / np.maximum(np.linalg.norm(size, axis=-1, keepdims=True), 1e-9)
    return float(size[..., positions(columns, "token_saliency", "columns")].mean())


@metric()
def patch_entropy(image: ArrayLike, rows: int, columns: int, bins: int = 32) -> Array:
    """Return the entropy (nat) of the grey values in each patch of an image: how much there is to see.

    VFlowOpt (vflowopt2025) weighs the attention a patch gets by it; its histogram was not found, the bins are ours.
    """
    grey = np.asarray(_rgb(image, "patch_entropy").convert("L"))
    parts = [np.array_split(band, columns, axis=1) for band in np.array_split(grey, rows, axis=0)]
    counts = [[np.histogram(part, bins, (0, 256))[0] for part in band] for band in parts]
    shares = np.asarray(counts, dtype=np.float64)
    return _terms(shares / shares.sum(-1, keepdims=True)).sum(-1)
