"""Where VAR's freed attention goes: to the other visual tokens, to the text, or to both.

Paper: Kang et al. 2025 (arXiv 2503.03321), table 5. Claims: given to visual tokens alone it helps most, to text alone
it hurts. Cost: four runs over 160 prompts, seconds; over 64 on a large model. Different here: questions about made
pictures; every row with a sink is taken (rho 0), so that there is something to move; the part moved is .6; dimensions
and threshold from other prompts.

    python analyses/kang2025/receivers.py --model zoo:vlm-smol-sinks
"""

from __future__ import annotations

import xarray as xr

import sinkscope as sk
from sinkscope.analysis import (
    VISUAL_SINK_MODELS,
    Study,
    change_bars,
    compare_arms,
    is_large,
    join_arms,
    visual_tau,
)
from sinkscope.methods.var import sink_dims_or_largest
from sinkscope.tasks.examples import answer_score
from sinkscope.tasks.scene_questions import scene_questions

RECEIVERS = {"image": "to visual tokens", "all": "to both", "text": "to text"}


def measured(model: sk.Model, n: int) -> xr.Dataset:
    """Log probability of the right answer, and whether it comes first: dims (arm prompt)."""
    asked = scene_questions(model, 2 * n, seed=9)
    others, test = asked.examples.split(0.5, seed=0)
    dims, _ = sink_dims_or_largest(model, others.prompts)
    tau, _ = visual_tau(model, sk.run(model, others.prompts, [sk.SinkDims(dims)]))
    fixed = {"tau": tau, "dims": dims, "rho": 0.0, "min_image_mass": 0.0}
    arms = {"plain": answer_score(model, test)}
    for receivers, name in RECEIVERS.items():
        edit = sk.Redistribute(0.6, receivers=receivers, need_visual_sink=False, **fixed)
        arms[name] = answer_score(model, test, [edit])
    return join_arms(arms)


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw, and state what was found on one model."""
    ds = study.reading("scores", lambda: measured(model, 12 if study.quick else 64 if is_large(model) else 160))
    value = change_bars(study, ds, "receivers", "Who receives what the sinks had")
    for claim, one, other, sign, paper in (
        ("Given to visual tokens it helps", "to visual tokens", "plain", 1, "best of the three"),
        ("Given to text alone it hurts", "to text", "plain", -1, "worse than without"),
        ("Visual tokens alone are better receivers than text alone", "to visual tokens", "to text", 1, "yes"),
    ):
        words, agrees = compare_arms(value, one, other, sign)
        study.claim("Table 5", claim, paper=paper, found=words, agrees=agrees)


if __name__ == "__main__":
    with Study(__doc__, paper="kang2025", model=VISUAL_SINK_MODELS) as study:
        study.for_each(judge)
