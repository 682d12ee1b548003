"""Image-centric heads: which heads look at the picture beyond its sinks, and whether they land on what is asked for.

Paper: Kang et al. 2025 (arXiv 2503.03321), figure 4 and table 4. Claims: heads with a high share of non-sink visual
attention look at the object of the question, heads with a low share do not; few heads are image-centric at a time.
Cost: one pass over 48 short prompts with maps of the layers VAR acts on. Different here: the object is known from the
pixels; rho is .8 (the paper's general value), tau the width-relative one, unless that lies among ordinary text tokens.

    python analyses/kang2025/image_heads.py --model zoo:vlm-smol
"""

from __future__ import annotations

import numpy as np

import sinkscope as sk
from sinkscope.analysis import VISION_LANGUAGE_MODELS, Study, describe_difference, has_sign, spread_layers, visual_tau
from sinkscope.methods.var import VarSettings, image_heads, sink_dims_or_largest
from sinkscope.tasks.scene_questions import BOX, scene_questions

RHO = 0.8


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw, and state what was found on one model."""
    shapes = scene_questions(model, 12 if study.quick else 48, ("colour", "shape", "place"))
    dims, _ = sink_dims_or_largest(model, shapes.prompts)
    ds = study.reading(
        "mass", lambda: sk.run(model, shapes.prompts, [sk.KeyMass(queries="after_image"), sk.SinkDims(dims)])
    )
    tau, source = visual_tau(model, ds)
    settings = VarSettings(tau=tau)
    depth = int(model.config.get_text_config().num_hidden_layers)
    layers = [i for i in spread_layers(model) if settings.start_layer <= i < depth - 1]
    chosen = image_heads(model, shapes.prompts, RHO, dims, settings).sel(layer=layers)
    rows = chosen["image_mass"].notnull()
    rate = chosen["selected"].astype(float).where(rows).mean("query")
    mean = rate.mean("prompt").transpose("layer", "head")

    drawn = sk.plot.sink_map(mean.reset_coords(drop=True), title="Image-centric heads", label="share of rows")
    says = f"share of rows after the picture in which the head is image-centric: mass >= .2, non-sink share >= {RHO}"
    study.figure(drawn, "image_centric_heads", source=ds, says=says)

    weight = ds["key_mass"].sel(layer=layers).reset_coords(drop=True)
    about = shapes.covered(ds, "about").reset_coords(drop=True)
    visual = weight.where(about.notnull())
    on = (visual * about).sum("key") / visual.sum("key")
    chance = about.mean("key")
    score = on.mean("prompt").stack(place=("layer", "head"))
    share = chosen["non_sink_share"].where(rows).mean(["query", "prompt"]).stack(place=("layer", "head"))
    mass = chosen["image_mass"].mean(["query", "prompt"]).stack(place=("layer", "head"))
    looking = np.flatnonzero((mass >= settings.min_image_mass).values)
    order = looking[np.argsort(share.values[looking], kind="stable")]
    half = len(order) // 2
    low, high = (
        on.stack(place=("layer", "head")).isel(place=part).mean("place") for part in (order[:half], order[half:])
    )
    if half:
        words, found = describe_difference(high, low)
        study.claim(
            "Fig. 4", "Heads with a high non-sink share land on the object asked about more than others do",
            paper="yes, by eye",
            found=f"{len(order)} heads with mass >= .2: object's share of their visual attention, upper less "
            f"lower half, {words}; evenly spread {float(chance.mean()):.3f}",
            agrees=has_sign(found),
        )  # fmt: skip
    study.claim(
        "Table 4", "Only some heads are image-centric in a given row", paper="a minority (not given in numbers)",
        found=f"{float(rate.mean()):.0%} of (row, head) pairs, {rate.sizes['prompt']} prompts, {mean.size} heads; "
        f"tau = {tau:.3g}, {source}",
        agrees=0 < float(rate.mean()) < 0.5,
    )  # fmt: skip

    best, worst = (score["place"].values[int(i)] for i in (np.argmax(score.values), np.argmin(score.values)))
    which = int(np.argmax(on.sel(layer=best[0], head=best[1]).values))
    image = np.asarray(shapes.scenes[which].image(shapes.scale))
    boxes = {name: ds[name].isel(prompt=which) for name in BOX}
    arrays = {}
    for layer, head in (best, worst):
        line = visual.sel(layer=layer, head=head).isel(prompt=which).assign_coords(boxes)
        line = (line / line.sum()).assign_attrs(long_name="part of the head's attention to the picture")
        arrays[f"layer {layer}, head {head}"] = (image, line)
    axes = sk.plot.panels(sk.plot.patch_overlay, arrays)
    says = f"n = 1 picture, the head with the most and with the least on the object: {shapes.questions[which].text}"
    study.figure(axes[0], "best_and_worst_head", source=line.assign_attrs(model_id=ds.attrs["model_id"]), says=says)


if __name__ == "__main__":
    with Study(__doc__, paper="kang2025", model=VISION_LANGUAGE_MODELS) as study:
        study.for_each(judge)
