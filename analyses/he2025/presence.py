"""Is there a red circle? Yes and no by how much of a thing that is not there is in the picture.

Paper: He et al. 2025 (arXiv 2412.13949), the table of POPE F1, with the questions of Li et al. 2023 (POPE). Claims: F1
falls from things drawn at random to those likely to be there; reinforcing vision-aware heads raises it a little. Cost:
four questions about each of 96 pictures in three ways, two minutes on the zoo model. Different here: coloured shapes;
of a thing that is not there none, one or both of colour and shape are in the picture (of different things); two to
four shapes a picture; the same questions with the answer yes for each kind. Control: as many random heads.

    python analyses/he2025/presence.py --model zoo:vlm-shapes
"""

from __future__ import annotations

from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope import metrics
from sinkscope.analysis import Estimate, Study, is_large
from sinkscope.engine.generation import written_texts
from sinkscope.methods.vhr import VhrSettings, generate_reinforced, vhr
from sinkscope.tasks import scenes
from sinkscope.tasks.scene_questions import held_out_scenes, scale_for

KINDS = ("there", "neither", "one", "both")
"""The thing is there; or of one that is not, neither its colour nor its shape, one of them, or both are."""


def questions(model: sk.Model, n: int) -> list[dict[str, Any]]:
    """One question of each kind about each picture, the kinds together."""
    kind, scale = scale_for(model)
    drawn = held_out_scenes(kind, 12 * n, 0, 20_000, "presence")
    some = [scene for scene in drawn if all(scenes.absent(scene, parts) for parts in range(3))][:n]
    rng, made = np.random.default_rng(0), []
    for scene in some:
        pairs = [[(thing.colour, thing.shape) for thing in scene.things], *(scenes.absent(scene, p) for p in range(3))]
        for options in pairs:
            colour, shape = options[rng.integers(len(options))]
            made.append({"image": scene.image(scale), "text": f"Is there a {colour} {shape}?"})
    return made


def measured(model: sk.Model, n: int) -> xr.Dataset:
    """Whether each answer is yes (way prompt kind)."""
    items = questions(model, n)
    prompts = sk.Prompts.from_chat(items, model)
    said = {"plain": written_texts(model, sk.generate(model, prompts, max_new_tokens=1))}
    if not is_large(model):
        chosen = vhr(model, prompts, VhrSettings())
        for way, heads in (("reinforced", chosen), ("random heads", chosen.random_heads())):
            parts = generate_reinforced(model, prompts, heads, 1)
            said[way] = [text for part in parts for text in written_texts(model, part)]
    yes = [[metrics.says_yes(text) for text in texts] for texts in said.values()]
    data = np.reshape(yes, (len(said), -1, len(KINDS)))
    coords = {"way": list(said), "prompt": range(data.shape[1]), "kind": list(KINDS)}
    attrs = sk.run(model, prompts.subset([0]), [sk.Logits()]).attrs | {"n_prompts": len(items)}
    return xr.Dataset({"yes": (("way", "prompt", "kind"), data)}, coords, attrs)


def answers(ds: xr.Dataset, way: str, kind: str) -> np.ndarray:
    """Which answers are yes, bool (2, prompt): to what is there, and to as many things of one kind that are not."""
    return ds["yes"].sel(way=way, kind=["there", kind]).transpose("kind", "prompt").values.astype(bool)


def scored(yes: np.ndarray, at: np.ndarray | slice = slice(None), score: str = "f1") -> float:
    """POPE's score of the pictures ``at``."""
    said = yes[:, at]
    truth = np.zeros(said.shape, dtype=bool)
    truth[0] = True
    return metrics.pope_scores(said.ravel(), truth.ravel())[score]


def draw(study: Study, ds: xr.Dataset) -> None:
    """Draw F1 and the share of yes by kind and way."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    n = ds.sizes["prompt"]
    for ax, score, name in zip(axes, ("f1", "yes"), ("F1", "share of yes"), strict=True):
        cells = [
            [Estimate.resampled(partial(scored, answers(ds, way, kind), score=score), n)
             for way in ds["way"].values.tolist()] for kind in KINDS[1:]
        ]  # fmt: skip
        value, low, high = (
            xr.DataArray([[getattr(cell, part) for cell in row] for row in cells], dims=("kind", "way"),
                         coords={"kind": list(KINDS[1:]), "way": ds["way"]}) for part in ("value", "low", "high")
        )  # fmt: skip
        sk.plot.interval_dots(value, interval=(low, high), reference=0.5 if score == "yes" else None, ax=ax)
        ax.set(xlabel=name, ylabel="in the picture of what is not there")
    says = "yes and no in equal numbers; which of colour and shape are there; 95 % bootstrap intervals over pictures"
    study.figure(figure, "presence", source=ds, says=says)


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw, and state what was found on one model."""
    ds = study.reading("presence", lambda: measured(model, 3 if study.quick else 20 if is_large(model) else 96))
    draw(study, ds)
    yes = {(way, kind): answers(ds, way, kind) for way in ds["way"].values.tolist() for kind in KINDS[1:]}

    def gap(one: tuple[str, str], other: tuple[str, str]) -> Estimate:
        return Estimate.resampled(lambda at: scored(yes[one], at) - scored(yes[other], at), ds.sizes["prompt"], "+.3f")

    plain = {kind: yes["plain", kind] for kind in KINDS[1:]}
    words = ", ".join(f"{kind} {scored(own):.2f} (yes {scored(own, score='yes'):.0%})" for kind, own in plain.items())
    found = gap(("plain", "both"), ("plain", "neither"))
    study.claim("POPE", "F1 is lower where colour and shape are there, of different things", number=found,
                paper="random to adversarial: lower", found=f"F1: {words}", agrees=found.below(0.0))  # fmt: skip
    if "reinforced" not in ds["way"]:
        return
    for claim, paper, other in (
        ("Reinforcing vision-aware heads raises F1", "84.98 to 85.47", "plain"),
        ("It does more than as many random heads", "", "random heads"),
    ):
        found = gap(("reinforced", "both"), (other, "both"))
        means = ", ".join(f"{way} {scored(yes[way, 'both']):.2f}" for way in ds["way"].values.tolist())
        said = f"F1 where both are there: {means}"
        verdict = found.above(0.0) if found.low != found.high else "no answer differs"
        study.claim("POPE", claim, paper=paper, number=found, found=said, agrees=verdict)


if __name__ == "__main__":
    with Study(__doc__, paper="he2025", model="zoo:vlm-shapes") as study:
        study.for_each(judge)
