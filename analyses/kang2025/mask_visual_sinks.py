"""Does masking visual sinks hurt less than masking as many random or relevant visual tokens?

Paper: Kang et al. 2025 (arXiv 2503.03321), figure 3b (4a of the submission). Claim: the score stays when visual sinks
may not be read, and falls with as many random visual tokens. Cost: 26 passes over 96 prompts, a minute or two on the
small model; 5 over 240 on ``zoo:vlm-smol-sinks``, 20 minutes. Sinks are the visual tokens that pass tau at the input of
the layer where most do, which other prompts decide, and prompts without one are left out. Different here: where fewer
than one a picture passes, the axis is a number of tokens instead, those with the highest phi first (half the depth), so
the comparison also exists there; random tokens are drawn once for all layers, two or three draws (a reader noted that
redrawing by layer favours the sinks); relevant tokens are those that show the shape the question is about. Rows after
the picture may not read the masked keys, before the softmax.

    python analyses/kang2025/mask_visual_sinks.py --model zoo:vlm-smol-sinks
"""

from __future__ import annotations

import xarray as xr

import sinkscope as sk
from sinkscope import metrics
from sinkscope.analysis import VISION_LANGUAGE_MODELS, Study, describe_difference, has_sign, is_large
from sinkscope.analysis.masking import ARMS, NOTHING, costs_nothing, masking_damage

MASKED, COUNTS = 6, (6, 24, 1, 3, 12)
"""Number of masked tokens that is judged, and those that are tried, the most telling first: a large model tries one."""


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw, and state what was found on one model."""
    counts, draws = (list(COUNTS[:1]), 2) if is_large(model) or study.quick else (list(COUNTS), 3)
    ds = study.reading("damage", lambda: masking_damage(model, 12 if study.quick else 240, counts, draws))
    says = "visual tokens that rows after the picture may not read; random: mean of the draws; 95 % intervals"
    for name, label in (("correct", "share of right answers"), ("log_probability", "log probability [nat]")):
        values = ds[name].assign_attrs(long_name=label)
        spread = metrics.compare(values, to=xr.zeros_like(values), over="prompt")
        limits = (spread["low"], spread["high"])
        drawn = sk.plot.described(values.mean("prompt", keep_attrs=True), ds, says)
        axes = sk.plot.masking_curve(drawn, interval=limits, title="Masking visual tokens")
        study.figure(axes, f"masking_{name}", source=ds, says=says)

    tried = ds["masked"].values[1:]
    count = MASKED if MASKED in tried else float(tried[0])
    at = ds["log_probability"].sel(masked=count)
    loss = {name: ds["log_probability"].sel(masked=0, arm=name) - at.sel(arm=name) for name in ARMS}
    threshold = f"tau = {ds.attrs['tau']:.3g}, {ds.attrs['tau_source']}"
    passing = f"{float(ds['passing'].mean()):.1f} visual tokens a prompt pass {threshold}, at the input of layer "
    passing += str(ds.attrs["layer"])
    for other in ("random", "relevant"):
        words, found = describe_difference(loss["highest phi"], loss[other])
        study.claim(
            "Fig. 3b", f"Masking the visual tokens with the highest phi costs less than masking {other} ones",
            paper="no cost against a clear one",
            found=f"{count:.3g} tokens: loss of log probability, highest phi minus {other}, {words} ({passing})",
            agrees=has_sign(found, -1),
        )  # fmt: skip
    right = ds["correct"].mean("prompt")
    words, found = describe_difference(loss["highest phi"])
    base, after = (float(right.sel(masked=m, arm="highest phi")) for m in (0, count))
    relevant = float(loss["relevant"].mean())
    little = costs_nothing(float(found["low"]), float(found["high"]), relevant)
    study.claim(
        "Fig. 3b", "Masking visual sinks costs nothing", paper="flat line",
        found=f"{count:.3g} tokens: accuracy {base:.3f} to {after:.3f}, log probability lost {words}; nothing is under "
        f"{NOTHING * relevant:+.3f}, a tenth of what relevant tokens cost ({passing})",
        agrees=None if float(ds["passing"].mean()) < 1 else little,
    )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="kang2025", model=VISION_LANGUAGE_MODELS) as study:
        study.for_each(judge)
