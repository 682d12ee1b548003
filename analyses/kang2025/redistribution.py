"""VAR: giving the attention of sinks to the other visual tokens, on a task with calibration and test split.

Paper: Kang et al. 2025 (arXiv 2503.03321), tables 1 to 3 and figure 12. Claim: redistribution raises the score without
training. Cost: one pass per rho and set over 160 prompts, a minute on the zoo model. Different here: the task is the
zoo model's own (questions of colour, shape, place, number and presence about held-out pictures); rho is chosen on the
calibration half, which the test half never sees (reviewers criticised a rho per benchmark); scored by log probability
of the answer and by whether it comes first.

    python analyses/kang2025/redistribution.py --model zoo:vlm-smol-sinks
"""

from __future__ import annotations

import xarray as xr

import sinkscope as sk
from sinkscope import metrics
from sinkscope.analysis import VISUAL_SINK_MODELS, Study, describe_difference, has_sign, is_large, visual_tau
from sinkscope.methods.var import VarSettings, sink_dims_or_largest, var
from sinkscope.tasks.scene_questions import scene_questions

RHOS = (0.3, 0.5, 0.8, 0.9)
NAMES = {"correct": "right answers", "log_probability": "log probability"}


def measure(model: sk.Model, n: int) -> xr.Dataset:
    """Scores (setting prompt) of both halves in one dataset: variables end in ``_calibration`` and ``_test``."""
    shapes = scene_questions(model, n)
    calibration, test = shapes.examples.split(0.5, seed=0)
    dims, _ = sink_dims_or_largest(model, calibration.prompts)
    tau, _ = visual_tau(model, sk.run(model, calibration.prompts, [sk.SinkDims(dims)]))
    found = var(model, calibration, test, VarSettings(RHOS, dims=dims, tau=tau))
    names = {name: f"{name}_calibration" for name in NAMES}
    tried = found.calibration.drop_vars("prompt_hash", errors="ignore").rename(names)
    tried = tried.rename(setting="tried", prompt="calibrated")
    joined = xr.merge(
        [
            tried,
            found.scores.rename({name: f"{name}_test" for name in NAMES}).drop_vars("prompt_hash", errors="ignore"),
        ],
        combine_attrs="drop",
    )
    joined.attrs = sk.run(model, test.prompts.subset([0]), [sk.Logits()]).attrs
    joined.attrs |= {"edit_notes": found.notes or "none", "rho": float(found.edit.rho), "dims": str(list(dims))}
    return joined


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw, and state what was found on one model."""
    ds = study.reading("scores", lambda: measure(model, 24 if study.quick else 128 if is_large(model) else 320))
    tried = ds["log_probability_calibration"]
    gain = tried.drop_sel(tried="none") - tried.sel(tried="none", drop=True)
    spread = metrics.compare(gain, to=xr.zeros_like(gain), over="calibrated")
    says = "change of the log probability of the right answer on the calibration half, 95 % bootstrap interval"
    bars = spread["difference"].rename("change").assign_attrs(units="nat", long_name="change of log probability")
    bars = sk.plot.described(bars.rename(tried="edit"), ds, says)
    edges = tuple(spread[name].rename(tried="edit") for name in ("low", "high"))
    axes = sk.plot.effect_bars(bars, interval=edges, title="Redistribution by rho")
    study.figure(
        axes,
        "redistribution_by_rho",
        source=ds.isel(prompt=0, drop=True),
        says=f"{says}; n = {tried.sizes['calibrated']} prompts",
    )

    rho = f"rho = {ds.attrs['rho']:g}, chosen on {tried.sizes['calibrated']} other prompts"
    notes = "the edit acted" + ds.attrs["edit_notes"].rpartition(" acted")[2]
    for name, label in NAMES.items():
        edited, plain = (ds[f"{name}_test"].sel(setting=which, drop=True) for which in ("var", "none"))
        words, found = describe_difference(edited, plain, digits=4)
        study.claim(
            "Table 1", f"Redistribution raises the score ({label})", paper="+0.1 to +3 points by benchmark",
            found=f"{float(plain.mean()):.3f} to {float(edited.mean()):.3f}: {words}; {rho}; {notes}",
            agrees=has_sign(found),
        )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="kang2025", model=VISUAL_SINK_MODELS) as study:
        study.for_each(judge)
