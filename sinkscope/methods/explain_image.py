"""Where an answer about a picture comes from: heads, sinks, relative attention, and what masking does to the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import xarray as xr

from sinkscope.arguments import shown
from sinkscope.engine.run import run
from sinkscope.errors import PromptError
from sinkscope.methods.explain_masking import mask_patches
from sinkscope.methods.explain_result import ExplainSettings, ImageExplanation
from sinkscope.methods.explain_sinks import find_visual_sinks
from sinkscope.probes.attention import KeyMass
from sinkscope.probes.output import Logits
from sinkscope.prompts import Prompts
from sinkscope.prompts.images import load_image
from sinkscope.registry import method
from sinkscope.roles import ROLE_INDEX

if TYPE_CHECKING:
    from sinkscope.models.handle import Model

FEWEST = 10
"""Heads that are taken where none looks at the picture enough: those that give it most, sinks left out."""


@method()
def explain_image(model: Model, image: Any, question: str, settings: ExplainSettings | None = None) -> ImageExplanation:
    """Explain one answer about one picture: where it looked, which visual tokens are sinks, and what it rests on.

    Attention is that of the positions that predict the answer. Sinks are found first, by phi (Kang et al. 2025); then
    heads that look at the picture and not at its sinks; then what these look at off the sinks, beside what they look at
    under a general question (Zhang et al. 2025). Then the top patches, the sinks, tokens that are attended whatever is
    asked, and random patches are masked from all text after the picture. Attention says where it looked; what an
    answer rests on, only the masking does.

    Args:
        model: a vision-language model with its processor.
        image: a path, a PIL image, or a uint8 array (height, width, 3).
        question: what is asked.
        settings: thresholds, the answer if it is not the model's own, the number of random draws.

    Raises:
        PromptError: not such a model, a broken image, or a picture of too few visual tokens to compare.
    """
    if settings is not None and not isinstance(cast("object", settings), ExplainSettings):
        raise PromptError(
            f"explain_image(settings={shown(settings)}): give ExplainSettings(draws=...), or leave it out."
        )
    chosen, picture = settings or ExplainSettings(), load_image(image, "explain_image")
    asked = {"image": picture, "text": question} | ({} if chosen.answer is None else {"answer": chosen.answer})
    prompts = Prompts.from_chat([asked, {"image": picture, "text": chosen.general}], model)
    rows, targets = _answer_rows(model, prompts, chosen)
    pair = (
        _attention(model, prompts.subset([0]), [KeyMass(queries=rows)]),
        _attention(model, prompts.subset([1]), [KeyMass(queries="last")]),
    )
    sinks = find_visual_sinks(model, prompts, pair, chosen.tau, chosen.ratio)
    heads, by_rule = _heads(pair[0], sinks.residual, chosen)
    clear = ~sinks.residual.any("layer")
    looked, before = (one.where(heads).mean(("layer", "head")).where(clear) for one in pair)
    relative = (looked / before.where(before > 0)).assign_attrs(long_name="attention over that of a general question")
    count = max(1, round(chosen.share * looked.size))
    top = np.argsort(-looked.fillna(-1.0).values, kind="stable")[:count]
    sets = {"top": top, "sinks": sinks.patches, "steady": sinks.steady}
    masking = mask_patches(model, prompts.subset([0]), (rows, targets), sets, chosen.draws, chosen.seed)
    visual = np.flatnonzero(prompts.roles[0] == ROLE_INDEX["image"])
    grid, tokenizer = prompts.grids[0], model.tokenizer
    assert tokenizer is not None  # from_chat refuses a model without one
    return ImageExplanation(
        answer=tokenizer.decode(targets), probability=masking["top"].plain,
        looked=looked.assign_attrs(long_name="attention per head, sinks left out"), relative=relative, heads=heads,
        by_rule=by_rule, sinks=sinks, top=top,
        sink_share=float(pair[0].isel(patch=sinks.patches).sum() / pair[0].sum()),
        masking=masking,
        boxes=np.full((len(visual), 4), np.nan) if grid is None else grid.box[visual],
        tiles=np.full(len(visual), np.nan) if grid is None else grid.tile[visual],
        picture=picture, question=question, settings=chosen,
    )  # fmt: skip


def _answer_rows(model: Model, prompts: Prompts, settings: ExplainSettings) -> tuple[list[int], list[int]]:
    """Positions that predict the tokens of the answer, and these tokens."""
    length = prompts.lengths[0]
    if settings.answer is not None:
        said = np.flatnonzero(prompts.roles[0] == ROLE_INDEX["answer"])
        return (said - 1).tolist(), prompts.ids[0][said].tolist()
    logits = run(model, prompts.subset([0]), [Logits()])["logits"].values
    return [length - 1], [int(logits[0, -1].argmax())]


def _attention(model: Model, prompts: Prompts, probes: list[KeyMass]) -> xr.DataArray:
    """Attention on each visual token of one prompt; (layer head patch)."""
    visual = np.flatnonzero(prompts.roles[0] == ROLE_INDEX["image"])
    if not len(visual):
        raise PromptError("explain_image: no token of this prompt stands for the picture. Use a vision-language model.")
    mass = run(model, prompts, probes)["key_mass"].isel(prompt=0).transpose("layer", "head", "key").astype("float64")
    return mass.isel(key=visual).reset_coords(drop=True).rename(key="patch").assign_coords(patch=range(len(visual)))


def _heads(attention: xr.DataArray, sinks: xr.DataArray, settings: ExplainSettings) -> tuple[xr.DataArray, bool]:
    """Heads that look at the picture off its sinks, and whether any passed the rule."""
    mass, clear = attention.sum("patch"), attention.where(~sinks).sum("patch")
    chosen = (mass >= settings.min_image_mass) & (clear >= settings.rho * mass)
    if bool(chosen.any()):
        return chosen, True
    bound = np.sort(clear.values.ravel())[-min(FEWEST, clear.size)]
    return clear >= bound, False
