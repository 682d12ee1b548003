"""VAR without the choice of heads: redistribution in every head beside redistribution in image-centric ones.

Paper: Kang et al. 2025 (arXiv 2503.03321), table 4. Claim: without the selection of heads the score collapses. Cost:
three runs over 160 prompts, seconds. Different here: questions about made pictures; rho .5 selects, rho 0 takes every
head; the part moved is .6 and .9; dimensions from other prompts.

    python analyses/kang2025/selection.py --model zoo:vlm-smol-sinks
"""

from __future__ import annotations

import xarray as xr

import sinkscope as sk
from sinkscope.analysis import VISUAL_SINK_MODELS, Study, change_bars, compare_arms, is_large, join_arms, visual_tau
from sinkscope.methods.var import sink_dims_or_largest
from sinkscope.tasks.examples import answer_score
from sinkscope.tasks.scene_questions import scene_questions

CALIBRATION = 48
"""Prompts that dimensions and threshold are found on."""


def measured(model: sk.Model, n: int) -> xr.Dataset:
    """Log probability of the right answer, and whether it comes first: dims (arm prompt)."""
    asked = scene_questions(model, n + min(n, CALIBRATION), seed=5)
    others, test = asked.examples.split(min(n, CALIBRATION) / len(asked.prompts), seed=0)
    dims, _ = sink_dims_or_largest(model, others.prompts)
    tau, _ = visual_tau(model, sk.run(model, others.prompts, [sk.SinkDims(dims)]))
    arms = {"plain": []}
    for part in (0.6, 0.9):
        for name, rho in (("selected heads", 0.5), ("every head", 0.0)):
            arms[f"{name}, {part:g} moved"] = [
                sk.Redistribute(part, rho=rho, tau=tau, dims=dims, min_image_mass=0.2 if rho else 0.0)
            ]
    return join_arms({name: answer_score(model, test, edits) for name, edits in arms.items()})


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw, and state what was found on one model."""
    ds = study.reading("scores", lambda: measured(model, 12 if study.quick else 64 if is_large(model) else 160))
    value = change_bars(study, ds, "selection", "With a choice and without")
    for part in ("0.6", "0.9"):
        words, agrees = compare_arms(value, f"every head, {part} moved", f"selected heads, {part} moved")
        right = {str(arm): float(ds["correct"].sel(arm=arm).mean()) for arm in ds["arm"].values}
        study.claim(
            "Table 4", f"Without the selection of heads the score falls, {part} moved", paper="collapses to 0",
            found=f"{words}; right answers " + ", ".join(f"{name} {share:.2f}" for name, share in right.items()),
            agrees=agrees,
        )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="kang2025", model=VISUAL_SINK_MODELS) as study:
        study.for_each(judge)
