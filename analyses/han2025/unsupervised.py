"""Choosing gamma without labels, by the entropy of the answer.

Paper: Han et al. 2025, unsupervised mode. Claim: the gamma with the lowest mean entropy of the next token does nearly
as well as the one with the best labelled accuracy.
Cost: one head profile and a gamma grid per mode; two minutes on the zoo model and on a language model, which is asked
less.
Different here: both modes choose heads and gamma on calibration questions and are tested on others (the paper searches
over the queries of the test batch). Supervised by the loss of the right option. Beside the entropy stands the share of
the most frequent answer, as a low entropy may come from always saying the same. Tasks are made here: of held-out source
code for models of the zoo, of word lists and of source code for others, whose heads come from one backward pass per
question (of the loss or of the entropy) and who choose among three values of gamma.
"""

from dataclasses import replace

import matplotlib.pyplot as plt
import xarray as xr
from matplotlib.axes import Axes

import sinkscope as sk
from sinkscope import tasks
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study, ask, is_large, together
from sinkscope.methods.zerotuning import ZeroTuningSettings, zerotune
from sinkscope.plot.naming import drop_names

PANELS = ("sst2", "boolq", "logiqa")
MODES = {"loss": "with labels", "entropy": "without labels"}


def suited(study: Study, model: sk.Model) -> tuple[str, ...]:
    """The tasks that a model is asked."""
    if is_large(model) and not study.quick:
        return ("sentiment", "copy")
    return tasks.suited(model, *PANELS)[-1 if study.quick else -3 :]


def measure(model: sk.Model, name: str, mode: str, quick: bool) -> xr.Dataset:
    """Everything ZeroTuning chose and found in one mode."""
    large = is_large(model)
    settings = ZeroTuningSettings(mode=mode, batch_size=16, **({"gammas": (0.3, 1.0, 3.0)} if quick or large else {}))
    if large:
        settings = replace(settings, profile_by="gradient", share=0.4)
    questions, asked = (4, 8) if quick else (12, 32) if large else (40, 120)
    result = zerotune(model, ask(model, name, questions, asked), settings)
    return result.to_dataset().assign_attrs(gamma=result.gamma)


def draw(free: xr.Dataset, name: str, left: Axes, right: Axes) -> None:
    """What the choice without labels saw: entropy, and shares of the questions, over gamma."""
    entropy = free["calibration_entropy"].rename("entropy").assign_attrs(units="nat", long_name="entropy")
    sk.plot.sweep_curve(entropy, title=name, ax=left)
    kinds = xr.Variable("measure", ["accuracy", "exact match", "most frequent answer"])
    shares = xr.concat([free[f"calibration_{k}"] for k in ("accuracy", "exact", "collapse")], kinds)
    sk.plot.sweep_curve(shares.assign_attrs(units="1", long_name="share of the questions"), ax=right)
    right.set_ylim(0, 1.05)
    for panel in (left, right):
        panel.axvline(free.attrs["gamma"], color="black")
        panel.set_xticks([0.3, 1, 3], ["0.3", "1", "3"])
        panel.minorticks_off()


def judge(study: Study, model: sk.Model) -> None:
    """Choose both ways on each task, draw what the choice saw, compare what it gained."""
    names = suited(study, model)
    figure, axes = plt.subplots(len(names), 2, figsize=(9.2, max(3.8, 3.2 * len(names))), squeeze=False)
    gains: dict[str, list[Estimate]] = {mode: [] for mode in MODES}
    least, chosen, collapsed, free = [], [], [], xr.Dataset()
    for (left, right), name in zip(axes, names, strict=True):
        both = {
            mode: study.reading(f"{mode}_{name}", lambda n=name, m=mode: measure(model, n, m, study.quick))
            for mode in MODES
        }
        free = both["entropy"]
        draw(free, name, left, right)
        if name != names[0]:
            drop_names(right)
        for mode, ds in both.items():
            gain = ds["log_probability"].sel(edit="zerotuning") - ds["log_probability"].sel(edit="none")
            gains[mode].append(Estimate.mean(gain, "+.3f"))
            least += [float(sk.metrics.smallest_effect(gain))] if mode == "entropy" and gain.any() else []
        chosen.append(f"{name} {both['loss'].attrs['gamma']:g} and {free.attrs['gamma']:g}")
        balance = free["calibration_collapse"]
        collapsed.append(float(balance.sel(gamma=free.attrs["gamma"]) - balance.sel(gamma=1.0)))
    says = "entropy of the answer and shares of calibration questions over gamma; line: the gamma chosen by entropy"
    study.figure(figure, "unsupervised", source=free, says=says)

    words = {
        mode: ", ".join(f"{name} {gain}" for name, gain in zip(names, found, strict=True))
        for mode, found in gains.items()
    }
    power = f"effects from {max(least):.2g} nat could be found" if least else "nothing changes"
    study.claim(
        "unsupervised", "Entropy finds a gamma that helps, as labels do", paper="nearly the supervised accuracy",
        found=f"change of the log probability of the right option in nat, n = {free.sizes['prompt']} test "
        f"questions each ({power}): without labels {words['entropy']}; with labels {words['loss']}; gamma with and "
        f"without labels: {'; '.join(chosen)}; the most frequent answer's share rises by at most {max(collapsed):.2f}",
        agrees=together([gain.above(0.0) if gain.value else "the chosen gamma is 1" for gain in gains["entropy"]]),
    )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="han2025", model=LANGUAGE_MODELS) as study:
        study.for_each(judge)
