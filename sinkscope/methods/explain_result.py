"""What an explanation of an answer holds: its settings, the table, the figure, and one paragraph with every number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import xarray as xr

from sinkscope.arguments import check_fields
from sinkscope.errors import PromptError
from sinkscope.methods.base import MethodResult
from sinkscope.methods.explain_masking import SLIGHT, Masking
from sinkscope.methods.explain_sinks import VisualSinks

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

PLACES = (
    "top left", "top middle", "top right", "middle left", "middle", "middle right", "bottom left", "bottom middle",
    "bottom right",
)  # fmt: skip
"""Ninths of a picture in reading order."""

LABELS = {"top": "top patches", "sinks": "visual sinks", "steady": "attended anyway"}
"""What figures call the sets of patches."""


@dataclass(frozen=True)
class ExplainSettings:
    """What :func:`explain_image` fixes beforehand.

    Attributes:
        answer: the answer to explain, all its tokens; None takes the first token of the model's own.
        general: the question that attention is held against (Zhang et al. 2025).
        min_image_mass: least attention on the picture of a head that looks at it (Kang et al. 2025).
        rho: least part of that which is not on visual sinks.
        tau: threshold on phi of a visual sink; None finds the gap between first and ordinary tokens.
        ratio: attention of a token that is attended whatever is asked, in medians of the visual tokens. Ours.
        share: part of the visual tokens that counts as the top patches. Ours.
        draws: sets of random patches that each masking is compared with.
        seed: of these draws.
    """

    answer: str | None = None
    general: str = "Write a general description of the image."
    min_image_mass: float = 0.2
    rho: float = 0.5
    tau: float | None = None
    ratio: float = 5.0
    share: float = 0.05
    draws: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            PromptError: a value of the wrong type, a number that is not finite, a share outside 0 to 1, or
                fewer than two draws.
        """
        check_fields(self, PromptError)
        if not 0 < self.share < 1 or self.draws < 2:
            raise PromptError(
                f"ExplainSettings(share={self.share}, draws={self.draws}): the share of top patches is between 0 and "
                "1, and an interval takes two draws or more."
            )


