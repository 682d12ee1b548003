"""Figures of the vision-language models' pages, drawn from their shipped curves and cards."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from sinkscope import zoo
from sinkscope.plot.labels import log_scale
from sinkscope.plot.naming import name_lines
from sinkscope.plot.theme import PALETTE as COLOURS
from sinkscope.plot.theme import thin
from sinkscope.tasks.scenes import FAMILIES

SHARES = {
    "visual_share": "all visual tokens, mean over heads",
    "visual_top": "one visual token, largest of all heads",
    "bos_max": "<s>, largest of all heads",
    "bos_mean": "<s>, mean over heads",
}


def learning(names: list[str]) -> Figure:
    """Vision-language models along training: right answers by family (dotted: chance), and where attention goes."""
    figure, axes = plt.subplots(2 * len(names), 1, figsize=(8.4, 7 * len(names)))
    for row, name in zip(axes.reshape(-1, 2), names, strict=True):
        rows = [r for r in zoo.curve(name) if r["stage"] == "questions"]
        series = {key: np.array([r[key] for r in rows], dtype=float) for key in rows[0] if key != "stage"}
        for (family, answers), colour in zip(FAMILIES.items(), COLOURS, strict=False):
            row[0].plot(series["step"], series[f"accuracy_{family}"], color=colour, label=family)
            row[0].axhline(1 / len(answers), color=colour, ls=":", lw=thin())
        for (key, label), colour in zip(SHARES.items(), COLOURS, strict=False):
            row[1].plot(series["step"], series[key], color=colour, label=label)
        row[0].set(xlabel="step", ylabel="right answers, 64 held-out pictures", title=f"zoo:{name}", ylim=(0, 1.02))
        row[1].set(xlabel="step", ylabel="attention of rows after the picture", ylim=(0, 1))
        for axis in row:
            lines = [line for line in axis.lines if not str(line.get_label()).startswith("_")]
            name_lines(axis, lines, [str(line.get_label()) for line in lines])
    return figure


def keeping_sinks(names: list[str]) -> Figure:
    """Models of pretrained parts: right answers and visual sinks along training, and what makes visual tokens spike."""
    figure, panels = plt.subplot_mosaic([["answers"] * 2, ["spikes", "makers"]], figsize=(9.2, 7))
    axes = list(panels.values())
    for name, dashes in zip(names, ("-", "--"), strict=False):
        rows = zoo.curve(name)
        steps = [row["step"] for row in rows]
        for family, colour in zip(("colour", "shape"), COLOURS, strict=False):
            label = f"{family}, zoo:{name}"
            axes[0].plot(steps, [row[f"accuracy_{family}"] for row in rows], dashes, color=colour, label=label)
        spikes = [max(row["visual_sinks"][2:-2]) for row in rows]  # the last two blocks spike in any model
        axes[1].plot(steps, spikes, dashes, color="black", label=f"zoo:{name}")
        _makers(axes[2], zoo.card(name)["facts"].get("what_makes_them", []))
    axes[0].set(xlabel="step", ylabel="right answers, 32 held-out pictures", ylim=(0, 1.02))
    axes[1].set(xlabel="step", ylabel="visual tokens over phi 20, a picture")
    log_scale(axes[1], linear=0.1)
    axes[2].set(xlabel="root mean square of what the projector writes", xscale="log")
    axes[2].set_xticks([0.14, 0.3, 0.6, 1.4], ["0.14", "0.3", "0.6", "1.4"], minor=False)
    axes[2].xaxis.set_minor_formatter(NullFormatter())
    axes[2].set_ylabel("visual tokens over phi 20, a picture")
    for axis in axes:
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
    return figure


def _makers(axis: Axes, rows: list[dict[str, float]]) -> None:
    for shared, colour, label in ((1.0, COLOURS[0], "with"), (0.0, COLOURS[1], "without")):
        found = [row for row in rows if row["shared"] == shared]
        whole = max((row["tokens"] for row in found), default=0)
        line = sorted((row["rms"], row["spikes"]) for row in found if row["tokens"] == whole)
        if line:
            axis.plot(*zip(*line, strict=True), "o-", color=colour, label=f"{label} the shared vector")
        fewer = [row for row in found if row["tokens"] != whole and not shared]
        for place, row in enumerate(fewer):
            axis.annotate(
                f"{row['tokens']:.0f} tokens: {row['spikes']:.2g}", (row["rms"], row["spikes"]), (10, 14 - 11 * place),
                textcoords="offset points", fontsize="small", color=colour,
            )  # fmt: skip
            axis.plot(row["rms"], row["spikes"], "x", color=colour)
