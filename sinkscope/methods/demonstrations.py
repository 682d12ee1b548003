"""Learning from examples with pictures: does the answer look at the demonstrations, and does it rest on them?

Models copy the text of demonstrations and may pass over their pictures (DARA, Chen et al. 2025). What a model gives
each picture is a share of attention; what it owes to it is what blank pictures in the same place cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from sinkscope.engine.run import run
from sinkscope.errors import PromptError
from sinkscope.probes import Logits, RoleShare
from sinkscope.prompts import Prompts
from sinkscope.prompts.images import load_image
from sinkscope.prompts.labels import Image, label_tokens
from sinkscope.registry import method
from sinkscope.roles import TEXT_ROLES
from sinkscope.tasks.examples import Examples, score_answers

if TYPE_CHECKING:
    from sinkscope.edits.base import Edit
    from sinkscope.models.handle import Model

ARMS = ("as they are", "blank demonstrations", "blank query picture")
DEMONSTRATION, QUERY, TEXT = GROUPS = ("demonstration pictures", "query picture", "text")


@method()
def demonstrations(model: Model, examples: Examples, edits: Sequence[Edit] = ()) -> xr.Dataset:
    """Return attention to demonstrations and query, and what the answer loses where their pictures are blank.

    Args:
        model: a vision-language model.
        examples: questions whose last picture is the one that is asked about; those in front are demonstrations.
        edits: what else is changed, in every arm.

    ``group_share`` (prompt layer head group) is what the last row gives the pictures of the demonstrations, the query's
    and the text; ``log_probability`` and ``correct`` (arm prompt) score the answers as they are, with blank pictures
    (of the picture's own mean colour) in the place of the demonstrations, and in that of the query: reliance on the
    demonstrations is the first arm less the second, and the third says what reliance looks like. Source: Chen et al.
    2025 (DARA). Its learned factors are not here.

    Raises:
        PromptError: a prompt has fewer than two pictures, another number than the others, or pictures not of pixels.
    """
    prompts = examples.prompts
    counts = {len(_pictures(item)) for item in prompts.made_of}
    if len(counts) != 1 or min(counts) < 2:
        raise PromptError(
            f"demonstrations: {sorted(counts) or 'no'} pictures in a prompt. Give each prompt, made by "
            "Prompts.from_chat, the same number of pictures: demonstrations, and the query's last."
        )
    last = counts.pop() - 1
    probes = [Logits(), RoleShare("last", groups=_groups(prompts, last))]
    reading = run(model, prompts, probes, edits)
    scores = [score_answers(reading, examples)]
    for which in (set(range(last)), {last}):
        plain = Prompts.from_chat([_blanked(item, which) for item in prompts.made_of], model)
        scores.append(score_answers(run(model, plain, [Logits()], edits), examples))
    found = xr.concat([one.reset_coords(drop=True) for one in scores], "arm", combine_attrs="override")
    attrs = reading.attrs | {"method": "demonstrations", "reference": "chen2025"}
    shares = reading["group_share"].reset_coords(drop=True)
    return found.assign_coords(arm=list(ARMS)).assign(group_share=shares).assign_attrs(attrs)


def _pictures(item: object) -> list[object]:
    given = item.get("image") if isinstance(item, dict) else None
    return list(given) if isinstance(given, list | tuple) else [given] * (given is not None)


def _blanked(item: dict[str, object], which: set[int]) -> dict[str, object]:
    pictures = []
    for place, given in enumerate(_pictures(item)):
        pixels = np.asarray(load_image(given, f"image {place}"))
        plain = np.broadcast_to(pixels.mean((0, 1)).round().astype(np.uint8), pixels.shape)
        pictures.append(np.ascontiguousarray(plain) if place in which else given)
    return {**item, "image": pictures}


def _groups(prompts: Prompts, last: int) -> dict[str, xr.DataArray]:
    names = {f"picture {place}": Image(place) for place in range(last + 1)} | {TEXT: list(TEXT_ROLES)}
    labels = label_tokens(prompts, names)
    shown = [f"picture {place}" for place in range(last)]
    return {DEMONSTRATION: labels.isin(shown), QUERY: labels == f"picture {last}", TEXT: labels == TEXT}
