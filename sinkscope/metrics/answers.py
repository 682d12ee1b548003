"""How right an answer about a picture is: objects that are not there (CHAIR), yes or no (POPE), overlap of regions."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from sinkscope.definitions import Definition
from sinkscope.errors import MetricError
from sinkscope.metrics.base import metric

Array = NDArray[np.float64]


@metric()
def objects_named(text: str, names: Mapping[str, str]) -> list[str]:
    """Return the objects that a text names, in order, repeated ones each time.

    ``names`` maps a word or phrase in lower case to its object: ``{"puppy": "dog", "dogs": "dog", "hot dog": "hot
    dog"}``. Where phrases overlap the longest counts, so that a hot dog is no dog. Plurals and synonyms are named too:
    nothing is guessed. Capitals and line ends of the text do not matter.

    Raises:
        MetricError: no name, an empty one, or one with capitals or spaces that no text can match.
    """
    if not names or not all(map(str.strip, names)):
        raise MetricError("objects_named(names=...): name at least one word, and no empty one.")
    if odd := [each for each in names if each != " ".join(each.lower().split())]:
        raise MetricError(
            f"objects_named(names=...): {odd[0]!r} is never found, as texts are read in lower case with single spaces. "
            f"Write {' '.join(odd[0].lower().split())!r}."
        )
    return [name for name, _, _ in spans_named(text, names)]


def spans_named(text: str, names: Mapping[str, str]) -> list[tuple[str, int, int]]:
    """Return what :func:`objects_named` does, each object with the characters of ``text`` that name it: start and end.

    For names that :func:`objects_named` takes; nothing is checked here.
    """
    longest = sorted(names, key=len, reverse=True)
    # Any white space stands between the words of a phrase; a letter whose lower case is longer would move the rest.
    words = "|".join(r"\s+".join(map(re.escape, name.split())) for name in longest)
    lower = "".join(each if len(each.lower()) != 1 else each.lower() for each in text)
    found = re.finditer(rf"(?<!\w)(?:{words})(?!\w)", lower)
    return [(names[" ".join(match.group().split())], match.start(), match.end()) for match in found]


@metric(
    Definition(
        "chair", "rohrbach2018", "captions (C_S) and mentions (C_I) with an object that is not in the picture", "share",
        (), "rohrbach2018",
    )
)  # fmt: skip
def chair(named: Sequence[Sequence[str]], present: Sequence[Collection[str]]) -> xr.Dataset:
    """Return CHAIR of captions: how many name an object that is not in the picture, and how many mentions do.

    ``chair_s`` is the share of captions with such an object, ``chair_i`` the share of mentions, ``recall`` the share of
    the pictures' objects that are named; over the captions together, NaN over nothing. By caption (prompt):
    ``hallucinated`` (0 or 1), ``wrong`` and ``mentions`` (counts, repeated mentions too), ``found`` and ``objects``
    (counts of distinct ones). Give recall and the captions' length beside CHAIR: a caption that says nothing has none.
    Some papers print the names of C_S and C_I the other way round.

    Args:
        named: the objects each caption names, such as :func:`objects_named` gives.
        present: the objects in each picture.

    Raises:
        MetricError: as many captions as pictures are needed, and words in lists.
    """
    if len(named) != len(present) or any(isinstance(each, str) for each in (*named, *present)):
        raise MetricError(
            f"chair: {len(named)} captions and {len(present)} pictures. Give a list of objects for each caption and "
            "each picture."
        )
    sets = [set(each) for each in present]
    counts = {
        "wrong": [sum(one not in there for one in said) for said, there in zip(named, sets, strict=True)],
        "mentions": [len(said) for said in named],
        "found": [len(there & set(said)) for said, there in zip(named, sets, strict=True)],
        "objects": [len(there) for there in sets],
    }
    by_caption = {name: np.array(values, dtype=np.float64) for name, values in counts.items()}
    by_caption["hallucinated"] = (by_caption["wrong"] > 0).astype(np.float64)
    total = {name: float(values.sum()) for name, values in by_caption.items()}
    shares = {
        "chair_s": _share(total["hallucinated"], len(named)), "chair_i": _share(total["wrong"], total["mentions"]),
        "recall": _share(total["found"], total["objects"]),
    }  # fmt: skip
    attrs = {"definition": "rohrbach2018", "reference": "rohrbach2018", "n": len(named), "units": "share"}
    return xr.Dataset(
        {**{name: ("prompt", values) for name, values in by_caption.items()}, **shares},
        {"prompt": np.arange(len(named))}, attrs,
    )  # fmt: skip


@metric()
def says_yes(text: str) -> bool:
    """Return whether an answer means yes by the rule of POPE's released code (li2023pope).

    The first sentence decides: no where it holds the word ``no`` or ``not``, else yes, whatever else it says.
    """
    words = text.partition(".")[0].replace(",", "").split()
    return not any(word in ("No", "no", "not") for word in words)


@metric(
    Definition("pope_scores", "li2023pope", "scores of yes and no questions, yes the positive class", "share", (),
               "li2023pope")
)  # fmt: skip
def pope_scores(said: ArrayLike, truth: ArrayLike) -> dict[str, float]:
    """Return ``accuracy``, ``precision``, ``recall``, ``f1`` and ``yes`` (the share of yes) of yes and no answers.

    ``said`` and ``truth`` are bool, one per question; yes is the positive class. A score over nothing is NaN. Read f1
    beside ``yes``: a model that always says yes has a recall of 1.

    Raises:
        MetricError: arrays of another kind or of different lengths.
    """
    given, right = np.asarray(said), np.asarray(truth)
    if given.dtype != bool or right.dtype != bool or given.shape != right.shape:
        raise MetricError(
            f"pope_scores: got {given.dtype} {given.shape} and {right.dtype} {right.shape}. Give two bool arrays of "
            "one length; says_yes(text) reads an answer in words."
        )
    both, given_yes, right_yes = float((given & right).sum()), float(given.sum()), float(right.sum())
    return {
        "accuracy": _share(float((given == right).sum()), given.size), "precision": _share(both, given_yes),
        "recall": _share(both, right_yes), "f1": _share(2 * both, given_yes + right_yes),
        "yes": _share(given_yes, given.size),
    }  # fmt: skip


@metric()
def box_iou(found: ArrayLike, truth: ArrayLike) -> Array:
    """Return the overlap of boxes, their intersection over their union: ``(..., 4)`` twice to ``(...)``.

    A box is left, top, right, bottom. 1 is the same box, 0 none in common; NaN for two boxes without area, and where a
    side is NaN.

    Raises:
        MetricError: no boxes, an infinite side, or a right or lower side before the other.
    """
    one, other = (np.asarray(each, dtype=np.float64) for each in (found, truth))
    for name, each in (("found", one), ("truth", other)):
        if each.shape[-1:] != (4,):
            raise MetricError(f"box_iou({name}=): shape {each.shape}. Give boxes (..., 4): left, top, right, bottom.")
        odd = (each[..., 2:] < each[..., :2]).any(-1) | np.isinf(each).any(-1)
        if odd.any():
            raise MetricError(
                f"box_iou({name}=): {each[odd][0].tolist()} is no box. Give left, top, right, bottom, right and bottom "
                "not before the others, all finite; NaN where there is no box."
            )
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    inside = sides.clip(min=0).prod(-1)
    union = (one[..., 2:] - one[..., :2]).prod(-1) + (other[..., 2:] - other[..., :2]).prod(-1) - inside
    return np.divide(inside, union, out=np.full(np.shape(union), np.nan), where=union > 0)


@metric()
def mask_iou(found: ArrayLike, truth: ArrayLike) -> Array:
    """Return the overlap of regions, their intersection over their union: bool ``(..., row, column)`` to ``(...)``.

    NaN where both are empty.

    Raises:
        MetricError: no bool maps of one size.
    """
    one, other = np.asarray(found), np.asarray(truth)
    if one.dtype != bool or other.dtype != bool or one.ndim < 2 or one.shape[-2:] != other.shape[-2:]:
        raise MetricError(
            f"mask_iou: got {one.dtype} {one.shape} and {other.dtype} {other.shape}. Give bool maps of one size."
        )
    inside, union = ((part).sum((-2, -1)).astype(np.float64) for part in (one & other, one | other))
    return np.divide(inside, union, out=np.full(np.shape(union), np.nan), where=union > 0)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
