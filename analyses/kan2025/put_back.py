"""One head at a time: resink heads put back, resink and vision heads taken out, against the same for other heads.

Paper: Kan et al. 2025 (RAR, OpenReview xTbFeDhdRG), table 1: without all isolated resink heads 43.8, one of them put
back 43.0, one global one removed 43.2, one vision head removed 42.6, base 39.5. Claims: a single isolated head put back
costs, and so does a single vision head removed. Cost: one run per late head over 128 prompts, a minute. Different here:
classes of heads as in ``drop_heads.py``, no training; the log probability of the right answer, mean over the heads of a
class; every late head is tried, not one (two of a class on a large model).

    python analyses/kan2025/put_back.py --model zoo:vlm-smol-sinks
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from drop_heads import CLASSES, classes

import sinkscope as sk
from sinkscope import metrics
from sinkscope.analysis import VISUAL_SINK_MODELS, Study, change_bars, compare_arms, is_large, join_arms
from sinkscope.methods.sads import measure
from sinkscope.tasks.examples import answer_score
from sinkscope.tasks.scene_questions import scene_questions

ISOLATED = CLASSES[2]
TRIED = 2
"""Heads of a class that are tried one by one on a large model, drawn at random."""


def scores(model: sk.Model, n: int) -> xr.Dataset:
    """Log probability of the right answer (arm prompt), an arm the mean over the heads of a class taken one by one."""
    asked = scene_questions(model, n)
    depth = int(model.config.get_text_config().num_hidden_layers)
    kind = classes(measure(model, asked.prompts, range(depth // 2, depth)))
    places = {name: [tuple(at) for at in np.argwhere((kind == name).values).tolist()] for name in CLASSES}
    rng = np.random.default_rng(0)
    tried = {
        name: [heads[i] for i in sorted(rng.permutation(len(heads))[: TRIED if is_large(model) else None])]
        for name, heads in places.items()
    }

    def without(heads: list[tuple[int, int]]) -> xr.Dataset:
        flags = np.zeros(kind.shape, bool)
        for at in heads:
            flags[at] = True
        edit = sk.AblateHeads(metrics.head_list(kind.copy(data=flags)), how="zero", allow_empty=True)
        return answer_score(model, asked.examples, [edit])[["log_probability"]]

    def mean(each: list[xr.Dataset]) -> xr.Dataset:
        return xr.concat(each, "which", combine_attrs="override").mean("which", keep_attrs=True)

    everything = places[ISOLATED]
    arms = {"plain": without([]), "all isolated out": without(everything)}
    arms["one isolated back"] = mean([without([at for at in everything if at != one]) for one in tried[ISOLATED]])
    for name in CLASSES:
        arms[f"one {name} out"] = mean([without([one]) for one in tried[name]])
    counts = {f"n_{name}": len(heads) for name, heads in places.items()} | {"tried": len(tried[ISOLATED])}
    return join_arms(arms).assign_attrs(counts)


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw, and state what was found on one model."""
    ds = study.reading("scores", lambda: scores(model, 4 if study.quick else 48 if is_large(model) else 128))
    value = change_bars(study, ds, "put_back", "One head at a time", ", mean over the heads of a class")
    for claim, one, other, paper in (
        ("An isolated resink head put back costs", "one isolated back", "all isolated out", "43.8 to 43.0"),
        ("A vision head removed costs", "one vision out", "plain", "43.8 to 42.6"),
        ("A vision head removed costs more than an isolated one", "one vision out", f"one {ISOLATED} out", "42.6"),
    ):
        words, agrees = compare_arms(value, one, other)
        found = f"{words}; {ds.attrs['tried']} heads of a class one by one"
        study.claim("Table 1", claim, paper=paper, found=found, agrees=agrees)


if __name__ == "__main__":
    with Study(__doc__, paper="kan2025", model=VISUAL_SINK_MODELS) as study:
        study.for_each(judge)
