"""Sink rate by position, and how the number of heads over the threshold depends on threshold and length.

Paper: Gu et al. 2025, section 3 and figure 3. Claims: the sink stands at the first position, next to no head has one
elsewhere; the metric at threshold 0.3 depends little on T. That higher thresholds count fewer heads is arithmetic, and
is drawn but not claimed.
Cost: one pass per length, seconds to two minutes per model.
Different here: positions up to T / 2 only, for a late key is seen by few queries and its own row dominates; a head that
looks at itself is no sink at the last position. The paper's set of thresholds is not known: 0.2 to 0.5 are drawn.
"""

import warnings

import matplotlib.pyplot as plt
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study, with_intervals

EPSILONS = (0.2, 0.3, 0.4, 0.5)


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw and judge one model."""
    limit = model.context_length or 256
    lengths = [t for t in (16, 32, 64, 128, 256) if t <= limit and (t <= 64 or not study.quick)]
    longest = study.texts("prose", n=32, tokens=lengths[-1])
    rows, mass = [], []
    for length in lengths:
        short = sk.Prompts.from_ids([ids[:length] for ids in longest.ids], model)
        ds = study.run(short, [sk.KeyMass()])
        with warnings.catch_warnings():
            # At T = 16 even attention comes near the lowest thresholds; that is part of what is drawn.
            warnings.simplefilter("ignore", sk.errors.SinkscopeWarning)
            rates = [sk.metrics.sink_rate(ds, epsilon, over=("layer", "head")) for epsilon in EPSILONS]
        rows.append(xr.concat(rates, dim=xr.Variable("threshold", list(EPSILONS))))
        mass.append(ds)
    rate = xr.concat(rows, dim=xr.Variable("tokens T", lengths), combine_attrs="override")
    table = with_intervals(rate)
    middle = mass[lengths.index(64)]
    where = sk.metrics.sink_rate(middle, position=list(range(33)), over=("layer", "head"))
    by_position = with_intervals(where)

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.8))
    shown = by_position["difference"].assign_attrs(long_name="sink rate", units="share of heads")
    limits = (by_position["low"], by_position["high"])
    sk.plot.sweep_curve(shown, x="key", interval=limits, reference=None, title="By position, T = 64", ax=left)
    left.set_xlabel("position of the key")
    shown = table["difference"].assign_attrs(long_name="sink rate", units="share of heads")
    limits = (table["low"], table["high"])
    sk.plot.sweep_curve(shown, x="tokens T", interval=limits, reference=None, title="First token, by length", ax=right)
    right.set_xscale("log", base=2)
    right.set_xticks(lengths, [str(t) for t in lengths])
    for axes in (left, right):
        axes.set_ylim(bottom=0)
    study.figure(
        figure, "position_and_length", source=middle,
        says="share of heads with mean attention to the key above the threshold; bands: 95 % intervals over prompts",
    )  # fmt: skip

    heads = middle.sizes["layer"] * middle.sizes["head"]
    rest = by_position["difference"][1:]
    most = float(rest.max())
    first = Estimate.of(by_position.isel(key=0), ".1%")
    study.claim(
        "Section 3.1", "The sink stands at the first position", paper="Sink_1 far above Sink_k, k > 1 (picture)",
        number=first, agrees=first.above(5 * most) if first.value > 0.02 else "next to no head has a sink",
        found=f"of {heads} heads at position 0, at most {most:.1%} at any of positions 1 to 32",
    )  # fmt: skip
    ends = ", ".join(f"{Estimate.of(table.sel(threshold=0.3), '.1%', **{'tokens T': t})} at T = {t}" for t in lengths)
    at = [t for t in lengths if t >= 64]
    apart = rate.sel({"threshold": 0.3, "tokens T": at[0]}) - rate.sel({"threshold": 0.3, "tokens T": at[-1]})
    change = Estimate.mean(apart, "+.1%")
    study.claim(
        "Fig. 3", "At threshold 0.3 the sink rate depends little on T (by less than a fifth from T = 64 on)",
        paper="picture", number=change, found=f"T = {at[0]} less T = {at[-1]}; {ends}",
        agrees="one length only" if len(at) < 2 else _little(change, first.value / 5),
    )  # fmt: skip


def _little(change: Estimate, bound: float) -> bool | str:
    """Whether a change is smaller than a bound either way."""
    if -bound < change.low and change.high < bound:
        return True
    return False if change.low >= bound or change.high <= -bound else change.above(bound)


if __name__ == "__main__":
    with Study(__doc__, paper="gu2025", model=LANGUAGE_MODELS) as study:
        study.for_each(judge)
