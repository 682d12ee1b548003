"""Choosing gamma: a curve over a grid on calibration questions, and its best point with or without labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import xarray as xr

from sinkscope.edits.keys import ScaleKeys
from sinkscope.engine.sweep import grid
from sinkscope.errors import EditError, MetricError
from sinkscope.methods.zerotuning_heads import BETTER, TIE, check_measure, means
from sinkscope.tasks import Questions, collapse, evaluate, rate

if TYPE_CHECKING:
    from sinkscope.models.handle import Model

GAMMAS = (0.3, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Default grid. The paper does not give its own; the released demo sweeps 1 to 4 in steps of 0.5."""


def gamma_curve(
    model: Model, questions: Questions, template: ScaleKeys, gammas: Sequence[float] = GAMMAS, *, batch_size: int = 1,
    executor: Any = None,
) -> xr.Dataset:  # fmt: skip
    """Answer the questions at every gamma of ``template``'s keys, layers and heads.

    Returns a Dataset over (gamma): the measures ``accuracy`` (label logits), ``exact``, ``invalid``, ``loss`` and
    ``entropy``; ``accuracy_low`` and ``accuracy_high`` (Wilson, 95 per cent); and ``collapse``, the share of the
    questions that get the most frequent option, which shows whether a low entropy is had by always saying the same.

    Raises:
        EditError: no gammas.
    """
    if not gammas:
        raise EditError("gamma_curve(gammas=[]): no value to choose from. Give some, such as [0.5, 1, 2].")
    scores = evaluate(model, questions, grid(template, gamma=sorted(gammas)), batch_size=batch_size, executor=executor)
    interval = rate(scores["correct"])
    ds = means(scores).assign(accuracy_low=interval["low"], accuracy_high=interval["high"])
    ds["collapse"] = collapse(scores["choice"])
    ds.attrs = dict(scores.attrs) | {"template": repr(template), "n": len(questions.items)}
    return ds


def best_gamma(curve: xr.Dataset, by: str = "accuracy") -> float:
    """Return the gamma of a curve with the best mean ``by``; of equal ones the nearest to 1 on a log scale.

    ``by="entropy"`` takes the lowest mean entropy of the answer, and no label (the paper's unsupervised mode).

    Raises:
        MetricError: no such measure, or the curve lacks it.
    """
    check_measure(by, "best_gamma")
    if by not in curve or "gamma" not in curve.dims:
        raise MetricError(
            f"best_gamma(by={by!r}): the curve holds {sorted(map(str, curve.data_vars))} over {list(curve.dims)}. "
            "Give what gamma_curve made."
        )
    value = BETTER[by] * curve[by]
    ties = [float(g) for g in curve["gamma"].values[(value >= value.max() - TIE).values]]
    return min(ties, key=lambda gamma: abs(math.log(gamma)) if gamma > 0 else math.inf)
