"""Small shapes that the whole picture does not show: is the right crop found, and is it enough?

Paper: Zhang et al. 2025 (arXiv 2502.17422, ViCrop), the table of TextVQA. Claim: a crop where the model looks, beside
the whole picture, raises accuracy without training, by attention over that under a neutral question (rel-att) and by
attention times gradient (grad-att). Cost: two answers and one pass with gradients per picture, a minute on the zoo's
model. Different here: one shape in a sixteenth of a plain picture, which the tower sees at a quarter of its size; the
layer is chosen on one half of the pictures, the other half is judged. Controls: the true box, and one beside it.

    python analyses/zhang2025/crops.py --model zoo:vlm-shapes
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import Study, describe_difference, has_sign
from sinkscope.methods.zoom import ZoomSettings, zoom
from sinkscope.tasks import scenes

SIDE = scenes.SIDE


def pictures(n: int, seed: int = 0) -> tuple[list[dict[str, Any]], list[str], list[tuple[int, int, int, int]]]:
    """Questions about one small shape each, their answers, and the box that shows it."""
    rng = np.random.default_rng(seed)
    items: list[dict[str, Any]] = []
    answers: list[str] = []
    boxes: list[tuple[int, int, int, int]] = []
    while len(items) < n:
        scene = scenes.make_scene(rng, 1)
        asked = scenes.ask(scene, "shape", rng)
        whole = np.broadcast_to(scene.pixels[0, 0], (4 * SIDE, 4 * SIDE, 3)).copy()
        top, left = (rng.integers(0, 4, 2) * SIDE).tolist()
        whole[top : top + SIDE, left : left + SIDE] = scene.pixels
        items.append({"image": whole, "text": asked.text})
        answers.append(asked.answer)
        boxes.append((left, top, left + SIDE, top + SIDE))
    return items, answers, boxes


def measured(model: sk.Model, n: int, layers: Sequence[int]) -> xr.Dataset:
    """Whether each answer is right (prompt): without a crop, with found ones, with the true box and one beside it."""
    items, answers, boxes = pictures(2 * n)
    hits: dict[str, np.ndarray] = {}

    def right(said: Any) -> np.ndarray:
        return np.asarray([word == answer for word, answer in zip(said, answers, strict=True)], float)

    chosen: dict[str, int] = {}
    for name, by in (("rel-att", "attention"), ("grad-att", "gradient")):
        tried = {}
        for layer in layers:
            found = zoom(model, items, ZoomSettings(by=by, layers=[layer], base=SIDE, max_new_tokens=1))
            hits["whole"], tried[layer] = right(found.before), right(found.after)
        chosen[name] = max(layers, key=lambda layer: tried[layer][:n].mean())
        hits[name] = tried[chosen[name]]
    prompts = sk.Prompts.from_chat(items, model)
    beside = [((left + SIDE) % (4 * SIDE), top) for left, top, _, _ in boxes]
    other = [(left, top, left + SIDE, top + SIDE) for left, top in beside]
    for name, given in (("true box", boxes), ("box beside it", other)):
        written = sk.generate(model, prompts.crop(given, model), max_new_tokens=1)
        hits[name] = right([model.tokenizer.decode(ids[-1:]).strip() for ids in written.ids])  # type: ignore[union-attr]
    test = prompts.subset(range(n, 2 * n))
    reading = sk.run(model, test, [sk.Logits()])
    data = {"right": (("crop", "prompt"), np.stack([values[n:] for values in hits.values()]))}
    attrs = reading.attrs | {f"layer_{name}": layer for name, layer in chosen.items()}
    return xr.Dataset(data, coords={"crop": list(hits), "prompt": reading["prompt"].values}, attrs=attrs)


def main() -> None:
    """Measure, draw, and state what was found."""
    with Study(__doc__, paper="zhang2025", model="zoo:vlm-shapes") as study:
        layers = range(study.model.backend.towers[study.model.backend.default_tower].depth)
        n, tried = (2, layers[-2:-1]) if study.quick else (48, layers)
        ds = study.reading("crops", lambda: measured(study.model, n, tried))
        share = sk.tasks.rate(ds["right"])
        names, value = ds["crop"].values.tolist(), share["value"].values
        title, chance = "A shape too small for the whole picture", 1 / len(scenes.SHAPES)
        axes = sk.plot.interval_dots(share, reference=chance, title=title, size="page")
        axes.set(xlim=(-0.03, 1.03), xlabel="share of right answers")
        says = "crops stand beside the whole picture; dotted: chance; 95 % Wilson intervals"
        study.figure(axes, "crops", source=ds, says=says)
        for name in ("rel-att", "grad-att"):
            words, found = describe_difference(ds["right"].sel(crop=name), ds["right"].sel(crop="whole"))
            verdict = has_sign(found)
            study.claim(
                "TextVQA", f"A crop found by {name} raises accuracy", paper="47.8 to 55.2 (rel-att), 56.1 (grad-att)",
                found=f"layer {ds.attrs[f'layer_{name}']}: {words}; "
                + ", ".join(f"{n} {v:.2f}" for n, v in zip(names, value, strict=True)),
                agrees=verdict if verdict is not None else "the interval holds 0",
            )  # fmt: skip


if __name__ == "__main__":
    main()
