"""Descriptions of pictures word by word: which words rest on heads that see the picture, and which heads those are.

Paper: He et al. 2025 (arXiv 2412.13949), figures 3b, 8 and 10. Claims: words for objects have a larger token score than
the phrases around them; those for objects that are not there a lower one than those that are; few heads diverge much,
and they vary by sample. Cost: a description and two passes for each of 48 pictures, 12 on a large model. Different
here: coloured shapes; an object is a phrase of colour and shape, scored at the first token of each of its words;
``zoo:vlm-shapes`` names all of clean pictures rightly, so noise lies on them; k = 4 (the paper gives none), or all
heads where there are fewer. Controls: objects that are there beside those that are not; the same description's maps.

    python analyses/he2025/captions.py --model zoo:vlm-smol-sinks
"""

from __future__ import annotations

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import Estimate, Study, describe_difference, has_sign, is_large
from sinkscope.engine.generation import written_texts
from sinkscope.methods.vhr import step_divergence, token_divergence
from sinkscope.plot.theme import SEQUENTIAL, SINK
from sinkscope.tasks.scene_captions import scene_captions

GRAIN, LINE = 20.0, 62
"""Noise on the pictures of a small model, 0 to 255; characters in a line of the shaded description."""
MODELS = ("zoo:vlm-smol-sinks", "zoo:vlm-shapes")


