"""Figure of the vision-language model's page, drawn from its shipped curve."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from sinkscope import zoo
from sinkscope.tasks.scenes import FAMILIES

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
SHARES = {
    "visual_share": "all visual tokens, mean over heads",
    "visual_top": "one visual token, largest of all heads",
    "bos_max": "<s>, largest of all heads",
    "bos_mean": "<s>, mean over heads",
}


def learning(names: list[str]) -> Figure:
    """Vision-language models along training: right answers by family (dotted: chance), and where attention goes."""
    figure, axes = plt.subplots(len(names), 2, figsize=(10.5, 3.4 * len(names)), squeeze=False)
    for row, name in zip(axes, names, strict=True):
        rows = [r for r in zoo.curve(name) if r["stage"] == "questions"]
        series = {key: np.array([r[key] for r in rows], dtype=float) for key in rows[0] if key != "stage"}
        for (family, answers), colour in zip(FAMILIES.items(), COLOURS, strict=True):
            row[0].plot(series["step"], series[f"accuracy_{family}"], color=colour, label=family, lw=1.4)
            row[0].axhline(1 / len(answers), color=colour, ls=":", lw=1)
        for (key, label), colour in zip(SHARES.items(), COLOURS, strict=False):
            row[1].plot(series["step"], series[key], color=colour, label=label, lw=1.4)
        row[0].set(xlabel="step", ylabel="right answers, 64 held-out pictures", title=f"zoo:{name}", ylim=(0, 1.02))
        row[1].set(xlabel="step", ylabel="attention of rows after the picture", ylim=(0, 1))
        for axis in row:
            axis.legend(fontsize=7, frameon=False)
    figure.tight_layout()
    return figure
