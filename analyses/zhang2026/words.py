"""Words that rest on little are refused: SGRS and LocoRE while writing, and the map of what each word rests on.

Paper: Zhang et al. 2026 (LVLMs-Saliency, arXiv 2601.20279), figure 2 and the two methods. Claims: words refused by SGRS
rest on less than those kept; the written words rest on more with it, and LocoRE raises what later words rest on. Cost:
some 600 passes with autograd, a minute on the zoo model. Different here: a language model that goes on with source
code, so the text before is the whole prompt but its first token; nobody says which words are hallucinated, so only what
the methods act on is judged; the control draws from the same five candidates and refuses none.

    python analyses/zhang2026/words.py --model zoo:lm-python
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import Study, describe_difference, has_sign
from sinkscope.methods.saliency import SgrsSettings, sgrs, word_map

FREE, REFUSED, BOOSTED = "drawn freely", "SGRS", "SGRS and LocoRE"


def written(model: sk.Model, prompts: sk.Prompts, words: int) -> xr.Dataset:
    """Saliency of each written word (arm prompt word), and whether it was drawn anew."""
    data = {"saliency": [], "redrawn": []}
    for alpha, edits in ((0.0, []), (0.6, []), (0.6, [sk.BoostRecent()])):
        steps = sgrs(model, prompts, SgrsSettings(alpha=alpha, max_new_tokens=words), edits=edits).steps
        step = steps.groupby("prompt").cumcount()
        again = steps.assign(step=step, redrawn=((steps["draws"] > 1) | ~steps["accepted"]).astype(float))
        for name, rows in data.items():
            rows.append(again.pivot(index="prompt", columns="step", values=name).to_numpy(float))
    reading = sk.run(model, prompts, [sk.TokenLoss()])
    return xr.Dataset(
        {name: (("arm", "prompt", "word"), np.array(rows)) for name, rows in data.items()},
        coords={"arm": [FREE, REFUSED, BOOSTED], "prompt": np.arange(len(prompts))}, attrs=reading.attrs,
    )  # fmt: skip


def draw(study: Study, ds: xr.Dataset, rests: xr.DataArray) -> None:
    """The map of one prompt, and the mean saliency along the written words."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(6.6, 6.6), layout="constrained", height_ratios=[1.4, 1])
    names = sk.plot.token_labels(list(rests["token"].values))
    shown = top.imshow(rests.values, cmap="Blues", aspect="auto", vmin=0)
    top.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    top.set_yticks(range(rests.sizes["query"]), [names[int(at)] for at in rests["query"].values], fontsize=7)
    top.set(title="What each written word rests on", xlabel="token before", ylabel="written")
    figure.colorbar(shown, ax=top, label="attention times gradient")
    for arm in ds["arm"].values:
        bottom.plot(ds["saliency"].sel(arm=arm).mean("prompt"), marker="o", markersize=3, label=str(arm))
    bottom.set(xlabel="written word", ylabel="saliency", title="While writing")
    bottom.legend()
    says = "attention times gradient in the row that predicts a word, second half of the layers; above: one prompt"
    study.figure(figure, "words", source=ds, says=says)


def main() -> None:
    """Measure, draw, and state what was found."""
    with Study(__doc__, paper="zhang2026", model="zoo:lm-python") as study:
        model, quick = study.model, study.quick
        texts = study.texts("code", n=12, tokens=24)
        ds = study.reading("written", lambda: written(model, texts, 3 if quick else 10))
        longer = sk.generate(model, texts.subset([0]), max_new_tokens=4 if quick else 10)
        draw(study, ds, word_map(model, longer))
        value = ds["saliency"].mean("word")
        for claim, one, other, paper in (
            ("With SGRS the written words rest on more", REFUSED, FREE, "words that rest on little are refused"),
            ("LocoRE raises what written words rest on", BOOSTED, REFUSED, "raised"),
        ):
            words, found = describe_difference(value.sel(arm=one, drop=True), value.sel(arm=other, drop=True))
            verdict = has_sign(found)
            share = float(ds["redrawn"].sel(arm=REFUSED).mean())
            study.claim(
                "SGRS and LocoRE", claim, paper=paper,
                found=f"saliency, {one} less {other}: {words}; {share:.0%} of the words were drawn anew under SGRS",
                agrees="the interval holds 0" if verdict is None else verdict,
            )  # fmt: skip


if __name__ == "__main__":
    main()
