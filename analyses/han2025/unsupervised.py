"""Choosing gamma without labels, by the entropy of the answer.

Paper: Han et al. 2025, unsupervised mode. Claim: the gamma with the lowest mean entropy of the next token does nearly
as well as the one with the best labelled accuracy.
Cost: one head profile and a gamma grid per mode; two minutes on the zoo model.
Different here: both modes choose heads and gamma on calibration questions and are tested on others (the paper searches
over the queries of the test batch). Supervised by the loss of the right option. Beside the entropy stands the share of
the most frequent answer, as a low entropy may come from always saying the same. Tasks made of held-out source code for
models of the zoo (SST-2, BoolQ and LogiQA for others).
"""

import matplotlib.pyplot as plt
import xarray as xr

import sinkscope as sk
from sinkscope import tasks
from sinkscope.analysis import Study, with_intervals
from sinkscope.methods.zerotuning import ZeroTuningSettings, zerotune

PANELS = ("sst2", "boolq", "logiqa")
MODES = {"loss": "with labels", "entropy": "without labels"}


def measure(model: sk.Model, name: str, mode: str, quick: bool) -> xr.Dataset:
    """Everything ZeroTuning chose and found in one mode."""
    task = tasks.load(name, calibration=4 if quick else 40, test=8 if quick else 120)
    settings = ZeroTuningSettings(mode=mode, batch_size=16, **({"gammas": (0.3, 1.0, 3.0)} if quick else {}))
    result = zerotune(model, task, settings)
    return result.to_dataset().assign_attrs(gamma=result.gamma)


def main() -> None:
    """Choose both ways on each task, draw what the choice saw, compare what it gained."""
    with Study(__doc__, paper="han2025") as study:
        names = tasks.suited(study.model, *PANELS)
        names = names[-1:] if study.quick else names[-3:]
        figure, axes = plt.subplots(2, len(names), figsize=(4.4 * len(names), 7), squeeze=False)
        gains: dict[str, list[xr.DataArray]] = {mode: [] for mode in MODES}
        chosen, collapsed = [], []
        for (top, bottom), name in zip(axes.T, names, strict=True):
            both = {
                mode: study.reading(f"{mode}_{name}", lambda n=name, m=mode: measure(study.model, n, m, study.quick))
                for mode in MODES
            }
            free = both["entropy"]
            entropy = free["calibration_entropy"].rename("entropy").assign_attrs(units="nat", long_name="entropy")
            sk.plot.sweep_curve(entropy, title=name, ax=top)
            kinds = xr.Variable("measure", ["accuracy", "exact match", "most frequent answer"])
            shares = xr.concat([free[f"calibration_{k}"] for k in ("accuracy", "exact", "collapse")], kinds)
            sk.plot.sweep_curve(shares.assign_attrs(units="1", long_name="share of the questions"), ax=bottom)
            bottom.set_ylim(0, 1.05)
            if name != names[0]:
                bottom.get_legend().remove()
            for panel in (top, bottom):
                panel.set_xscale("log")
                panel.axvline(free.attrs["gamma"], color="black")
                panel.set_xticks([0.3, 1, 3], ["0.3", "1", "3"])
                panel.minorticks_off()
            for mode, ds in both.items():
                gain = ds["log_probability"].sel(edit="zerotuning") - ds["log_probability"].sel(edit="none")
                gains[mode].append(gain.reset_coords(drop=True))
            chosen.append(f"{name} {both['loss'].attrs['gamma']:g} and {free.attrs['gamma']:g}")
            balance = free["calibration_collapse"]
            collapsed.append(float(balance.sel(gamma=free.attrs["gamma"]) - balance.sel(gamma=1.0)))
        says = "entropy of the answer and shares of calibration questions over gamma; line: the gamma chosen by entropy"
        study.figure(figure, "unsupervised", source=free, says=says)

        words, sure = {}, []
        for mode, parts in gains.items():
            cells = []
            for name, gain in zip(names, parts, strict=True):
                found = with_intervals(gain)
                low, mid, high = (float(found[k]) for k in ("low", "difference", "high"))
                cells.append(f"{name} {mid:+.3f} [{low:+.3f}, {high:+.3f}]")
                sure += [True if low > 0 else False if high < 0 else None] if mode == "entropy" else []
            words[mode] = ", ".join(cells)
        study.claim(
            "unsupervised", "Entropy finds a gamma that helps, as labels do", paper="nearly the supervised accuracy",
            found=f"change of the log probability of the right option in nat, n = {free.sizes['prompt']} test "
            f"questions each: without labels {words['entropy']}; with labels {words['loss']}; gamma with and without "
            f"labels: {'; '.join(chosen)}; the most frequent answer's share rises by at most {max(collapsed):.2f}",
            agrees=False if False in sure else None if None in sure else True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
