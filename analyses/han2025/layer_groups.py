"""In which layers does scaling the first token move accuracy?

Paper: Han et al. 2025, figure 4. Accuracy against gamma with the first token scaled in shallow (1 to 10 of 32), middle
(11 to 21), deep (22 to 31) or all layers. Claim: shallow and middle layers respond most, deep layers little.
Cost: 24 passes per question, each from the first layer of its group on; two minutes on the zoo model.
Different here: thirds of the layers, the first layer included; tasks made of held-out source code for models of the zoo
(SST-2, BoolQ and LogiQA for others). The size of the effect is the mean absolute change of the log probability of the
right option, paired over questions.
"""

from functools import partial

import numpy as np
import panels
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import Study
from sinkscope.engine.run import find_tower


def groups_of(model: sk.Model) -> dict[str, list[int]]:
    """Thirds of the layers, and all."""
    layers = [site.layer for site in find_tower(model, None).attention]
    thirds = [[int(layer) for layer in part] for part in np.array_split(layers, 3)]
    return dict(zip(("shallow", "middle", "deep", "all"), [*thirds, layers], strict=True))


def measure(model: sk.Model, name: str, n: int) -> xr.Dataset:
    """Scores (gamma layers prompt) of a task's calibration questions."""
    groups = groups_of(model)
    grid = sk.grid(sk.ScaleKeys(1.0), gamma=panels.GAMMAS, layers=list(groups.values()))
    ds = panels.evaluated(model, name, n, grid)
    return ds.rename(edit_layer="layers").assign_coords(layers=list(groups))


def main() -> None:
    """Scale each group on each task, draw the curves, compare the sizes of the effects."""
    with Study(__doc__, paper="han2025") as study:
        figure, ds, size, names = panels.draw(study, "layer_groups", partial(measure, study.model), ("layers", "all"))
        said = ", ".join(f"{name} {layers[0]} to {layers[-1]}" for name, layers in groups_of(study.model).items())
        says = f"exact match, first token scaled in some layers ({said}); band: 95 % Wilson interval, all layers"
        study.figure(figure, "layer_groups", source=ds, says=says)

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
