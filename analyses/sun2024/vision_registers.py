"""Massive activations of a vision transformer, and its registers held at their mean.

Paper: Sun et al. 2024, section 5 and the table of Fix-Reg-Mean; Darcet et al. 2024 on registers. Claims: vision
transformers have massive activations too, in models with registers at one register; registers held at their mean over
other images cost next to nothing, so they act as biases.
Cost: two passes, seconds.
Different here: the default model, ``dinov2-small``, has no registers, so the second claim cannot be seen on it; give a
folder or a hub id of a model with registers. ``tiny:NAME`` has random weights, on which nothing can be seen: it shows
that the script runs. Pictures are random textures; the cost is the cosine distance of the class token after the last
block, not accuracy; the control holds as many patches at their mean.
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import Estimate, Study, need, with_intervals
from sinkscope.methods.registers import held_at_mean
from sinkscope.methods.residual import residual_stream


def textures(count: int, size: int, seed: int = 0) -> list[np.ndarray]:
    """Random textures as normalised pixels (channel, height, width)."""
    waves = np.random.default_rng(seed).normal(size=(count, 3, 4, 2)) * 9
    y, x = np.mgrid[0:size, 0:size] / size
    return [np.sin(w[..., :1, None] * y + w[..., 1:, None] * x).sum(1).astype(np.float32) for w in waves]


def cost(model: sk.Model, prompts: sk.Prompts, keys: list[int], split: int) -> xr.DataArray:
    """Cosine distance of the class token of the images from ``split`` on, ``keys`` held at the mean of the others."""
    edits = held_at_mean(model, prompts.subset(range(split)), keys)
    found: list[float] = []
    for index in range(split, len(prompts)):
        plain, held = (list(residual_stream(model, prompts, index, each).values())[-1][0] for each in ((), edits))
        found.append(1 - float(plain @ held / np.linalg.norm(plain) / np.linalg.norm(held)))
    return xr.DataArray(found, dims="prompt", coords={"prompt": np.arange(split, len(prompts))})


with Study(__doc__, paper="sun2024", model="dinov2-small") as study:
    tiny, model = study.given.model[0].startswith("tiny:"), study.model
    need(model, hasattr(model.config, "image_size"), "a vision transformer")
    side = min(model.config.image_size, 224)
    prompts = sk.Prompts.from_images(textures(8 if study.quick else 24, side), model)
    probes = [sk.MassiveActivations(), sk.KeyMass()]
    ds = study.reading("massive", lambda: sk.run(model, prompts, probes))
    blocks = ds.sel(site=[s for s in ds["site"].values if s.endswith("post")])
    top = abs(blocks["top_value"]).mean("prompt")
    ratio = (abs(blocks["top_value"].isel(rank=0)) / blocks["median_abs"]).mean("prompt")
    site = str(ratio["site"].values[int(ratio.values.argmax())])
    position = int(np.median(blocks["top_position"].isel(rank=0).sel(site=site)))
    roles = ds["token_role"].isel(prompt=0).values
    registers = np.flatnonzero(roles == "register").tolist()
    patches = np.flatnonzero(roles == "image")[: max(len(registers), 1)].tolist()

    figure = plt.figure(figsize=(9.6, 4.6))
    figure.get_layout_engine().set(wspace=0.12)  # the space of an axis in depth is not counted
    left = figure.add_subplot(1, 2, 1, projection="3d")
    sk.plot.massive_activations_picture(ds.isel(prompt=0).sel(site=site), ax=left)
    sk.plot.top_values_by_layer(top, blocks["median_abs"].mean("prompt"), ax=figure.add_subplot(1, 2, 2))
    says = f"ten largest magnitudes of one image at {site}; mean over images of the largest, by block"
    study.figure(figure, "vision_registers", source=ds, says=says + ("; random weights" if tiny else ""))

    why = "random weights, so this says nothing about trained models; " if tiny else ""
    times = abs(blocks["top_value"].isel(rank=0)).sel(site=site) / blocks["median_abs"].sel(site=site)
    strict = int(sk.metrics.massive_activations(blocks, "sun2024")["massive"].sum())
    study.claim(
        "Section 5", "Vision transformers have massive activations, at a register", paper="DINOv2-reg: register 3",
        number=None if tiny else Estimate.mean(times.reset_coords(drop=True), ".1f", "medians"),
        found=f"{why}the largest entry at {site}, token {position} ({roles[position]}), {strict} entries by the "
        f"paper's rule in {len(prompts)} images",
        agrees=None if tiny else strict > 0 and (roles[position] == "register" or not registers),
    )  # fmt: skip
    if not registers:
        study.claim(
            "Fix-Reg-Mean", "Registers held at their mean cost next to nothing", paper="0.2 points at most",
            found="no registers", agrees="this model has no registers",
        )  # fmt: skip
    else:
        held, control = (cost(model, prompts, keys, len(prompts) // 2) for keys in (registers, patches))
        row = with_intervals(held)
        study.claim(
            "Fix-Reg-Mean", "Registers held at their mean cost next to nothing", paper="0.2 points at most",
            found=f"{why}class token {float(row['difference']):.3g} [{float(row['low']):.3g}, {float(row['high']):.3g}]"
            f" away in cosine, with {len(patches)} patches held {float(control.mean()):.3g} (n = {int(row['n'])})",
            agrees=None if tiny else float(row["high"]) < 0.05,
        )  # fmt: skip
