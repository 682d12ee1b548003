"""Which component carries the answer from the picture, for which tokens; and what if it is written again (IRI).

Paper: Li et al. 2026 (FCCT, arXiv 2511.05923), the heat maps of recovery by layer and token class, and intermediate
representation injection. Claims: attention at the last token carries the transfer in the middle layers; states hold the
answer at visual tokens first and at the last token in the end; writing the best blocks' part again helps. Cost: three
components x layers x four classes of tokens on 24 prompts, and three runs over 96, two minutes. Different here:
questions about made pictures, noise of equal mean and spread in the picture's place; the answer is what the model says
of the clean picture; classes are the object's tokens, the other visual ones, the question and the last token. Control:
the same injection from rates that were shuffled over the layers.

    python analyses/li2026/tracing.py --model zoo:vlm-shapes
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import Study, change_bars, compare_arms, describe_difference, has_sign, join_arms
from sinkscope.methods.tracing import injection, trace
from sinkscope.tasks.examples import answer_score
from sinkscope.tasks.scene_questions import scene_questions

GROUPS = ("object", "other visual", "question", "last")


def traced(model: sk.Model, n: int) -> xr.Dataset:
    """Recovery rates (prompt component layer group) of questions that name an object."""
    asked = scene_questions(model, n, seed=17)
    rng = np.random.default_rng(0)
    items = []
    for scene, question in zip(asked.scenes, asked.questions, strict=True):
        picture = np.asarray(scene.image(asked.scale))
        noise = rng.normal(picture.mean(), picture.std(), picture.shape).clip(0, 255).astype(np.uint8)
        items.append({"image": noise, "text": question.text})
    corrupt = sk.Prompts.from_chat(items, model)
    reading = sk.run(model, asked.prompts, [sk.Logits(), sk.KeyMass()])
    answers = reading["logits"].isel(position=-1).argmax("vocab").values.tolist()
    image, text = ((reading["token_role"] == role).reset_coords(drop=True) for role in ("image", "text"))
    on = (asked.covered(reading).fillna(0.0) > 0.5).reset_coords(drop=True)
    groups = dict(zip(GROUPS, (image & on, image & ~on, text, "last"), strict=True))
    return trace(model, asked.prompts, corrupt, answers, groups).assign_attrs(reading.attrs)


def injected(model: sk.Model, found: xr.Dataset, n: int) -> xr.Dataset:
    """Scores of other questions, with the best blocks' part written again and with that of shuffled ones."""
    test = scene_questions(model, n, seed=19).examples
    order = np.random.default_rng(0).permutation(found.sizes["layer"])
    shuffled = found.assign(recovery=found["recovery"].copy(data=found["recovery"].values[:, :, order]))
    arms = {"plain": answer_score(model, test)}
    for name, rates in (("written again", found), ("shuffled", shuffled)):
        edits = injection(rates)
        arms[name] = answer_score(model, test, edits) if edits else arms["plain"]
    return join_arms(arms)


def draw(study: Study, ds: xr.Dataset) -> None:
    """One heat map for each component."""
    mean = ds["recovery"].mean("prompt")
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.4), layout="constrained", sharey=True)
    for ax, component in zip(axes, ds["component"].values, strict=True):
        shown = ax.imshow(mean.sel(component=component).T, vmin=0, vmax=1, cmap="Blues", aspect="auto")
        ax.set_xticks(range(mean.sizes["layer"]), mean["layer"].values)
        ax.set(title=str(component), xlabel="layer")
    axes[0].set_yticks(range(len(GROUPS)), GROUPS)
    figure.colorbar(shown, ax=axes, label="recovery rate")
    study.figure(
        figure, "recovery", source=ds, says="share of the clean answer's probability that is brought back, mean"
    )


def main() -> None:
    """Measure, draw, and state what was found."""
    with Study(__doc__, paper="li2026", model="zoo:vlm-shapes") as study:
        ds = study.reading("recovery", lambda: traced(study.model, 4 if study.quick else 24))
        draw(study, ds)
        rate, layers = ds["recovery"], ds["layer"].values
        thirds = [part.tolist() for part in np.array_split(layers, 3)]
        last = rate.sel(component="attention", group="last")
        by_third = [last.sel(layer=part).max("layer") for part in thirds]
        rest = xr.concat([by_third[0], by_third[2]], "part").max("part")
        words, found = describe_difference(by_third[1] - rest)
        study.claim(
            "heat maps", "Attention at the last token brings most back in the middle third of the layers", paper="yes",
            found=f"best layer of the middle third less best of the others {words}", agrees=has_sign(found)
            if has_sign(found) is not None else "the interval holds 0",
        )  # fmt: skip
        states = rate.sel(component="state")
        visual = states.sel(group=["object", "other visual"]).max("group") - states.sel(group="last")
        for part, sign, where in (
            (thirds[0], 1, "visual tokens, first third"),
            (thirds[2], -1, "last token, last third"),
        ):
            words, found = describe_difference(visual.sel(layer=part).mean("layer"))
            verdict = has_sign(found, sign)
            study.claim(
                "heat maps", f"States hold the answer at the {where} of the layers",
                paper="handover near layer 14 of 32",
                found=f"recovery at visual tokens less that at the last token {words}",
                agrees="the interval holds 0" if verdict is None else verdict,
            )  # fmt: skip
        scores = study.reading("injected", lambda: injected(study.model, ds, 8 if study.quick else 96))
        value = change_bars(study, scores, "injection", "The best blocks' part of the last token, written again")
        for claim, other, paper in (
            ("Writing the best blocks' part again helps", "plain", "higher POPE and CHAIR"),
            ("It helps more than that of shuffled blocks", "shuffled", ""),
        ):
            words, agrees = compare_arms(value, "written again", other, 1)
            study.claim("IRI", claim, paper=paper, found=words, agrees=agrees)


if __name__ == "__main__":
    main()
