"""When the sink emerges in training: sink rate, value drain, massive activation and loss along the optimiser's steps.

Paper: Gu et al. 2025, figure 4 (middle). Claim: the sink appears after the model has begun to learn, between 1k and 2k
of 20k steps, while the loss keeps falling.
Cost: none, the curves were measured while the zoo's language model trained; so there is no ``--model``.
Different here: language models of 1.5 million parameters on Python source. Variants are in ``variants.py`` and on the
zoo's page on emergence. One run, so no interval over runs.
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope import zoo
from sinkscope.analysis import Study

NAME = "lm-python"
PANELS = {
    "loss": "held-out loss [nat]",
    "alpha_max": "attention to the first token, strongest head",
    "sink_rate": "sink rate [share of heads]",
    "massive": "largest magnitude / median",
}


def curves(names: list[str]) -> xr.Dataset:
    """Curves of zoo models: variables over (model, step)."""
    parts = []
    for name in names:
        rows = zoo.curve(name)
        data = {key: ("step", np.array([row[key] for row in rows], dtype=float)) for key in PANELS}
        parts.append(xr.Dataset(data, coords={"step": [row["step"] for row in rows]}))
    return xr.concat(parts, dim=xr.Variable("model", names), join="outer")


def emergence(curve: xr.Dataset) -> int | None:
    """First step from which on the share of heads over the threshold is never zero again."""
    zero = np.flatnonzero(curve["sink_rate"].values == 0)
    after = curve["step"].values[zero[-1] + 1 :] if len(zero) else curve["step"].values
    return int(after[0]) if len(after) else None


def draw(study: Study, ds: xr.Dataset) -> None:
    """Four curves over the steps of training."""
    figure, axes = plt.subplots(2, 2, figsize=(9.2, 6.4))
    for ax, (key, label) in zip(axes.ravel(), PANELS.items(), strict=True):
        sk.plot.sweep_curve(ds[key].isel(model=0, drop=True), x="step", reference=None, title="", ax=ax)
        for line in ax.lines:
            line.set_marker("")
        ax.set(ylabel="", title=label)
        if key == "massive":
            ax.set_yscale("log")
    study.figure(
        figure, "training", source=ds["sink_rate"].assign_attrs(model_id=study.subject, n_prompts=64),
        says="measured on held-out text while training; sink rate: share of heads with mean attention to the first "
        "token above 0.3, T = 64",
    )  # fmt: skip


def main() -> None:
    """Draw the curves of the zoo's language model and judge when its sink appears."""
    with Study(__doc__, paper="gu2025", model=()) as study:
        study.subject = f"zoo:{NAME}"
        ds = curves([NAME])
        draw(study, ds)
        curve = ds.sel(model=NAME).dropna("step")
        step, steps = emergence(curve), int(curve["step"][-1])
        start, end = float(curve["loss"][0]), float(curve["loss"][-1])
        found, agrees = f"no head over 0.3 after {steps} steps", False
        if step is not None:
            then = float(curve["loss"].sel(step=step))
            learnt = (start - then) / (start - end)
            found = (
                f"zoo:{NAME}: there for good from step {step} of {steps} on, loss {then:.2f} nat of {start:.2f} to "
                f"{end:.2f} ({learnt:.0%} of the fall; n = 1 run)"
            )
            agrees = step > int(curve["step"][0]) and learnt > 0.5 and then > end
        study.claim(
            "Fig. 4", "The sink appears after the model has begun to learn, while the loss still falls",
            paper="between steps 1k and 2k of 20k", found=found, agrees=agrees,
        )  # fmt: skip


if __name__ == "__main__":
    main()
