"""The whole surface of ten models side by side: every entry of the residual stream, by token and dimension.

Paper: Sun et al. 2024, figures 1 and 4 (LLaMA2-7B, layer 2, "Summer is warm. Winter is cold."; the appendix shows other
models). Claim: a handful of entries stand out, all others are flat beside them. Cost: one pass over a prompt of a line
and one over each of eight others per model, two minutes for all ten. Different here: at the block output where the
largest entry is largest against the median; heights are logarithmic, in medians; the claim counts entries above a tenth
of the largest. Drawn is one prompt: the paper's; for models without a tokenizer random tokens, for those that see, a
picture (with its question). Counted is at the same block in eight other prompts of a line; intervals are over these.
Six of the ten are small ones of the zoo, of which four know nothing but one toy language.

    python analyses/sun2024/surface.py --model smollm2-135m
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes

import sinkscope as sk
from sinkscope.analysis import Estimate, Study
from sinkscope.methods.residual import residual_stream
from sinkscope.tasks import scenes
from sinkscope.tasks.scene_questions import scene_questions

TEXT = "Summer is warm. Winter is cold.\n"
HANDFUL = 10
"""Most entries that are still a handful."""
PRETRAINED = ("smollm2-135m", "gemma3-270m", "minilm", "dinov2-small")
MADE_HERE = ("zoo:vlm-smol", "zoo:vlm-shapes", "zoo:lm-python", "zoo:bb-3l", "zoo:bb-3l-relu", "zoo:bb-1l")
DRAWN_LARGE = PRETRAINED[:2]
"""Models whose surface has a figure of its own as well."""
COLUMNS, COUNTED = 4, 8
"""Surfaces in a row; prompts that entries are counted in."""
MOST_TOKENS = 24
"""Tokens of one prompt in the picture of all models: more bars than that stand in front of one another."""


def prompt_for(study: Study, model: sk.Model) -> sk.Prompts:
    """One prompt of the kind that the model reads."""
    if hasattr(model.config, "vision_config"):
        return scene_questions(model, 1).prompts
    if hasattr(model.config, "image_size"):
        return sk.Prompts.from_images([scenes.held_out(1)[0].image(4)], model)
    if model.tokenizer is None:
        return study.texts("random", n=2, tokens=16).subset([0])
    return sk.Prompts.from_texts([TEXT], model)


def others_for(study: Study, model: sk.Model) -> sk.Prompts:
    """As many tokens from other texts, or other pictures: the prompts that entries are counted in."""
    n = 2 if study.quick else COUNTED
    if hasattr(model.config, "vision_config"):
        return scene_questions(model, n + 1).prompts.subset(range(1, n + 1))
    if hasattr(model.config, "image_size"):
        return sk.Prompts.from_images([scene.image(4) for scene in scenes.held_out(n + 1)[1:]], model)
    kind = "random" if model.tokenizer is None else "prose"
    return study.texts(kind, n=COUNTED, tokens=16, seed=1)


def magnitudes(model: sk.Model, prompts: sk.Prompts, index: int) -> dict[str, np.ndarray]:
    """Magnitude of every entry at the output of each block, of one prompt: (key, dim) by site."""
    stream = residual_stream(model, prompts, index)
    return {name: abs(state) for name, state in stream.items() if name.endswith("post")}


def standing_out(sizes: np.ndarray) -> int:
    """Number of entries above a tenth of the largest."""
    return int((sizes > sizes.max() / 10).sum())


def judge(study: Study, model: sk.Model) -> tuple[xr.DataArray, xr.Dataset]:
    """Count the entries that stand out; return the surface and the reading by block."""
    prompts = prompt_for(study, model)
    ds = study.run(prompts, [sk.MassiveActivations()])
    states = magnitudes(model, prompts, 0)
    site = max(states, key=lambda name: states[name].max() / np.median(states[name]))
    sizes = states[site]
    token, dim = np.unravel_index(int(sizes.argmax()), sizes.shape)
    largest, median, others = float(sizes.max()), float(np.median(sizes)), others_for(study, model)
    counts = [standing_out(magnitudes(model, others, index)[site]) for index in range(len(others))]
    number = Estimate.mean(xr.DataArray(counts, dims="prompt"), ".1f", "entries")
    study.claim(
        "Fig. 1", "A handful of entries stand out of the whole surface", paper="two dimensions of 4096, 2400 high",
        number=number, agrees=number.below(HANDFUL),
        found=f"above a tenth of the largest at {site}; on the surface drawn {standing_out(sizes)} of {sizes.size}, "
        f"the largest {largest:.3g} at token {token} ({prompts.tokens[0][token]}), dimension {dim}, "
        f"{largest / median:.0f} times the median",
    )  # fmt: skip
    tokens = {"token": ("key", list(prompts.tokens[0]))}
    surface = sk.plot.described(xr.DataArray(sizes, dims=("key", "dim"), coords=tokens, name=site), ds)
    if model.id in DRAWN_LARGE or len(study.given.model) == 1:
        says = f"magnitude of every entry at {site}, multiples of the median of all, {median:.3g}"
        study.figure(surface_of(surface, model.id, largest / median), "surface", source=surface, says=says)
    blocks = ds.sel(site=[name for name in ds["site"].values if name.endswith("post")])
    return surface, blocks.assign_coords(site=[n.split(".")[0] for n in blocks["site"].values])


def surface_of(surface: xr.DataArray, name: str, top: float, ax: Axes | None = None) -> Axes:
    """Draw one surface; dimensions are named where a handful stands out."""
    few = int((surface > surface.max() / 10).sum()) <= HANDFUL
    title = f"{name}, {surface.name}"
    return sk.plot.activation_surface(surface, named=None if few else [], top=top, title=title, ax=ax)


def thinned(surface: xr.DataArray) -> xr.DataArray:
    """A long prompt's tokens evenly thinned, the one with the largest entry kept."""
    length = surface.sizes["key"]
    if length <= MOST_TOKENS:
        return surface
    carrier = int(surface.max("dim").values.argmax())
    return surface.isel(key=sorted({carrier, *np.linspace(0, length - 1, MOST_TOKENS - 1).astype(int).tolist()}))


