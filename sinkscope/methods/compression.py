"""Token compression: visual tokens left out by a ranking, and what that does to the dominance of text.

"When Language Overrules" (arXiv 2508.10552) keeps the visual tokens that the vision tower's class token attends to
most, and finds text dominance gone. A token that is left out is hidden from every query; the others keep their
positions.

Rankings of other papers stand beside it: attention among the visual tokens (VisionDrop), the tower's attention times
what there is to see in a patch (VFlowOpt), the reader's last row (FastV).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from sinkscope.edits.base import Edit
from sinkscope.edits.keys import MaskKeys
from sinkscope.engine.run import run
from sinkscope.errors import PromptError
from sinkscope.metrics.dominance import modality_dominance
from sinkscope.metrics.looking import patch_entropy
from sinkscope.probes import KeyMass, RoleShare
from sinkscope.prompts.images import load_image
from sinkscope.registry import method
from sinkscope.roles import ROLE_INDEX

if TYPE_CHECKING:
    from PIL.Image import Image

    from sinkscope.models.handle import Model
    from sinkscope.prompts import Prompts

RANKINGS = ("tower", "reader", "visual", "flow", "random")


def visual_scores(model: Model, prompts: Prompts, by: str = "tower", seed: int = 0) -> xr.DataArray:
    """Return what each visual token is ranked by: dims (prompt, key), NaN at all other tokens.

    Args:
        model: a vision-language model.
        prompts: with images.
        by: ``"tower"``: attention from the class token in the last layer of the vision tower, mean over heads; where
            the tower has none, from all patches (FasterVLM's ranking). ``"reader"``: attention from the prompt's last
            token in the second layer of the language model (FastV's). ``"visual"``: from the visual tokens in that
            layer, the mean over those that see the token, so no text decides (VisionDrop, xu2025; its layers and
            stages were not found). ``"flow"``: the tower's ranking times the entropy of the pixels in the token's box
            (VFlowOpt, vflowopt2025; how it puts the two together was not found, the product is ours).
            ``"random"``: drawn, the control.
        seed: of the draw.

    Raises:
        PromptError: an unknown ranking; no images; ``"tower"`` and ``"flow"`` where several patches make one token;
            ``"flow"`` where the prompts do not know their pictures.
    """
    if by not in RANKINGS:
        raise PromptError(f"visual_scores(by={by!r}): unknown. Use one of {', '.join(RANKINGS)}.")
    image = [np.asarray(roles) == ROLE_INDEX["image"] for roles in prompts.roles]
    if not any(mask.any() for mask in image):
        raise PromptError("visual_scores: the prompts hold no image. Make them with Prompts.from_chat.")
    found = np.full((len(prompts), max(prompts.lengths)), np.nan)
    if by == "random":
        rng = np.random.default_rng(seed)
        parts = [rng.random(int(mask.sum())) for mask in image]
    elif by in ("reader", "visual"):
        rows = "last" if by == "reader" else "image"
        mass = run(model, prompts, [KeyMass("image", queries=rows)])["key_mass"].mean("head").isel(layer=1)
        parts = [mass.values[row, : len(mask)][mask] for row, mask in enumerate(image)]
    else:
        parts = tower_attention(model, prompts)
        if by == "flow":
            parts = [one * seen for one, seen in zip(parts, _seen(prompts, image), strict=True)]
    for row, (mask, part) in enumerate(zip(image, parts, strict=True)):
        found[row, : len(mask)][mask] = part
    return xr.DataArray(found, dims=("prompt", "key"), coords={"prompt": np.arange(len(prompts))}, name="score")


def tower_attention(model: Model, prompts: Prompts, layer: int = -1) -> list[np.ndarray]:
    """Return what the vision tower's class token gives each visual token, or all patches where it has none.

    One array (visual token) a prompt, in the order of its tokens; mean over heads, in ``layer`` of the tower.

    Raises:
        PromptError: several patches make one token, so that none of them is it.
    """
    ds = run(model, prompts, [KeyMass()], tower="vision")
    if "bos" in ds["token_role"].values:
        ds = run(model, prompts, [KeyMass(queries="bos")], tower="vision")
    patch = ds["token_role"].values == "image"
    mass = ds["key_mass"].isel(layer=layer).mean("head").values
    order = np.lexsort((ds["source_tile"].values, ds["source_image"].values))
    parts: list[np.ndarray] = []
    for row, roles in enumerate(prompts.roles):
        mine = [at for at in order if int(ds["source_prompt"].values[at]) == row]
        part = np.concatenate([mass[at][patch[at]] for at in mine]) if mine else np.zeros(0)
        count = int((np.asarray(roles) == ROLE_INDEX["image"]).sum())
        if len(part) != count:
            raise PromptError(
                f"tower_attention: prompt {row} has {count} visual tokens and {len(part)} patches in the tower, so a "
                "patch is no token. Rank them by the reader: visual_scores(by='reader')."
            )
        parts.append(part)
    return parts


def _seen(prompts: Prompts, image: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Entropy of the pixels in the box of each visual token."""
    if not prompts.made_of:
        raise PromptError(
            "visual_scores(by='flow'): these prompts do not know their pictures. Build them with Prompts.from_chat."
        )
    parts: list[np.ndarray] = []
    for item, grid, mask in zip(prompts.made_of, prompts.grids, image, strict=True):
        if grid is None:
            parts.append(np.zeros(0))
            continue
        given = item["image"] if isinstance(item["image"], list | tuple) else [item["image"]]
        pictures = [load_image(one, "image") for one in given]
        boxes = [tuple(np.nan_to_num(box).round().astype(int).tolist()) for box in grid.box[mask]]
        which = np.nan_to_num(grid.image[mask]).astype(int)
        parts.append(np.array([_entropy(pictures[n].crop(box)) for n, box in zip(which, boxes, strict=True)]))
    return parts


def _entropy(part: Image) -> float:
    """Of one box; 0 of an empty one, such as padding."""
    return float(patch_entropy(np.asarray(part), 1, 1)[0, 0]) if min(part.size) > 0 else 0.0


def left_out(scores: xr.DataArray, share: float) -> xr.DataArray:
    """Say which tokens are left out: of each prompt the ``share`` with the lowest scores, at least one is kept.

    Args:
        scores: dims (prompt, key), NaN where a token is not up for it.
        share: from 0 to below 1.

    Raises:
        PromptError: a share that leaves nothing.
    """
    if not 0 <= share < 1:
        raise PromptError(f"left_out(share={share!r}): a share from 0 to below 1 is left out.")
    gone = np.zeros(scores.shape, dtype=bool)
    for row, values in enumerate(scores.values):
        places = np.flatnonzero(np.isfinite(values))
        count = min(round(share * len(places)), max(len(places) - 1, 0))
        gone[row, places[np.argsort(values[places], kind="stable")[:count]]] = True
    return scores.copy(data=gone).rename("left_out")


@method()
def compressed_dominance(
    model: Model, prompts: Prompts, shares: Sequence[float] = (0.0, 0.75, 0.9, 0.95), *, 
    by: str | xr.DataArray = "tower", text: Any = None, edits: Sequence[Edit] = (),
) -> xr.Dataset:  # fmt: skip
    """Return the dominance of text where a share of the visual tokens is left out.

    Args:
        model: a vision-language model.
        prompts: with images and questions.
        shares: parts of the visual tokens that are left out; the paper's are .75, .9 and .95.
        by: the ranking by name, or scores of your own, as :func:`visual_scores` makes them.
        text: roles that count as text, those of :func:`sinkscope.metrics.modality_dominance` when left out.
        edits: what else is changed.

    ``mdi``, ``aei_text`` and ``aei_other`` (removed prompt layer): rows are the prompt's last token, which predicts the
    first word of the answer; tokens that are left out count in no number of tokens. Source: text_dominance2025, where
    heads are averaged too; which layer of the tower it takes was not found.
    """
    scores = by if isinstance(by, xr.DataArray) else visual_scores(model, prompts, by)
    found: list[xr.Dataset] = []
    for share in shares:
        gone = left_out(scores, share)
        more = [MaskKeys(gone)] if bool(gone.any()) else []
        reading = run(model, prompts, [RoleShare(queries="last")], [*more, *edits])
        chosen = {} if text is None else {"text": text}
        found.append(modality_dominance(reading, left_out=gone, **chosen).reset_coords(drop=True))
    joined = xr.concat(found, "removed", combine_attrs="override").assign_coords(removed=list(shares))
    return joined.assign_attrs(method="compressed_dominance", ranking=by if isinstance(by, str) else "given")
