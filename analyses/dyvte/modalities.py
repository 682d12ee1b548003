"""When the picture can leave, and which attention between the modalities the answer needs.

Papers: DyVTE (visual-token exit), the forced exit behind its labels; the masks of EE-MLLM (visual tokens do not attend
to one another), AKI (arXiv 2503.02597: they read the question) and MODA (visual tokens see one another both ways).
Claims: after some layer image tokens no longer matter; attention among visual tokens can go; the opened masks help.
Cost: a pass for each layer, twice, and five over 64 questions, half a minute on the zoo model. Different here: one-word
answers; hidden keys in the place of cut tokens; the masks are put on a model trained with the causal one, where the
papers train. Controls: the question's words leave in the picture's place; the picture is hidden altogether.

    python analyses/dyvte/modalities.py --model zoo:vlm-shapes
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope import metrics
from sinkscope.analysis import Estimate, Study, change_bars, compare_arms, join_arms, with_intervals
from sinkscope.methods.tracing import visual_exit
from sinkscope.roles import ROLE_INDEX
from sinkscope.tasks.examples import answer_score
from sinkscope.tasks.scene_questions import SceneQuestions, scene_questions

MASKS = {
    "EE-MLLM": [sk.MaskKeys("image", queries="image", keep_self=True)],
    "AKI": [sk.OpenKeys("text", queries="image")],
    "MODA": [sk.OpenKeys("image", queries="image")],
    "no picture": [sk.MaskKeys("image", queries="after_image")],
}

KEYS = {"image": "picture", "text": "words", "bos": "first token"}
FLOOR = 0.01
"""Nat added to both losses of the ratio: an answer that is sure has next to none, so any change is many times it."""


def question(prompts: sk.Prompts) -> xr.DataArray:
    """The words behind the picture, without the last token: bool (prompt key)."""
    found = np.zeros((len(prompts), max(prompts.lengths)), dtype=bool)
    for which, roles in enumerate(prompts.roles):
        image = np.flatnonzero(np.asarray(roles) == ROLE_INDEX["image"])
        found[which, image[-1] + 1 : len(roles) - 1] = np.asarray(roles)[image[-1] + 1 : -1] == ROLE_INDEX["text"]
    return xr.DataArray(found, dims=("prompt", "key"), coords={"prompt": np.arange(len(prompts))})


def exits(model: sk.Model, asked: SceneQuestions) -> xr.Dataset:
    """Agreement, loss and its change (leaves prompt layer) where picture or question leaves, and shares by modality."""
    answers = asked.examples.answers
    found = [visual_exit(model, asked.prompts, answers, keys=keys) for keys in ("image", question(asked.prompts))]
    joined = xr.concat(found, "leaves", combine_attrs="override").assign_coords(leaves=["picture", "question"])
    shares = []
    for rows in ("image", "after_image"):
        ds = sk.run(model, asked.prompts, [sk.RoleShare(rows)])
        shares.append(ds["role_share"].mean("head").sel(role=list(KEYS)).reset_coords(drop=True))
    share = xr.concat(shares, "rows").assign_coords(rows=["picture", "words"])
    return joined.assign(share=share).assign_attrs(ds.attrs)


def draw(study: Study, ds: xr.Dataset) -> None:
    """Curves of the exit, exits of single questions, and attention between modalities by layer."""
    figure, panels = plt.subplot_mosaic([["exit", "single"], ["share"] * 2], figsize=(9.2, 6.8), layout="constrained")
    left, middle, right = panels.values()
    gain = with_intervals(ds["loss"] - ds["full_loss"])
    for colour, name in enumerate(ds["leaves"].values):
        row = gain.sel(leaves=name)
        line = {"color": f"C{colour}", "marker": "o", "markersize": 3, "label": f"the {name} leaves"}
        left.plot(ds["layer"], row["difference"], **line)
        left.fill_between(ds["layer"], row["low"], row["high"], alpha=0.15, color=f"C{colour}")
    left.axhline(0.0, linestyle=":", color="0.5")
    left.set(xlabel="hidden from this layer on", ylabel="change of the loss (nat)", title="Forced exit")
    left.legend()
    depth = ds.sizes["layer"]
    for colour, name in enumerate(ds["leaves"].values):
        each = [single(ds.sel(leaves=name, prompt=prompt)) for prompt in ds["prompt"].values]
        counts = np.bincount(each, minlength=depth + 1)
        middle.bar(np.arange(depth + 1) + 0.4 * colour - 0.2, counts, 0.38, color=f"C{colour}", label=f"{name}")
    middle.set_xticks(range(depth + 1), [*map(str, range(depth)), "never"])
    middle.set(xlabel="first layer without a change", ylabel="questions", title="Exit of single questions")
    middle.legend()
    for style, rows in zip(("-", "--"), ds["rows"].values, strict=True):
        for colour, (role, name) in enumerate(KEYS.items()):
            line = ds["share"].sel(rows=rows, role=role).mean("prompt")
            right.plot(ds["layer"], line, style, color=f"C{colour + 2}", label=f"{rows} to {name}")
    right.set(xlabel="layer", ylabel="share of attention", title="Between the modalities", ylim=(-0.03, 1.03))
    right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    study.figure(figure, "exit", source=ds, says="keys hidden from a layer on; 95 % bootstrap intervals")


def single(ds: xr.Dataset) -> int:
    """The exit of one question by the rule of DyVTE's labels; the depth where it never leaves."""
    found = metrics.exit_layer(ds["agree"].values, (ds["loss"].values + FLOOR) / (float(ds["full_loss"]) + FLOOR))
    return ds.sizes["layer"] if found is None else found


