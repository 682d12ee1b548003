"""Draw the animated picture on top of the README: SmolLM2 reads one text, block by block.

python docs/images/animate.py            writes docs/images/sink.gif; needs the named model smollm2-135m
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.animation import FuncAnimation, PillowWriter

import sinkscope as sk
from sinkscope.plot.theme import OTHER, SEQUENTIAL, SINK

TEXT = (
    "The ferry left the harbour at six, while the lamps along the quay were still lit. Two gulls followed it as far as "
    "the breakwater, circled once, and then turned back."
)
SHOWN = 18
"""Tokens that have room in the picture; the numbers are of the whole text."""


def measure() -> xr.Dataset:
    """Read the text once."""
    model = sk.load_model("smollm2-135m")
    prompts = sk.Prompts.from_texts([TEXT], model)
    return sk.run(model, prompts, [sk.KeyMass(), sk.ValueNorm(), sk.MassiveActivations()])


def draw(ds: xr.Dataset, target: Path) -> None:
    """One frame for each block: who is attended to, and how large the largest entry of the residual stream is."""
    mass = ds["key_mass"].isel(prompt=0).mean("head").transpose("layer", "key").values
    tokens = [sk.plot.token_label(str(token), 12) for token in ds["token"].isel(prompt=0).values[:SHOWN]]
    sites = [str(site) for site in ds["site"].values]
    after = [sites.index(f"{layer}.post") for layer in range(len(mass))]
    top = abs(ds["top_value"]).isel(prompt=0, rank=0).values[after]
    median = ds["median_abs"].isel(prompt=0).values[after]
    with sk.plot.theme("page"):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.7), width_ratios=[1.75, 1])
        figure.set_dpi(80)
        bars = left.bar(range(SHOWN), np.zeros(SHOWN))
        left.set_xticks(range(SHOWN), tokens, rotation=60, ha="right")
        left.set(ylim=(0, 1), ylabel="attention, mean over 9 heads")
        left.spines["bottom"].set_visible(False)
        lines = [
            right.plot([], [], color=colour, label=label)[0]
            for colour, label in ((SINK, "largest entry"), (OTHER, "median entry"))
        ]
        right.set(yscale="log", xlim=(-0.5, len(mass) - 0.5), ylim=(0.05, 6e4), xlabel="block", title="Residual stream")
        right.legend(loc="center right")
        sk.plot.caption(
            figure, f"model {ds.attrs['model_id']}; one text of {ds.sizes['key']} tokens, the first {SHOWN} shown"
        )

        def frame(step: int) -> None:
            layer = min(step, len(mass) - 1)
            for index, bar in enumerate(bars):
                bar.set_height(mass[layer, index])
                bar.set_color(SINK if index == 0 else SEQUENTIAL(0.75))
            left.set_title(f"Block {layer}: {mass[layer, 0]:.0%} of the attention on the first token")
            for line, values in zip(lines, (top, median), strict=True):
                line.set_data(np.arange(layer + 1), values[: layer + 1])

        film = FuncAnimation(figure, frame, frames=len(mass) + 8)  # it rests on the last block
        film.save(target, writer=PillowWriter(fps=5))
    plt.close("all")


if __name__ == "__main__":
    place = Path(__file__).with_name("sink.gif")
    draw(measure(), place)
    sys.stdout.write(f"{place}: {place.stat().st_size / 1e3:.0f} kB\n")
