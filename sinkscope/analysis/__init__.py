"""The frame of an analysis script: arguments, texts, readings kept in files, captioned figures, claims with numbers.

A script states what a paper claims, measures it on models of the reader's choice, and says what was found on each::

    def judge(study: Study, model: sk.Model) -> None:
        ds = study.run(study.texts("prose"), [sk.KeyMass()])
        rate = Estimate.of(sk.metrics.compare(sk.metrics.sink_rate(ds, over=("layer", "head")), to=...))
        study.figure(sk.plot.sink_map(ds["key_mass"].isel(key=0).mean("prompt")), "sink_map", source=ds)
        study.claim("Fig. 2", "most heads have a sink", paper="over half", number=rate, agrees=rate.above(0.5))

    with Study(__doc__, paper="gu2025") as study:
        study.for_each(judge)
"""

from sinkscope.analysis.arms import change_bars, compare_arms, draw_right_and_wrong, join_arms, right_and_wrong
from sinkscope.analysis.bands import DRAWS, add_random_bands, random_tokens
from sinkscope.analysis.claims import Claim, Estimate, with_intervals
from sinkscope.analysis.common import (
    ask,
    describe_difference,
    has_sign,
    heads_that_change,
    highest_tokens,
    is_large,
    largest_changes,
    points_above,
    points_by_score,
    spread_layers,
    together,
    visual_sink_layers,
    visual_tau,
)
from sinkscope.analysis.study import LANGUAGE_MODELS, VISION_LANGUAGE_MODELS, VISUAL_SINK_MODELS, Study, need

__all__ = [
    "DRAWS", "LANGUAGE_MODELS", "VISION_LANGUAGE_MODELS", "VISUAL_SINK_MODELS", "Claim", "Estimate", "Study",
    "add_random_bands", "ask",
    "change_bars", "compare_arms", "describe_difference", "draw_right_and_wrong", "has_sign", "heads_that_change",
    "highest_tokens", "is_large", "join_arms", "largest_changes", "need", "points_above", "points_by_score",
    "random_tokens", "right_and_wrong", "spread_layers", "together", "visual_sink_layers", "visual_tau",
    "with_intervals",
]  # fmt: skip