def judge_exit(study: Study, ds: xr.Dataset) -> None:
    """State what was found of the exit."""
    picture = ds.sel(leaves="picture", drop=True)
    ratio = (picture["loss"].mean("prompt") + FLOOR) / (float(picture["full_loss"].mean()) + FLOOR)
    early = metrics.exit_layer(picture["agree"].mean("prompt").values, ratio.values)
    last = Estimate.mean((picture["loss"] - picture["full_loss"]).isel(layer=-1, drop=True), "+.3f", "nat")
    study.claim(
        "labels", "From some layer on, hiding the picture changes nothing",
        paper="agreement over 99 %, loss under 1.03 of the full one",
        found=f"{'no layer' if early is None else f'layer {early}'} of {ds.sizes['layer']} fits both rules; where it "
        f"leaves in the last layer the loss changes by {last.counted}", agrees=early is not None,
    )  # fmt: skip
    gain = ds["loss"] - ds["full_loss"]
    half = gain.isel(layer=ds.sizes["layer"] // 2, drop=True)
    gap = Estimate.paired(half.sel(leaves="picture", drop=True), half.sel(leaves="question", drop=True), "+.2f", "nat")
    study.claim(
        "control", "Half-way through, the picture is needed more than the question's words", paper="", number=gap,
        found="loss where the picture leaves less that where the words do", agrees=gap.above(0.0),
    )  # fmt: skip


def main() -> None:
    """Measure, draw, and state what was found."""
    with Study(__doc__, paper="dyvte", model="zoo:vlm-shapes") as study:
        model, n = study.model, 6 if study.quick else 64
        asked = scene_questions(model, n, seed=53)
        ds = study.reading("exit", lambda: exits(model, asked))
        draw(study, ds)
        judge_exit(study, ds)
        arms = {"plain": [], **MASKS}
        scores = study.reading("masks", lambda: join_arms(
            {name: answer_score(model, asked.examples, edits) for name, edits in arms.items()}
        ))  # fmt: skip
        value = change_bars(study, scores, "masks", "Other masks between picture and question")
        words, agrees = compare_arms(value, "EE-MLLM", "no picture", 1)
        study.claim(
            "EE-MLLM", "Attention among visual tokens matters less than the picture does", paper="", found=words,
            agrees=agrees,
        )  # fmt: skip
        for name, claim, paper in (
            ("EE-MLLM", "Without attention among visual tokens the answer is no worse", "no loss, trained so"),
            ("AKI", "Visual tokens that read the question help", "higher scores, trained so"),
            ("MODA", "Visual tokens that see one another both ways help", "higher scores, trained so"),
        ):
            words, agrees = compare_arms(value, name, "plain", 1)
            study.claim(name, claim, paper=paper, found=words, agrees=agrees)


if __name__ == "__main__":
    main()
