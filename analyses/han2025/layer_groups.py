"""In which layers does scaling the first token move accuracy?

Paper: Han et al. 2025, figure 4. Accuracy against gamma with the first token scaled in shallow (1 to 10 of 32), middle
(11 to 21), deep (22 to 31) or all layers. Claim: shallow and middle layers respond most, deep layers little.
Control: a random token of each question in all layers, three draws. Cost: 28 passes per question, each from the first
layer of its group on; some minutes per language model; ``scaled_token.py`` shares 16 of them.
Different here: thirds of the layers, the first layer included; without a network and for models of the zoo, tasks made
of held-out source code (else SST-2, BoolQ and LogiQA), of which a large model is asked fewer questions. The size of the
effect is the mean absolute change of the log probability of the right option, paired over questions.
"""

from functools import partial

import numpy as np
import panels

import sinkscope as sk
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study
from sinkscope.engine.run import find_tower


def groups_of(model: sk.Model) -> dict[str, list[int]]:
    """Thirds of the layers, and all."""
    layers = [site.layer for site in find_tower(model, None).attention]
    thirds = [[int(layer) for layer in part] for part in np.array_split(layers, 3)]
    return dict(zip(("shallow", "middle", "deep", "all"), [*thirds, layers], strict=True))


def judge(study: Study, model: sk.Model) -> None:
    """Scale each group on each task, draw the curves, compare the sizes of the effects."""
    # Without layers for all of them: as scaled_token.py has it, which then finds it measured.
    arms = {name: {} if name == "all" else {"layers": layers} for name, layers in groups_of(model).items()}
    measure = partial(panels.evaluated, study, arms=arms)
    figure, ds, size, names = panels.draw(study, "layer_groups", measure, ("layers", "all"))
    said = ", ".join(f"{name} {layers[0]} to {layers[-1]}" for name, layers in groups_of(model).items())
    says = f"exact match, first token scaled in some layers ({said}); band: 95 % Wilson interval, all layers"
    study.figure(figure, "layer_groups", source=ds, says=f"{says}; grey: range of {panels.RANDOM}s, all layers")

    for group in ("shallow", "middle"):
        more = Estimate.paired(size.sel(layers=group, drop=True), size.sel(layers="deep", drop=True), "+.3f", "nat")
        study.claim(
            "Fig. 4", f"The {group} layers respond more to scaling the first token than the deep ones", number=more,
            paper="deep layers (22 to 31 of 32) change accuracy little", agrees=more.above(0.0),
            found=f"log probability of the right option, {group} {float(size.sel(layers=group).mean()):.3f}, less deep "
            f"{float(size.sel(layers='deep').mean()):.3f}; mean over {len(panels.GAMMAS) - 1} gammas, questions of "
            f"{', '.join(names)}",
        )  # fmt: skip
    panels.claim_control(study, "Fig. 4", size.sel(layers="all", drop=True), size, "layers")


if __name__ == "__main__":
    with Study(__doc__, paper="han2025", model=LANGUAGE_MODELS) as study:
        study.for_each(judge)
