"""Attention to the picture made larger where it matters: where the gaze moved (GIFT), where the tower looked (PAINT).

Both find the patches beforehand and change the last row alone. What they find can be looked at before it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from sinkscope.edits.normalisers import AmplifyLogits
from sinkscope.engine.run import find_tower, run
from sinkscope.errors import PromptError
from sinkscope.methods.compression import tower_attention
from sinkscope.metrics.copying import paint_tokens
from sinkscope.metrics.looking import gaze_shift
from sinkscope.probes import AttentionMap
from sinkscope.registry import method
from sinkscope.roles import ROLE_INDEX

if TYPE_CHECKING:
    from sinkscope.models.handle import Model
    from sinkscope.prompts import Prompts

FIRST_LAYER = 2
"""The first decoder layer that PAINT changes."""


@method()
def gaze_saliency(
    model: Model, prompts: Prompts, layers: Sequence[int] | None = None, words: xr.DataArray | None = None
) -> xr.DataArray:
    """Return GIFT's saliency of each visual token, what ``AmplifyGaze`` takes: dims (prompt, key), 0 at other tokens.

    Args:
        model: a vision-language model.
        prompts: questions behind one picture each or several.
        layers: whose attention is read; left out, the one in which attention to the picture rises most from word to
            word over all prompts.
        words: bool (prompt, key), the question's tokens that count; the paper takes content words, found by a tagger.
            Left out, all text behind the picture.

    ``attrs`` holds ``layers``. The numbers are :func:`sinkscope.metrics.gaze_shift`'s (gift2026).

    Raises:
        PromptError: a prompt has no picture, or no word behind it.
    """
    read = list(range(find_tower(model, None).depth)) if layers is None else list(layers)
    heads = range(find_tower(model, None).attention[0].heads)
    rows, counted, visual = [], [], []
    for which, roles in enumerate(prompts.roles):
        image = np.flatnonzero(np.asarray(roles) == ROLE_INDEX["image"])
        behind = np.arange(len(roles)) > (image[-1] if len(image) else len(roles))
        chosen = np.asarray(roles) == ROLE_INDEX["text"] if words is None else words.values[which, : len(roles)]
        asked = np.flatnonzero(chosen & behind)
        if not len(asked):
            raise PromptError(
                f"gaze_saliency: prompt {which} has no picture, or no word that counts behind it. Give questions about "
                "pictures, made with Prompts.from_chat."
            )
        span = np.arange(asked[0] - 1, asked[-1] + 1)
        found = run(model, prompts.subset([which]), [AttentionMap(read, heads)])["attention"][0]
        rows.append(found.transpose("layer", "head", "query", "key").values[:, :, span][..., image])
        counted.append(chosen[span[1:]])
        visual.append(image)
    if layers is None:
        rises = [
            np.maximum(np.diff(row, axis=2), 0)[:, :, use].sum((1, 2, 3))
            for row, use in zip(rows, counted, strict=True)
        ]
        read = [int(np.sum(rises, axis=0).argmax())]
        rows = [row[read] for row in rows]
    saliency = np.zeros((len(prompts), max(prompts.lengths)))
    for which, (row, use, image) in enumerate(zip(rows, counted, visual, strict=True)):
        saliency[which, image] = gaze_shift(row, use)
    return xr.DataArray(
        saliency, dims=("prompt", "key"), coords={"prompt": np.arange(len(prompts))}, name="saliency",
        attrs={"layers": read},
    )  # fmt: skip


@method()
def paint(
    model: Model, prompts: Prompts, alpha: float = 0.7, beta: float = 0.3, local: float = 0.25
) -> list[AmplifyLogits]:
    """Return PAINT's edits for these prompts: logits amplified at local and summary tokens of the picture (arif2025).

    Args:
        model: a vision-language model whose tower's patches are its visual tokens.
        prompts: with pictures.
        alpha: at local tokens, :func:`sinkscope.metrics.paint_tokens` of the tower's first and last layer but one.
        beta: at summary tokens, the tower's sinks; left out of the list where it has none.
        local: share of the patches that are local.

    In the last row of the layers from 2 on, as the released code does.

    Raises:
        PromptError: no picture, or several patches make one token.
    """
    visual = [np.flatnonzero(np.asarray(roles) == ROLE_INDEX["image"]) for roles in prompts.roles]
    bare = [which for which, image in enumerate(visual) if not len(image)]
    if bare:
        raise PromptError(f"paint: prompt {bare[0]} has no picture. Make prompts with Prompts.from_chat.")
    early, late = (tower_attention(model, prompts, layer) for layer in (0, -2))
    shape = len(prompts), max(prompts.lengths)
    chosen = {"local": np.zeros(shape, dtype=bool), "summary": np.zeros(shape, dtype=bool)}
    for which, image in enumerate(visual):
        for name, found in zip(chosen, paint_tokens(early[which], late[which], local), strict=True):
            chosen[name][which, image] = found
    layers = range(FIRST_LAYER, find_tower(model, None).depth)
    coords = {"prompt": np.arange(len(prompts))}
    return [
        AmplifyLogits(factor, keys=xr.DataArray(keys, dims=("prompt", "key"), coords=coords), queries="last",
                      layers=layers)
        for factor, keys in zip((alpha, beta), chosen.values(), strict=True) if factor and keys.any()
    ]  # fmt: skip
