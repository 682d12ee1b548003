"""Figures of the zoo's pages, drawn from the shipped curves: ``python -m recipes.figures docs/zoo``."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from recipes import emergence as variants_page
from recipes.vision_language_figures import keeping_sinks, learning
from sinkscope import zoo
from sinkscope.plot import theme
from sinkscope.plot.naming import name_lines
from sinkscope.plot.theme import PALETTE as COLOURS


def _series(rows: list[dict[str, Any]], key: str) -> np.ndarray:
    return np.array([row[key][0] if isinstance(row[key], list) else row[key] for row in rows], dtype=float)


def dynamics(names: list[str]) -> Figure:
    """Risks, sink attention, sink logit gap and value norm along training, each over its own maximum (Guo F4)."""
    keys = {
        "backcopy_risk": "back-copy risk",
        "bigram_excess": "bigram excess risk",
        "bos_attention": "attention to <s>",
        "sink_logit_gap": "sink logit gap",
        "bos_value": "|W_O v| of <s>",
    }
    figure, axes = plt.subplots(1, len(names), figsize=(3.2 * max(len(names), 2), 3.6), squeeze=False, sharey=True)
    for axis, name in zip(axes[0], names, strict=True):
        rows = zoo.curve(name)
        steps = _series(rows, "step")
        for (key, label), colour in zip(keys.items(), COLOURS, strict=False):
            values = _series(rows, key)
            axis.plot(steps + 1, values / np.abs(values).max(), label=label, color=colour)
        axis.set(xscale="log", xlabel="step + 1", title=f"zoo:{name}")
    axes[0, 0].set_ylabel("value over its maximum")
    name_lines(axes[0, -1], axes[0, -1].lines, list(keys.values()))
    return figure


def residual_peak(names: list[str]) -> Figure:
    """Residual norm of <s> after the first block (solid) and the mean of other tokens (dotted) (Guo et al. F6)."""
    figure, axis = plt.subplots()
    lines = []
    for name, colour in zip(names, COLOURS, strict=False):
        rows = zoo.curve(name)
        lines += axis.plot(_series(rows, "step"), _series(rows, "bos_residual"), color=colour)
        axis.plot(_series(rows, "step"), _series(rows, "other_residual"), color=colour, ls=":")
    axis.set(xlabel="step", ylabel="residual norm after block 0", title="<s> solid, mean of others dotted")
    name_lines(axis, lines, [f"zoo:{name}" for name in names])
    return figure


def emergence(names: list[str]) -> Figure:
    """Sink rate, drain and massive activations of language models over training (Gu et al. Fig. 4)."""
    keys = {
        "alpha_mean": "mean attention to key 0",
        "sink_rate_after_first": "share of heads > .3, layers 1+",
        "value_ratio_min": "lowest value-norm ratio of key 0",
        "massive": "largest / median magnitude",
    }
    figure = _along_training({name: [zoo.curve(name)] for name in names}, keys)
    figure.axes[-1].set_yscale("log")
    return figure


def compared(names: list[str]) -> Figure:
    """Language-model variants over the tokens that all of them have seen: sinks, drain, massive activations, loss.

    The paper's table of attention operations (Gu et al. 2025, section 7) compares final models; here the same is seen
    along training, every seed a thin line and their mean a thick one. Rows that do not sum to one are divided by their
    sum for the attention (the paper's proxy).
    """
    keys = {
        "alpha_mean": "mean attention to key 0",
        "sink_rate_after_first": "share of heads > .3, layers 1+",
        "value_ratio": "value norm of key 0 / median",
        "massive": "largest / median magnitude",
        "loss": "held-out loss (nat)",
    }
    runs = {name: [zoo.curve(name, seed) for seed in zoo.seeds(name)] for name in names}
    last = min(rows[-1]["tokens"] for group in runs.values() for rows in group)
    seen = {name: [[row for row in rows if row["tokens"] <= last] for rows in group] for name, group in runs.items()}
    return _along_training(seen, keys)


def _along_training(curves: dict[str, list[list[dict[str, Any]]]], keys: dict[str, str]) -> Figure:
    """One panel per key; each run of a name as a thin line where there are several, and their mean as a thick one."""
    figure, grid = plt.subplots(2, -(-len(keys) // 2), figsize=(9.6, 6.4))
    axes = grid.ravel()
    styles = itertools.cycle(itertools.product(("-", "--"), COLOURS))
    for (name, runs), (dashes, colour) in zip(curves.items(), styles, strict=False):
        for axis, (key, label) in zip(axes, keys.items(), strict=False):
            shared = sorted(set.intersection(*({row["tokens"] for row in rows} for rows in runs)))
            each = [_series([row for row in rows if row["tokens"] in shared], key) for rows in runs]
            for values in each if len(each) > 1 else []:
                axis.plot(np.array(shared) / 1e6, values, dashes, color=colour, lw=0.8, alpha=0.4)
            axis.plot(np.array(shared) / 1e6, np.mean(each, axis=0), dashes, color=colour, label=name)
            axis.set_xlabel("tokens, millions")
            axis.set_title(label, fontsize="medium")
    for axis in axes[len(keys) :]:
        axis.set_axis_off()
    if len(curves) > 1:
        handles, labels = axes[0].get_legend_handles_labels()
        place = {"loc": "center"} if len(axes) > len(keys) else {"loc": "best"}
        axes[-1].legend(handles, labels, **place)
    return figure


def _runs(claims: dict[str, variants_page.Expectation]) -> list[str]:
    return list(variants_page.compared(claims).values()) if variants_page.BASE in zoo.curves() else []


def draw(folder: Path) -> list[Path]:
    """Draw the figures of the models that the zoo holds."""
    names = [entry.name for entry in zoo.entries()]
    backcopy = [n for n in names if n.startswith("bb-")]
    jobs = {
        "backcopy-dynamics.png": (dynamics, [n for n in ("bb-1l", "bb-1l-relu", "bb-3l") if n in backcopy]),
        "backcopy-residual-peak.png": (residual_peak, [n for n in backcopy if "3l" in n]),
        "language-model-emergence.png": (emergence, [n for n in names if n == variants_page.SHIPPED]),
        "language-model-variants.png": (compared, _runs(variants_page.OPERATIONS)),
        "language-model-sight.png": (compared, _runs(variants_page.SIGHT)),
        "language-model-recipes.png": (compared, _runs(variants_page.RECIPE)),
        "vision-language-training.png": (learning, [n for n in names if n == "vlm-shapes"]),
        "vision-language-sinks.png": (keeping_sinks, [n for n in names if n.startswith("vlm-smol")]),
    }
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for file, (make, chosen) in jobs.items():
        if chosen:
            with theme("page"):
                figure = make(chosen)
                figure.savefig(folder / file, dpi=120, metadata={"Software": None})
            plt.close(figure)
            out.append(folder / file)
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    draw(parser.parse_args().folder)


if __name__ == "__main__":
    main()
