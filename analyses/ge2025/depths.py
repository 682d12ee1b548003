"""Where a model looks in shallow, middle and deep layers, in simple pictures and in cluttered ones.

Paper: Ge et al. 2025 (CARVE, arXiv 2509.06461), figure 2. Claims: attention to the picture gathers on what is asked
about as layers get deeper; in a cluttered picture it does so less. Cost: two passes over 64 questions, seconds.
Different here: the same shape, at the same place, alone on a plain ground and among four others on a patterned one;
thirds of the layers; how much is looked at a place is attention there over that in boxes of its size all over the
picture, the row that answers, mean of heads. Controls: the box of another shape; simple and cluttered are paired.

    python analyses/ge2025/depths.py --model zoo:vlm-shapes
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.patches import Rectangle

import sinkscope as sk
from sinkscope import metrics
from sinkscope.analysis import Estimate, Study, with_intervals
from sinkscope.methods.zoom import question_maps
from sinkscope.tasks import scenes
from sinkscope.tasks.scene_questions import scale_for

KINDS = ("simple", "cluttered")
DEPTHS = ("shallow", "middle", "deep")


def pairs(n: int, seed: int) -> list[tuple[scenes.Scene, scenes.Scene, scenes.Thing, scenes.Thing]]:
    """A shape alone on a plain ground, the same among four others on a patterned one, the shape, and another."""
    made = []
    for which in range(n):
        rng = np.random.default_rng([seed, which])
        things = scenes.make_scene(rng, 5).things
        asked, other = (things[i] for i in rng.permutation(5)[:2])
        ground = ("striped", "checked", "noisy")[int(rng.integers(3))]
        made.append((scenes.render([asked], "plain", rng), scenes.render(things, ground, rng), asked, other))
    return made


def measured(model: sk.Model, n: int) -> xr.Dataset:
    """Look at the shape and at another place (kind layer place prompt), and the maps (kind layer prompt row column)."""
    made, scale = pairs(n, 17), scale_for(model, "shapes")[1]
    depth = int(model.config.get_text_config().num_hidden_layers)
    maps = []
    for kind in range(2):
        items = [{"image": np.asarray(pair[kind].image(scale)),
                  "text": f"What colour is at the {scenes.PLACES[pair[2].cell]}?"} for pair in made]  # fmt: skip
        prompts = sk.Prompts.from_chat(items, model)
        maps.append([question_maps(model, prompts, [layer]) for layer in range(depth)])
    values = np.asarray(maps)
    side = values.shape[-1] / scenes.SIDE
    look = np.empty((2, depth, 2, n))
    for at in np.ndindex(look.shape):
        kind, layer, place, which = at
        thing = made[which][2 + place]
        edges = [thing.x - thing.radius, thing.y - thing.radius, thing.x + thing.radius, thing.y + thing.radius]
        left, top = (max(0, int(edge * side)) for edge in edges[:2])
        right, bottom = (min(values.shape[-1], int(np.ceil(edge * side))) for edge in edges[2:])
        look[at] = metrics.attention_ratio(values[kind, layer, which], (left, top, right, bottom))
    data = {"look": (("kind", "layer", "place", "prompt"), look),
            "map": (("kind", "layer", "prompt", "row", "column"), values)}  # fmt: skip
    coords = {"kind": list(KINDS), "layer": range(depth), "place": ["asked about", "elsewhere"], "prompt": range(n)}
    attrs = sk.run(model, prompts.subset([0]), [sk.Logits()]).attrs | {"n_prompts": n}
    return xr.Dataset(data, coords, attrs)


def draw(study: Study, ds: xr.Dataset, thirds: list[list[int]]) -> None:
    """Draw the maps of one pair at three depths, and the look by layer."""
    simple, cluttered, asked, _ = pairs(1, 17)[0]
    figure, grid = plt.subplots(2, 4, figsize=(9.6, 4.8), layout="constrained", width_ratios=[1, 1, 1, 1.5])
    shown = ds["map"].isel(prompt=0)
    for row, scene in enumerate((simple, cluttered)):
        for column, (name, layers) in enumerate(zip(DEPTHS, thirds, strict=True)):
            ax, one = grid[row, column], shown.isel(kind=row).sel(layer=layers).mean("layer").values
            ax.imshow(scene.pixels, extent=(0, 1, 1, 0))
            ax.imshow(one / one.sum(), extent=(0, 1, 1, 0), cmap="magma", alpha=0.65)
            left, top, wide = (v / scenes.SIDE for v in (asked.x - asked.radius, asked.y - asked.radius,
                                                         2 * asked.radius))  # fmt: skip
            ax.add_patch(Rectangle((left, top), wide, wide, fill=False, edgecolor="white", linewidth=1.5))
            ax.set(xticks=[], yticks=[], title=f"{KINDS[row]}, {name}")
        ax = grid[row, 3]
        for place in ds["place"].values.tolist():
            found = with_intervals(ds["look"].isel(kind=row).sel(place=place))
            ax.plot(ds["layer"], found["difference"], marker="o", markersize=3, label=place)
            ax.fill_between(ds["layer"], found["low"], found["high"], alpha=0.2)
        ax.axhline(1.0, color="black", linestyle=":", linewidth=1)
        ax.set(ylabel="look", title=f"{KINDS[row]} ({ds.sizes['prompt']} pictures)", ylim=(0, None))
    grid[0, 3].legend()
    grid[1, 3].set(xlabel="layer")
    says = "attention of the row that answers, mean of heads; look: in a box over boxes of its size; frame: asked about"
    study.figure(figure, "depths", source=ds, says=says)


def main() -> None:
    """Measure, draw, and state what was found."""
    with Study(__doc__, paper="ge2025", model="zoo:vlm-shapes") as study:
        ds = study.reading("depths", lambda: measured(study.model, 6 if study.quick else 64))
        thirds = [part.tolist() for part in np.array_split(ds["layer"].values, 3)]
        draw(study, ds, thirds)
        look = xr.concat([ds["look"].sel(layer=part).mean("layer") for part in thirds], "depth")
        look = look.assign_coords(depth=list(DEPTHS)).transpose("kind", "depth", "place", "prompt")
        asked, elsewhere = look.sel(place="asked about", drop=True), look.sel(place="elsewhere", drop=True)
        for claim, paper, one, other in (
            ("Simple pictures: deep layers look at what is asked about more than shallow ones", "yes, by eye",
             asked.sel(kind="simple", depth="deep"), asked.sel(kind="simple", depth="shallow")),
            ("Cluttered pictures: deep layers look at it more than shallow ones", "yes, by eye",
             asked.sel(kind="cluttered", depth="deep"), asked.sel(kind="cluttered", depth="shallow")),
            ("Deep layers look at it more in simple pictures than in cluttered ones", "scattered in clutter",
             asked.sel(kind="simple", depth="deep"), asked.sel(kind="cluttered", depth="deep")),
            ("Cluttered pictures: deep layers look at it more than at another shape", "",
             asked.sel(kind="cluttered", depth="deep"), elsewhere.sel(kind="cluttered", depth="deep")),
        ):  # fmt: skip
            gap = Estimate.paired(one.reset_coords(drop=True), other.reset_coords(drop=True), "+.2f")
            means = f"{float(one.mean()):.2f} against {float(other.mean()):.2f} times an even look"
            study.claim("Fig. 2", claim, paper=paper, number=gap, found=means, agrees=gap.above(0.0))


if __name__ == "__main__":
    main()