def measured(model: sk.Model, n: int) -> xr.Dataset:
    """Divergence of every head at every token (prompt step layer head), what the token is, and CHAIR."""
    asked = scene_captions(model, n, seed=5, grain=0.0 if is_large(model) else GRAIN)
    written = sk.generate(model, asked.prompts, max_new_tokens=48)
    words, score = asked.words(model, written), asked.score(written_texts(model, written))
    found = step_divergence(model, written)
    attrs = sk.run(model, asked.prompts.subset([0]), [sk.Logits()]).attrs | {"n_prompts": n}
    return xr.merge([words, score]).assign(divergence=found).assign_attrs(attrs)


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw, and state what was found on one model."""
    ds = study.reading("captions", lambda: measured(model, 6 if study.quick else 12 if is_large(model) else 48))
    some = Estimate.mean((ds["found"] > 0).astype(float), ".2f")
    study.claim(
        "check", "Descriptions name something that is in the picture", paper="", number=some, agrees=some.above(0.9),
        found=f"share of descriptions that do; of what is there {float(ds['recall']):.0%} is named, "
        f"{float(ds['chair_i']):.0%} of {int(ds['mentions'].sum())} objects named are not there (CHAIR_I), in "
        f"{float(ds['chair_s']):.0%} of descriptions (CHAIR_S), {float(ds['length'].mean()):.1f} words long",
    )  # fmt: skip
    score = token_divergence(ds["divergence"], min(4, ds.sizes["head"])).where(ds["text"] != "")
    named, there = ds["mention"] >= 0, ds["there"].astype(bool)
    starts = ds["starts"].astype(bool)
    study.claim(**compare("Fig. 8", "Objects are darker than the words around them", "first mentions dark",
                          score.where(starts).mean("step"), score.where(~named).mean("step"), ds))  # fmt: skip
    study.claim(
        **compare(
            "Figs. 3b, 8",
            "Objects that are not there are paler than those that are",
            "shifted left",
            score.where(starts & there).mean("step"),
            score.where(starts & ~there).mean("step"),
            ds,
        )
    )
    heads(study, ds, score)
    draw_caption(study, ds, score)


def compare(figure: str, claim: str, paper: str, one: xr.DataArray, other: xr.DataArray, ds: xr.Dataset) -> dict:
    """Compare two scores within the descriptions that have both."""
    both = (one - other).dropna("prompt")
    means = f"{float(one.mean()):.2f} against {float(other.mean()):.2f}"
    if both.sizes["prompt"] < 3:
        return {"figure": figure, "claim": claim, "paper": paper, "found": f"{means} in {both.size} descriptions",
                "agrees": f"only {both.size} of {ds.sizes['prompt']} descriptions have both"}  # fmt: skip
    words, found = describe_difference(both, digits=2)
    verdict = has_sign(found)
    return {"figure": figure, "claim": claim, "paper": paper, "found": f"{means}; within descriptions {words}",
            "agrees": verdict if verdict is not None else "the interval holds 0"}  # fmt: skip


def heads(study: Study, ds: xr.Dataset, score: xr.DataArray) -> None:
    """Draw maps of heads of three descriptions at three steps; judge how few they are and how much they vary."""
    maps = ds["divergence"].transpose("prompt", "step", "layer", "head").values
    flat = maps.reshape(*maps.shape[:2], -1)
    ranked = np.sort(flat, -1)[..., ::-1]
    tenth = max(1, round(flat.shape[-1] / 10))
    share = Estimate.mean(xr.DataArray(np.nanmean(ranked[..., :tenth].sum(-1) / ranked.sum(-1), 1), dims="prompt"))
    study.claim("Figs. 2, 10", "Few heads hold most of the divergence", paper="few bright heads", number=share,
                found=f"part that a tenth of the heads ({tenth}) holds", agrees=share.above(0.5))  # fmt: skip
    places = [[int(np.argmax(own == phrase)) for phrase in (0, 1)] for own in ds["mention"].values if own.max() > 0]
    two = np.flatnonzero(ds["mention"].values.max(1) > 0)
    first, later = (flat[two, [pair[phrase] for pair in places]] for phrase in (0, 1))
    alike = np.array([[np.corrcoef(a, b)[0, 1] for a, b in zip(first, other, strict=True)]
                      for other in (later, np.roll(first, 1, 0))])  # fmt: skip
    gap = Estimate.paired(xr.DataArray(alike[1], dims="prompt"), xr.DataArray(alike[0], dims="prompt"), "+.2f")
    study.claim(
        "Fig. 10", "The bright heads vary more between pictures than within a description", number=gap,
        paper="pattern varies by sample", agrees=gap.below(0.0),
        found="correlation of the map at the first phrase with that of another picture "
        f"({alike[1].mean():.2f}), less that with the second phrase of the same description ({alike[0].mean():.2f})",
    )  # fmt: skip
    long = np.flatnonzero((ds["text"] != "").sum("step").values >= 6)[:3].tolist()
    drawn = {
        f"{place + 1}, token {step + 1}: {str(ds['text'].values[which, step]).strip()}": ds["divergence"].isel(
            prompt=which, step=step, drop=True
        ).assign_attrs(ds.attrs)
        for place, which in enumerate(long) for step in (0, 1, 5)
    }  # fmt: skip
    axes = sk.plot.panels(sk.plot.sink_map, drawn, columns=3, height=0.8, vmax=float(np.nanmax(maps[long])),
                          label="divergence")  # fmt: skip
    says = f"distance of a head's output with and without the picture, where the token is predicted; {len(long)} texts"
    study.figure(axes[0], "heads", source=ds, says=says)


def draw_caption(study: Study, ds: xr.Dataset, score: xr.DataArray) -> None:
    """Draw the descriptions of three pictures, each token as dark as its score, objects that are not there framed."""
    wrong = ds["wrong"].values
    chosen = sorted(np.argsort(abs(wrong - 1), kind="stable")[:3].tolist())
    low, top, lines = float(score.isel(prompt=chosen).min()), float(score.isel(prompt=chosen).max()), 0.0
    figure, axes = plt.subplots(figsize=(7.4, 2.6))
    for which in chosen:
        column = 0
        for step, text in enumerate(ds["text"].values[which]):
            if not (shown := str(text)):
                continue
            if column + len(shown) > LINE:
                lines, column = lines + 1, 0
            value = (float(score[which, step]) - low) / (top - low)
            made_up = bool(ds["mention"][which, step] >= 0) and not bool(ds["there"][which, step])
            axes.add_patch(plt.Rectangle((column, lines + 0.1), len(shown), 0.8, facecolor=SEQUENTIAL(value),
                                         edgecolor=SINK if made_up else "none", linewidth=1.6))  # fmt: skip
            axes.text(column + len(shown) / 2, lines + 0.5, shown.strip(), ha="center", va="center", fontsize=8.5,
                      family="monospace", color="white" if value > 0.6 else "black")  # fmt: skip
            column += len(shown)
        lines += 1.5
    axes.set(xlim=(-0.5, LINE + 0.5), ylim=(lines, -0.2), title="Words shaded by token score")
    axes.set_axis_off()
    scale = plt.cm.ScalarMappable(plt.Normalize(low, top), SEQUENTIAL)
    figure.colorbar(scale, ax=axes, label="token score", fraction=0.03, pad=0.01)
    says = textwrap.shorten(f"three of {ds.sizes['prompt']} descriptions; framed: not in the picture", 200)
    study.figure(figure, "caption", source=ds, says=says)


if __name__ == "__main__":
    with Study(__doc__, paper="he2025", model=MODELS) as study:
        study.for_each(judge)