def draw(study: Study, found: dict[str, tuple[xr.DataArray, xr.Dataset]]) -> None:
    """Draw the surfaces on one axis, and the largest entries by block."""
    surfaces = {name: surface for name, (surface, _) in found.items()}
    first, top = next(iter(surfaces.values())), max(float(s.max() / s.median()) for s in surfaces.values())
    columns, names = min(COLUMNS, len(found)), ", ".join(surfaces)
    if len(found) > 1:
        rows = -(-len(found) // columns)
        figure = plt.figure(figsize=(2.4 * columns, 0.5 + 2.5 * rows))
        for place, (name, surface) in enumerate(surfaces.items()):
            axes = figure.add_subplot(rows, columns, place + 1, projection="3d")
            drawn = surface_of(thinned(surface), name, top, axes)
            drawn.set(title=f"{name}\n{surface.name}", ylabel="", zlabel="")
            tokens = [label.get_text() for label in drawn.get_xticklabels()]
            drawn.set_xticks(drawn.get_xticks()[::4], tokens[::4])
            drawn.locator_params(axis="y", nbins=3)
            for text in drawn.texts:
                text.set_fontsize(plt.rcParams["xtick.labelsize"])
        says = (
            f"models {names}: every entry by token and dimension, one prompt each (of long ones {MOST_TOKENS} tokens, "
            "the largest among them), multiples of its median magnitude, one scale"
        )
        study.figure(figure, "ten_models", source=first.assign_attrs(model_id=""), says=says)
    readings = {name: reading for name, (_, reading) in found.items()}
    drawn_all = sk.plot.panels(sk.plot.top_values_by_layer, readings, columns=columns, height=0.9)
    for axes in drawn_all:
        axes.set_xlabel("block")
    says = f"models {names}: three largest magnitudes and the median at the output of each block, one prompt each"
    study.figure(drawn_all[0], "by_block", source=first.assign_attrs(model_id=""), says=says)


if __name__ == "__main__":
    with Study(__doc__, paper="sun2024", model=(*PRETRAINED, *MADE_HERE)) as study:
        draw(study, {name: judge(study, model) for name, model in zip(study.given.model, study.each(), strict=True)})
