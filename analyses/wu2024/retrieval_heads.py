"""Retrieval heads: which heads look at what the model copies, and what is left of copying without them.

Paper: Wu et al. 2024 (arXiv 2404.15574), the map of scores, the share of heads above .1, and needle accuracy by number
of masked heads. Claims: few heads retrieve (3 to 6 % score .1 or more); without them the needle is lost, without as
many others it is not. Cost: one generation, and one pass per set of heads: a minute or two per language model.
Different here: the needle is six random tokens hidden in prose and asked for by its first one, so that small models can
be asked at all; a head's output is set to zero, the released code makes its attention uniform; heads are chosen on
other needles than they are judged on. The interval of the share of heads draws the copied needles anew.

    python analyses/wu2024/retrieval_heads.py --model smollm2-135m gemma3-270m zoo:lm-python
"""

from __future__ import annotations

import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study, describe_difference, has_sign
from sinkscope.analysis.texts import token_rows
from sinkscope.methods.retrieval import THRESHOLD, knock_out, retrieval_heads
from sinkscope.tasks.needles import needle_tests

FEW = 0.1
"""Share of the heads that is still few."""


def measured(model: sk.Model, n: int, draws: int) -> xr.Dataset:
    """Scores on the first half of the needles, and what is copied without heads on the second."""
    hay = token_rows(model, "prose", 2 * n, 96, 5)
    tests = needle_tests(model, 2 * n, haystacks=[row[2:] for row in hay], seed=1)
    first, second = tests.subset(range(0, 2 * n, 2)), tests.subset(range(1, 2 * n, 2))
    found = retrieval_heads(model, first)
    total = found.sizes["layer"] * found.sizes["head"]
    counts = sorted({1, 2, total // 40, total // 20, total // 10} - {0})
    lost = knock_out(model, second, found["score"], counts, draws=draws)
    scores = found.drop_dims("prompt").assign_attrs(found.attrs)
    by_test = found["score_by_test"].rename(prompt="test").drop_vars("test", errors="ignore")
    return scores.assign(
        retrieval=lost["retrieval"], random=lost["random"], recall=("test", found["recall"].values), by_test=by_test
    )


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw, and state what was found."""
    import matplotlib.pyplot as plt

    ds = study.reading("needles", lambda: measured(model, 6 if study.quick else 24, 2 if study.quick else 5))
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    says = f"share of the needle a head looked at while it was copied; n = {ds.attrs['n']} needles copied"
    score = ds["score"].rename("retrieval score").assign_attrs(units="1", long_name="retrieval score")
    sk.plot.sink_map(sk.plot.described(score, ds, says), title="Retrieval score", label="retrieval score", ax=left)
    removed = ds["removed"].values
    right.plot(removed, ds["retrieval"].mean("prompt"), marker="o", label="strongest heads gone")
    for draw in ds["draw"].values:
        right.plot(removed, ds["random"].sel(draw=draw).mean("prompt"), color="0.6", linewidth=1,
                   label="as many others" if draw == 0 else None)  # fmt: skip
    right.set(
        xlabel="heads set to zero", ylabel="share of the needle", ylim=(-0.03, 1.03), title="Copying without heads"
    )
    right.legend()
    study.figure(figure, "retrieval_heads", source=ds, says=says)

    high, total = int((ds["score"] >= THRESHOLD).sum()), ds["score"].size
    rows = ds["by_test"].transpose("test", "layer", "head").values
    rows = rows[np.isfinite(rows).all((1, 2))]
    few = None
    if len(rows):
        few = Estimate.resampled(lambda drawn: (rows[drawn].mean(0) >= THRESHOLD).mean(), len(rows), ".1%")
    copied = f"{ds.attrs['n']} of {ds.sizes['test']} needles copied"
    study.claim(
        "map of scores", "Few heads retrieve", paper="3.2 % score .1 or more in Llama-2-7B, 4.2 % in Mistral-7B",
        number=few, found=f"{high} of {total} heads, the best {float(ds['score'].max()):.2f}; {copied}",
        agrees="the model copies no needle" if few is None else few.below(FEW) if high else False,
    )  # fmt: skip
    most = int(removed[-1])
    lost = ds["retrieval"].sel(removed=most) - ds["random"].sel(removed=most).mean("draw")
    words, found = describe_difference(lost)
    verdict = has_sign(found, -1)
    study.claim(
        "needle accuracy", "Without retrieval heads less is copied than without as many others",
        paper="curve falls, that of random heads hardly",
        found=f"{most} heads gone: {float(ds['retrieval'].sel(removed=most).mean()):.2f} of the needle left "
        f"({float(ds['retrieval'].sel(removed=0).mean()):.2f} with all), difference to random heads {words}",
        agrees=(verdict if verdict is not None else "the interval holds 0") if ds.attrs["n"] else "no heads were found",
    )  # fmt: skip


def main() -> None:
    """Run for each model."""
    with Study(__doc__, paper="wu2024", model=LANGUAGE_MODELS) as study:
        study.for_each(judge)


if __name__ == "__main__":
    main()
