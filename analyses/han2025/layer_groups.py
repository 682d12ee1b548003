"""In which layers does scaling the first token move accuracy?

Paper: Han et al. 2025, figure 4. Accuracy against gamma with the first token scaled in shallow (1 to 10 of 32), middle
(11 to 21), deep (22 to 31) or all layers. Claim: shallow and middle layers respond most, deep layers little.
Cost: 24 passes per question, each from the first layer of its group on; two minutes on the zoo model.
Different here: thirds of the layers, the first layer included; tasks made of held-out source code for models of the zoo
(SST-2, BoolQ and LogiQA for others). The size of the effect is the mean absolute change of the log probability of the
right option, paired over questions.
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope import tasks
from sinkscope.analysis import Study
from sinkscope.runner import find_tower

GAMMAS = (0.1, 0.3, 0.6, 1.0, 2.0, 6.0)
PANELS = ("sst2", "boolq", "logiqa")


def groups_of(model: sk.Model) -> dict[str, list[int]]:
    """Thirds of the layers, and all."""
    layers = [site.layer for site in find_tower(model, None).attention]
    thirds = [[int(layer) for layer in part] for part in np.array_split(layers, 3)]
    return dict(zip(("shallow", "middle", "deep", "all"), [*thirds, layers], strict=True))


def measure(model: sk.Model, name: str, n: int) -> xr.Dataset:
    """Scores (gamma layers prompt) of a task's calibration questions."""
    questions = tasks.Questions.of(tasks.load(name, calibration=n, test=1).calibration, model)
    groups = groups_of(model)
    grid = sk.grid(sk.ScaleKeys(1.0), gamma=GAMMAS, layers=list(groups.values()))
    ds = tasks.evaluate(model, questions, grid, batch_size=16)
    return ds.rename(edit_layer="layers").assign_coords(layers=list(groups))


def main() -> None:
    """Scale each group on each task, draw the curves, compare the sizes of the effects."""
    with Study(__doc__, paper="han2025") as study:
        names = tasks.suited(study.model, *PANELS)
        names = ("copy",) if study.quick else names[-3:]
        figure, axes = plt.subplots(1, len(names), figsize=(4.4 * len(names), 4), squeeze=False, sharey=True)
        sizes = []
        for panel, name in zip(axes[0], names, strict=True):
            n = 8 if study.quick else 80
            ds = study.reading(f"layer_groups_{name}", lambda name=name, n=n: measure(study.model, name, n))
            share = tasks.rate(ds["exact"])
            curve = share["value"].rename("accuracy").assign_attrs(long_name="exact match")
            band = tuple(share[edge].where(share["layers"] == "all") for edge in ("low", "high"))
            sk.plot.sweep_curve(curve, interval=band, title=name, ax=panel)
            if panel is not axes[0][-1]:
                panel.get_legend().remove()
            panel.set_xscale("log")
            panel.set_xticks(GAMMAS, [f"{gamma:g}" for gamma in GAMMAS])
            panel.minorticks_off()
            change = abs(ds["log_probability"] - ds["log_probability"].sel(gamma=1.0)).drop_sel(gamma=1.0)
            sizes.append(change.mean("gamma").assign_coords(prompt=np.arange(ds.sizes["prompt"]) + 1000 * len(sizes)))
        said = ", ".join(f"{name} {layers[0]} to {layers[-1]}" for name, layers in groups_of(study.model).items())
        says = f"exact match, first token scaled in some layers ({said}); band: 95 % Wilson interval, all layers"
        study.figure(figure, "layer_groups", source=ds, says=says)

        size = xr.concat(sizes, "prompt")
        tested = sk.metrics.compare(size.sel(layers=["shallow", "middle"]), to=size.sel(layers="deep", drop=True))
        words, verdicts = [], []
        for group in ("shallow", "middle"):
            low, mid, high = (float(tested[k].sel(layers=group)) for k in ("low", "difference", "high"))
            words.append(f"{group} {float(size.sel(layers=group).mean()):.3f}, {mid:+.3f} [{low:+.3f}, {high:+.3f}]")
            verdicts.append(True if low > 0 else False if high < 0 else None)
        study.claim(
            "Fig. 4", "Shallow and middle layers respond more to scaling the first token than deep ones",
            paper="deep layers (22 to 31 of 32) change accuracy little",
            found=f"log probability moves by {float(size.sel(layers='deep').mean()):.3f} nat for deep layers; against "
            f"that {'; '.join(words)}; n = {size.sizes['prompt']} questions of {', '.join(names)}",
            agrees=None if None in verdicts else all(verdicts),
        )  # fmt: skip


if __name__ == "__main__":
    main()