@dataclass(frozen=True, eq=False)
class ImageExplanation(MethodResult):
    """What :func:`explain_image` found; ``patch`` numbers the picture's visual tokens.

    Attributes:
        answer: the answer, as text.
        probability: the model's probability of it.
        looked: (patch) attention of the answer's rows, mean over the chosen heads, visual sinks left out (NaN).
        relative: (patch) the same over that of the general question (Zhang et al. 2025, heads chosen as here).
        heads: chosen heads, bool (layer head).
        by_rule: whether they pass ``min_image_mass`` and ``rho``; else they are the ten that come nearest.
        sinks: visual sinks, and tokens attended whatever is asked.
        sink_share: part of all attention on the picture, all layers and heads, that the sinks (by phi) get.
        top: numbers of the top patches, those looked at most.
        masking: the answer's probability with patches masked: ``top``, ``sinks`` (by phi) and ``steady`` (attended
            whatever is asked); a set without patches is left out.
        boxes: (patch, 4) left, top, right, bottom in pixels of the picture; NaN where a token has no place.
        tiles: (patch) 0 for a view of the whole picture, from 1 for a tile of it.
        picture: the picture.
        question: what was asked.
        settings: what was fixed beforehand.
    """

    reference: ClassVar[tuple[str, ...]] = ("kang2025", "zhang2025")

    answer: str
    probability: float
    looked: xr.DataArray
    relative: xr.DataArray
    heads: xr.DataArray
    by_rule: bool
    sinks: VisualSinks
    sink_share: float
    top: np.ndarray
    masking: dict[str, Masking]
    boxes: np.ndarray
    tiles: np.ndarray
    picture: Image.Image
    question: str
    settings: ExplainSettings

    @property
    def verdict(self) -> str:
        """What it comes to, in one paragraph with the numbers."""
        return " ".join([_answer(self), _heads(self), _top(self), _sinks(self), _steady(self)])

    def table(self) -> pd.DataFrame:
        """Return the masking test: one row per set of patches, beside random sets of the same size."""
        import pandas as pd

        rows = {name: one.row() for name, one in self.masking.items()}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("masked")

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw where the answer looked: attention off the sinks, top patches framed, sinks ringed."""
        from sinkscope import plot

        axes = plot.patch_overlay(
            np.asarray(self.picture), self._shown(self.looked), boxes=self.boxes, title="Looked at", ax=ax
        )
        sets = {"top": self.top, "sinks": self.sinks.patches, "steady": self.sinks.steady}
        return plot.mark_patches({LABELS[name]: self.boxes[one] for name, one in sets.items()}, ax=axes)

    def figure(self) -> Figure:
        """Draw the whole explanation: where it looked, relative attention, and the masking test."""
        import matplotlib.pyplot as plt

        from sinkscope import plot

        with plot.theme("page"):
            figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.2), width_ratios=(1, 1, 0.8))
            self.plot(left)
            plot.patch_overlay(
                np.asarray(self.picture), self._shown(self.relative), boxes=self.boxes,
                title="Beside a general question", ax=middle,
            )  # fmt: skip
            change = {name: one.masked - one.plain for name, one in self.masking.items()}
            effect = xr.DataArray(
                list(change.values()), dims="edit", coords={"edit": [LABELS[name] for name in change]},
                attrs={"long_name": "change of the answer's probability"},
            )  # fmt: skip
            random = effect.copy(data=np.zeros(len(effect))).expand_dims(draw=self.settings.draws).copy()
            for index, one in enumerate(self.masking.values()):
                random[:, index] = one.random - one.plain if len(one.random) else np.nan
            plot.effect_bars(effect, controls=random, title="Masked, and random patches", ax=right)
            figure.suptitle(f"{self.question} {self.answer.strip()} ({self.probability:.2f})")
        return figure

    def place(self, patches: np.ndarray) -> str:
        """Name the ninth of the picture where most of these patches lie, such as ``top left``; "" if none has one."""
        width, height = self.picture.size
        boxes = self.boxes[patches]
        boxes = boxes[np.isfinite(boxes).all(1)]
        if not len(boxes):
            return ""
        column = np.clip((boxes[:, 0] + boxes[:, 2]) / 2 * 3 // width, 0, 2)
        row = np.clip((boxes[:, 1] + boxes[:, 3]) / 2 * 3 // height, 0, 2)
        return PLACES[int(np.bincount((3 * row + column).astype(int), minlength=9).argmax())]

    def _shown(self, values: xr.DataArray) -> xr.DataArray:
        """One view of the picture for drawing: its tiles where it was cut into some, else the whole."""
        kept = self.tiles > 0 if np.nanmax(self.tiles, initial=0) > 0 else np.isfinite(self.tiles)
        return values.where(xr.DataArray(kept, dims="patch")).rename(patch="key")


def _answer(found: ImageExplanation) -> str:
    whose = "the model answers" if found.settings.answer is None else "the answer given is"
    said = found.answer.strip() or found.answer  # the space in front of a word is the token's, not the answer's
    return f"Asked {found.question!r}, {whose} {said!r}, probability {found.probability:.3f}."


def _heads(found: ImageExplanation) -> str:
    chosen, settings = int(found.heads.sum()), found.settings
    rule = (
        f"at least {settings.min_image_mass:.0%} of their attention on the picture, and of that at least "
        f"{settings.rho:.0%} off its sinks"
    )
    if not found.by_rule:
        return f"No head has {rule}; the {chosen} that give it most stand in for them."
    return f"There {chosen} of {found.heads.size} heads look at the picture: {rule}."


def _top(found: ImageExplanation) -> str:
    test = found.masking["top"]
    where = found.place(found.top)
    most = "most of them " if test.patches > 1 else ""
    start = f"{_patches(test)} they look at most{f' ({most}{where})' if where else ''}"
    rests = "the answer rests on them" if test.share > 0.5 else "part of the answer rests on them"
    verdict = _verdict(test, rests, "the answer needs them no more than random patches")
    return f"{start}: {_masked(test)}: {verdict}."


def _sinks(found: ImageExplanation) -> str:
    if not len(found.sinks.patches):
        return f"No visual token is a sink ({found.sinks.note})."
    test = found.masking["sinks"]
    start = (
        f"{_where(found, found.sinks.patches)} {'is a sink' if test.patches == 1 else 'are sinks'} "
        f"({found.sinks.note}), with {found.sink_share:.0%} of all attention on the picture"
    )
    verdict = _verdict(test, "this answer needs them", "to this answer they are worth no more than random patches")
    return f"{start}; {_masked(test)}: {verdict}."


def _steady(found: ImageExplanation) -> str:
    if not len(found.sinks.steady):
        return "No other token is attended whatever is asked."
    test = found.masking["steady"]
    start = (
        f"{_where(found, found.sinks.steady)} {'gets' if test.patches == 1 else 'get'} {found.settings.ratio:g} times "
        "the median token's attention whatever is asked, as sinks do"
    )
    verdict = _verdict(test, "no sink then, the answer needs what is there", "sinks in effect, for this answer")
    return f"{start}; {_masked(test)}: {verdict}."


def _verdict(test: Masking, harmed: str, harmless: str) -> str:
    """What a masking test says: nothing where so few draws could not have said it, no need where little is lost."""
    if not test.judged:
        return f"not judged, as {len(test.random)} draws cannot tell it from chance (20 can)"
    if test.harms and test.share < SLIGHT:
        return f"hardly needed, at {test.share:.1%} of the answer's probability beyond what random patches cost"
    return harmed if test.harms else harmless


def _where(found: ImageExplanation, patches: np.ndarray) -> str:
    place = found.place(patches)
    most = f" ({'most of them ' if len(patches) > 1 else ''}{place})" if place else ""
    return f"{len(patches)} of {found.looked.size} visual tokens{most}"


def _masked(test: Masking) -> str:
    change = f"changes the answer by {test.masked - test.plain:+.3f}, to {test.masked:.3f}"
    return f"masking {'it' if test.patches == 1 else 'them'} {change}, {_beside(test)}"


def _beside(test: Masking) -> str:
    if not len(test.random):
        return "and no patch is left to compare with"
    low, high = test.interval
    spread = f"{test.random.mean():.3f} [{low:.3f}, {high:.3f}], {len(test.random)} draws, p = {test.p:.3f}"
    return f"masking as many random patches {spread}"


def _patches(test: Masking) -> str:
    return f"The {test.patches} patches" if test.patches > 1 else "The patch"
