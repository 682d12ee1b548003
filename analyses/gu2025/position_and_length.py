"""Sink rate by position, and how the number of heads over the threshold depends on threshold and length.

Paper: Gu et al. 2025, section 3 and figure 3. Claims: the sink stands at the first position, next to no head has one
elsewhere; the metric at threshold 0.3 depends little on T, higher thresholds count fewer heads.
Cost: one pass per length, seconds.
Different here: positions up to T / 2 only, for a late key is seen by few queries and its own row dominates; a head that
looks at itself is no sink at the last position. The paper's set of thresholds is not known: 0.2 to 0.5 are drawn.
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import Study

EPSILONS = (0.2, 0.3, 0.4, 0.5)

with Study(__doc__, paper="gu2025") as study:
    limit = study.model.context_length or 256
    lengths = [t for t in (16, 32, 64, 128, 256) if t <= limit and (t <= 64 or not study.quick)]
    longest = study.texts("prose", n=32, tokens=lengths[-1])
    rows, mass = [], []
    for length in lengths:
        short = sk.Prompts.from_ids([ids[:length] for ids in longest.ids], study.model)
        ds = study.reading(f"mass-{length}", lambda p=short: sk.run(study.model, p, [sk.KeyMass()], batch_size=8))
        rates = [sk.metrics.sink_rate(ds, epsilon, over=("layer", "head")) for epsilon in EPSILONS]
        rows.append(xr.concat(rates, dim=xr.Variable("threshold", list(EPSILONS))))
        mass.append(ds)
    rate = xr.concat(rows, dim=xr.Variable("tokens T", lengths), combine_attrs="override")
    table = sk.metrics.compare(rate, to=rate * 0)

    middle = mass[lengths.index(64)]
    where = sk.metrics.sink_rate(middle, position=list(range(33)), over=("layer", "head"))
    by_position = sk.metrics.compare(where, to=where * 0)

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.8))
    shown = by_position["difference"].assign_attrs(long_name="sink rate", units="share of heads")
    limits = (by_position["low"], by_position["high"])
    sk.plot.sweep_curve(shown, x="key", interval=limits, reference=None, title="By position, T = 64", ax=left)
    left.set_xlabel("position of the key")
    shown = table["difference"].assign_attrs(long_name="sink rate", units="share of heads")
    sk.plot.sweep_curve(
        shown,
        x="tokens T",
        interval=(table["low"], table["high"]),
        reference=None,
        title="First token, by length",
        ax=right,
    )
    right.set_xscale("log", base=2)
    right.set_xticks(lengths, [str(t) for t in lengths])
    for axes in (left, right):
        axes.set_ylim(bottom=0)
    study.figure(
        figure, "position_and_length", source=middle,
        says="share of heads with mean attention to the key above the threshold; bands: 95 % intervals over prompts",
    )  # fmt: skip

    n, heads = int(by_position["n"].max()), middle.sizes["layer"] * middle.sizes["head"]
    first, rest = float(by_position["difference"][0]), by_position["difference"][1:]
    study.claim(
        "Section 3.1", "The sink stands at the first position", paper="Sink_1 far above Sink_k, k > 1 (picture)",
        found=f"{first:.1%} of {heads} heads at position 0 [{float(limits[0][0]):.1%}, {float(limits[1][0]):.1%}], at "
        f"most {float(rest.max()):.1%} at any of positions 1 to 32 (n = {n} prompts)",
        agrees=float(limits[0][0]) > 5 * float(rest.max()),
    )  # fmt: skip
    at = table["difference"].sel(threshold=0.3)
    ends = ", ".join(f"{float(at.sel({'tokens T': t})):.1%} at T = {t}" for t in lengths)
    study.claim(
        "Fig. 3", "At threshold 0.3 the sink rate depends little on T", paper="picture",
        found=f"{ends} (n = {n} prompts)",
        agrees=float(at.max() - at.min()) < 0.5 * float(at.max()),
    )  # fmt: skip
    at = table["difference"].sel({"tokens T": 64})
    values = ", ".join(f"{float(at.sel(threshold=e)):.1%} at {e}" for e in EPSILONS)
    study.claim(
        "Fig. 3", "Higher thresholds count fewer heads", paper="picture", found=f"T = 64: {values}",
        agrees=bool(np.all(np.diff(at.values) <= 0)) and float(at[0]) > float(at[-1]),
    )  # fmt: skip
