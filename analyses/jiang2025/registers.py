"""Register neurons: units that make the outlier patches of a vision transformer, moved to an added token.

Paper: Jiang et al. 2025 (arXiv 2506.08010), norms by layer with and without a register at test time, and Darcet et al.
2024 on outlier patches. Claims: a few MLP units make the outliers; moved to a token of zeros they leave the patches
without any, and what the class token says is kept. Cost: five passes over 16 pictures of 224 pixels, two minutes.
Different here: coloured shapes on photographs; units are found on half of the pictures and moved on the other half; the
class token is compared by its cosine with that of the unchanged model, not by accuracy. Control: as many other units of
the same blocks, drawn at random. Outliers are few (about 2 % of the tokens in Darcet et al.): where the threshold, the
valley of the norms or else mean plus three deviations, takes a tenth of the patches it separates nothing of the kind (a
limit set after a first run, which passed it).

    python analyses/jiang2025/registers.py --model dinov2-small
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from PIL import Image

import sinkscope as sk
from sinkscope.analysis import Estimate, Study, need
from sinkscope.methods.registers import register_neurons, with_registers
from sinkscope.tasks import photo_scenes

ARMS = ("unchanged", "moved", "random units moved")
FEW = 0.1
"""Share of the patches from which on what is above the threshold is no outlier. Ours."""


def pixels(picture: np.ndarray, side: int) -> np.ndarray:
    """A picture as ImageNet's models read it: (channel, height, width), whatever processor a model has."""
    small = np.asarray(Image.fromarray(picture).resize((side, side)), np.float32) / 255
    return np.moveaxis((small - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225), -1, 0).astype(np.float32)


def measured(model: sk.Model, n: int) -> xr.Dataset:
    """Largest patch norm (arm prompt layer) and the class token's cosine to the unchanged one (arm prompt)."""
    side = min(int(model.config.image_size), 224)
    pictures = [pixels(np.asarray(scene.image(1)), side) for scene in photo_scenes.held_out(2 * n)]
    first, second = (sk.Prompts.from_images(part, model) for part in (pictures[:n], pictures[n:]))
    found = register_neurons(model, first)
    width = int(getattr(model.config, "mlp_ratio", 4) * model.config.hidden_size)
    drawn = np.random.default_rng(0).integers(width, size=found.sizes["neuron"])
    arms = {"moved": found, "random units moved": found.assign(unit=("neuron", drawn))}
    none = with_registers(model, second, found.isel(neuron=slice(0, 0)), register=False)
    given = {"unchanged": none} | {name: with_registers(model, second, units) for name, units in arms.items()}
    largest = [part["norm"].values[:, :, part["role"].values == "image"].max(-1) for part in given.values()]
    reading = sk.run(model, second, [sk.ResidualNorm()])
    last = none["norm"].values[:, -1, none["role"].values == "image"]
    return xr.Dataset(
        {"largest": (("arm", "prompt", "layer"), np.array(largest)),
         "cosine": (("arm", "prompt"), np.array([part["cls_cosine"].values for part in given.values()])),
         "norm": (("prompt", "patch"), last), "units": ("neuron", found["unit"].values),
         "blocks": ("neuron", found["layer"].values)},
        coords={"arm": list(ARMS), "prompt": reading["prompt"].values, "layer": none["layer"].values},
        attrs=reading.attrs | {name: found.attrs[name] for name in ("threshold", "outliers", "images")},
    )  # fmt: skip


def main() -> None:
    """Measure, draw, and state what was found."""
    with Study(__doc__, paper="jiang2025", model="dinov2-small") as study:
        need(study.model, study.model.kind == "vision", "a vision encoder")
        ds = study.reading("registers", lambda: measured(study.model, 2 if study.quick else 8))
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
        left.hist(ds["norm"].values.ravel(), 60, color="0.5")
        left.axvline(ds.attrs["threshold"], color="#D55E00", linestyle="--", linewidth=1, label="threshold")
        left.set(xlabel="norm of a patch behind the last block", ylabel="patches", title="Norms and their valley")
        left.legend()
        for arm in ARMS:
            right.plot(ds["largest"].sel(arm=arm).mean("prompt"), marker="o", markersize=3, label=arm)
        right.axhline(ds.attrs["threshold"], color="0.5", linestyle="--", linewidth=1, label="threshold of outliers")
        right.set(xlabel="block", ylabel="largest patch norm", title="A register at test time")
        right.legend()
        says = "norms of the unchanged model; largest norm of a patch behind each block, mean over pictures; all on "
        study.figure(figure, "registers", source=ds, says=says + "pictures that the units were not found on")

        outliers, images = int(ds.attrs["outliers"]), int(ds.attrs["images"])
        share = float((ds["norm"] > ds.attrs["threshold"]).mean())
        few = f"{outliers} outlier patches in {images} pictures"
        if share > FEW:
            few = f"no outliers: {share:.0%} of the patches are above the threshold"
        seen = outliers > 0 and share <= FEW
        last = ds["largest"].isel(layer=-1)
        for claim, one, other, paper in (
            ("Moved units leave smaller patch norms", "moved", "unchanged", "no outliers are left"),
            ("They leave smaller norms than as many other units", "moved", "random units moved", ""),
        ):
            change = Estimate.paired(last.sel(arm=one, drop=True), last.sel(arm=other, drop=True))
            study.claim("norms by layer", claim, paper=paper, found=f"largest norm behind the last block, {one} less "
                        f"{other}: {change.counted}; {few}", agrees=change.below(0.0) if seen else few)  # fmt: skip
        kept = Estimate.mean(ds["cosine"].sel(arm="moved", drop=True), ".3f")
        study.claim(
            "table", "The class token keeps what it says", paper="86.4 to 86.4 % of ImageNet, DINOv2-L",
            found=f"cosine to the unchanged class token {kept.counted}; {few}",
            agrees=kept.above(0.95) if seen else few,
        )  # fmt: skip


if __name__ == "__main__":
    main()
