"""Who gets the attention, text or image: dominance and efficiency indices, and the positional trend."""

# What xarray leaves untyped is not counted against this file.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from sinkscope.arguments import checked
from sinkscope.definitions import Definition, define
from sinkscope.errors import MetricError
from sinkscope.metrics.base import metric, of_role, require
from sinkscope.roles import TEXT_ROLES


@metric(
    Definition(
        "modality_dominance",
        "mdi",
        "attention per text token over attention per visual token",
        "ratio",
        (),
        "text_dominance2025",
    ),
    Definition(
        "modality_dominance",
        "aei",
        "share of attention on a modality over its share of the tokens",
        "ratio",
        (),
        "text_dominance2025",
    ),
)
def modality_dominance(
    ds: xr.Dataset,
    *,
    text: Sequence[str] = (*TEXT_ROLES, "bos", "special"),
    other: str | Sequence[str] = "image",
    left_out: xr.DataArray | None = None,
) -> xr.Dataset:
    """Attention per text token over attention per visual token, and each modality's efficiency; dims (prompt layer).

    Needs ``role_share`` (prompt layer head role); heads are averaged. ``mdi = (A_T / |T|) / (A_O / |O|)``, above 1
    where text dominates; ``aei_text``, ``aei_other`` = share of the attention over share of the tokens. Whether the
    first token and the template are text decides the result, as the sinks sit there: say which roles with ``text=``.
    ``left_out`` (bool, prompt key) are tokens that were hidden and count in no number of tokens.
    NaN where a prompt has no token of a modality, infinite where the other modality gets nothing. Average prompts with
    care: ratios have outliers. Source: "When Language Overrules" (text_dominance2025).

    Raises:
        MetricError: no ``role_share``, or none of the roles is in the reading.
    """
    require(ds, "modality_dominance", "role_share")
    share = ds["role_share"].astype("float64").mean("head")
    attention: list[xr.DataArray] = []
    tokens: list[xr.DataArray] = []
    for roles in (list(text), [other] if isinstance(other, str) else list(other)):
        held = [role for role in roles if role in ds["role"].values.tolist()]
        if not held:
            raise MetricError(
                f"modality_dominance: none of the roles {roles} is in this reading, which holds "
                f"{ds['role'].values.tolist()}."
            )
        attention.append(share.sel(role=held).sum("role", min_count=1))
        counted = of_role(ds, "modality_dominance", roles).reset_coords(drop=True)
        if left_out is not None:
            counted = counted & ~counted.copy(data=left_out.transpose("prompt", "key").values)
        tokens.append(counted.sum("key").astype("float64"))
    (a_t, a_o), (n_t, n_o) = attention, tokens
    both: xr.DataArray = (n_t > 0) & (n_o > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        data: dict[str, xr.DataArray] = {
            "mdi": (a_t / n_t) / (a_o / n_o),
            "aei_text": (a_t / (a_t + a_o)) / (n_t / (n_t + n_o)),
            "aei_other": (a_o / (a_t + a_o)) / (n_o / (n_t + n_o)),
        }
    result = xr.Dataset({name: array.where(both).transpose(*share.isel(role=0).dims) for name, array in data.items()})
    result = result.drop_vars("role", errors="ignore")
    definition = define("modality_dominance", "mdi")
    result.attrs = {
        "metric": "modality_dominance", "definition": "mdi", "meaning": definition.meaning, "units": "ratio",
        "reference": definition.reference, "n": int(both.sum()), "text": ", ".join(text), "other": str(other),
    }  # fmt: skip
    return result


@checked(MetricError)
def by_stage(array: xr.DataArray) -> xr.DataArray:
    """Average the first two, middle two and last two layers: the dim ``layer`` becomes ``stage`` (early, middle, late).

    Raises:
        MetricError: no dim ``layer``, or fewer than two layers.
    """
    count = array.sizes.get("layer", 0)
    if count < 2:
        raise MetricError(f"by_stage: two layers are needed; the dims are {dict(array.sizes)}.")
    groups = {"early": [0, 1], "middle": [count // 2 - 1, count // 2], "late": [count - 2, count - 1]}
    parts = [array.isel(layer=at).mean("layer") for at in groups.values()]
    return xr.concat(parts, dim="stage").assign_coords(stage=list(groups)).assign_attrs(array.attrs)


class Trend(NamedTuple):
    """Positional trend ``mu exp(sigma x)``, x = rank / count in [0, 1); ``r2`` of the fit in log space."""

    mu: float
    sigma: float
    r2: float


@checked(MetricError)
def positional_trend(scores: ArrayLike) -> Trend:
    """Fit the trend of a visual attention curve over raster rank, least squares on the logs of its positive entries.

    ``scores`` is ``(token,)``, averaged over many images. sigma > 0: later tokens are favoured. NaN below two positive
    entries. Fit on images that are not under test. Source: Zhao et al. (zhao2025); the space of the fit is our choice.
    """
    curve = np.asarray(scores, dtype=np.float64)
    place = np.arange(curve.size) / max(curve.size, 1)
    good = curve > 0
    if good.sum() < 2:
        return Trend(np.nan, np.nan, np.nan)
    logs = np.log(curve[good])
    slope, level = np.polyfit(place[good], logs, 1)
    spread = ((logs - logs.mean()) ** 2).sum()
    left = ((logs - level - slope * place[good]) ** 2).sum()
    return Trend(float(np.exp(level)), float(slope), float(1 - left / spread) if spread > 0 else 1.0)


@checked(MetricError)
def debias(scores: ArrayLike, trend: Trend) -> np.ndarray:
    """Divide scores ``(..., token)`` by the trend at their rank. Source: Zhao et al. (zhao2025)."""
    values = np.asarray(scores, dtype=np.float64)
    rank: NDArray[np.float64] = np.arange(values.shape[-1], dtype=np.float64) / values.shape[-1]
    return values / (trend.mu * np.exp(trend.sigma * rank))


@metric()
def keep_frequency(scores: ArrayLike, keep: int) -> np.ndarray:
    """Return how often each visual token is among the ``keep`` with the highest score: ``(image, token)`` to (token).

    :func:`positional_trend` of it is sigma_freq, what pruning makes of the trend of the scores. Of equal scores the
    first token is kept. Source: Zhao et al. (zhao2025).

    Raises:
        MetricError: not two dimensions, or a number that is none of the tokens.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or not 0 < keep <= values.shape[1]:
        raise MetricError(
            f"keep_frequency(keep={keep}): scores have shape {values.shape}. Give (image, token), and keep one token "
            "at least and all at most."
        )
    order = np.argsort(-values, axis=1, kind="stable")[:, :keep]
    kept = np.zeros(values.shape)
    np.put_along_axis(kept, order, 1.0, axis=1)
    return kept.mean(0)


@metric()
def padding_patches(size: tuple[float, float], rows: int, columns: int, threshold: float = 0.3) -> NDArray[np.bool_]:
    """Return which patches of an image padded to a square are padding, bool ``(row, column)``.

    Args:
        size: width and height of the image before it was padded, evenly on both sides (the original LLaVA code; the
            processors of transformers crop instead, and Qwen2-VL and InternVL pad nothing).
        rows: rows of patches of the square.
        columns: columns of patches.
        threshold: share of a patch's area that has to be padding, to exceed. The released methods take .5, .01 and .3.

    Scores are set to 0 there before they are ranked: padding draws attention as a sink does. Source: Zhao et al.
    (zhao2025).
    """
    width, height = size
    side = max(width, height)

    def inside(length: float, count: int) -> np.ndarray:
        edges = np.linspace(0, side, count + 1)
        low, high = (side - length) / 2, (side + length) / 2
        return np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None) / (side / count)

    return 1 - inside(height, rows)[:, None] * inside(width, columns)[None] > threshold + 1e-12
