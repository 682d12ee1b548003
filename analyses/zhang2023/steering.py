"""Steering attention to a part of the prompt: how strongly, in how many heads, and how much of it is the sink?

Paper: Zhang et al. 2023 (PASTA), accuracy over alpha and over the number of steered heads (curves recalled, not seen).
Claims: the result is the same over a broad range of alpha; steering all heads is worse than steering none.
Cost: one head profile and 24 passes per question, half a minute on the zoo model, two minutes on a language model.
Different here: copying a list that was said before, made of held-out source code, with the whole list as the part to
turn to; it holds the answer among the other options, and the first token. Models with a chat template judge a short
review instead and turn to the sentence that decides, beside one that does not; it holds no option. There the score is
accuracy by label logits, as a chat seldom begins with the answer; elsewhere exact match is drawn, and a gain or a loss
has to hold by label logits too, which an answer format that comes or goes does not move. Heads are ranked on
calibration questions, the curves are of others. Models of more than 20 M parameters are asked fewer questions, with
fewer values of alpha, and their heads are ranked by one backward pass per question. PASTA scales the first token down
with everything else outside the part: so beside it PASTA with the first token kept, and the first token alone scaled,
which tell steering from removing a sink.
"""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope import metrics, tasks
from sinkscope.analysis import LANGUAGE_MODELS, Study, ask, is_large, points_above, points_by_score, together
from sinkscope.analysis.claims import Verdict
from sinkscope.methods.zerotuning_heads import estimate, helpful_heads, profile

ALPHAS = (0.0001, 0.001, 0.01, 0.1, 0.5, 1.0)
FEWER = (0.001, 0.01, 0.1, 1.0)
FOCUS = {
    "copy": "the whole list, the answer and the other options in it",
    "sentiment": "the sentence that decides, no option in it",
}
"""What attention is turned to, by task."""
AT, FLAT, SAME = 0.01, 0.1, 10.0
"""The alpha that is judged, the end of the paper's flat range, and the most points that its accuracies are apart."""
SCORES = {"exact": "exact match", "correct": "accuracy by label logits"}


def measure(model: sk.Model, name: str, quick: bool) -> xr.Dataset:
    """Scores (edit prompt) of all arms on the test questions."""
    large = is_large(model)
    task = ask(model, name, *((6, 8) if quick else (12, 32) if large else (40, 120)))
    questions, asked = (tasks.Questions.of(part, model) for part in (task.calibration, task.test))
    focus, turned = asked.focus(model), questions.focus(model)
    if large:
        lengths = xr.DataArray(list(questions.prompts.lengths), dims="prompt")
        others = ~turned & (xr.DataArray(range(turned.sizes["key"]), dims="key") < lengths)
        found = estimate(model, questions, sk.ScaleKeys(0.01, keys=others), by="loss")
    else:
        found = profile(model, questions, sk.SteerKeys(0.01, keys=turned), by="loss", batch_size=16)
    total = int((found["head_class"] != "").sum())
    heads = metrics.head_list(helpful_heads(found, max(1, total // 4)))
    ranks = xr.zeros_like(found["gain"], dtype=int)
    ranks.values.flat[np.argsort(-found["gain"].values, axis=None)] = range(ranks.size)
    variants: dict[str, list[sk.edits.Edit]] = {}
    for alpha in FEWER if large else ALPHAS:
        edit = sk.SteerKeys(alpha, keys=focus, heads=heads)
        variants[f"steered|{alpha:g}"] = [edit]
        variants[f"steered, first token kept|{alpha:g}"] = [replace(edit, protect_sink=True)]
        variants[f"first token alone|{alpha:g}"] = [sk.ScaleKeys(alpha, heads=heads)]
    for count in sorted({1, total // 4, total // 2, total} | (set() if large else {2, 4})):
        variants[f"heads|{count}"] = [sk.SteerKeys(0.01, keys=focus, heads=metrics.head_list(ranks < count))]
    return tasks.evaluate(model, asked, variants, batch_size=16).assign_attrs(focus_holds_first=int(holds_first(focus)))


def holds_first(focus: xr.DataArray) -> bool:
    """Whether the focus of every prompt holds its first token: then keeping that token is no control."""
    return bool(focus.isel(key=0).all())


def judge(study: Study, model: sk.Model) -> None:
    """Steer, draw accuracy over alpha and over the number of heads, compare the arms."""
    chat = is_large(model) and getattr(model.tokenizer, "chat_template", None)
    name = "sentiment" if chat else tasks.suited(model, "logiqa", "boolq")[-1]
    ds = study.reading(f"steering_{name}", lambda: measure(model, name, study.quick))
    score = "correct" if chat else "exact"
    said = SCORES[score]
    labels = [label.split("|") for label in ds["edit"].values.tolist()]
    arms = list(dict.fromkeys(arm for arm, _ in labels if arm != "heads"))
    alphas = [float(text) for arm, text in labels if arm == arms[0]]
    cells = [ds[score].sel(edit=[f"{arm}|{a:g}" for a in alphas]).assign_coords(edit=alphas) for arm in arms]
    curve = xr.concat(cells, xr.Variable("arm", arms)).rename(edit="alpha")
    counts = [int(text) for arm, text in labels if arm == "heads"]
    wide = ds[score].sel(edit=[f"heads|{n}" for n in counts]).assign_coords(edit=counts).rename(edit="heads")

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2))
    for values, x, at, ax in ((curve, "alpha", 1.0, left), (wide, "heads", None, right)):
        share = tasks.rate(values)
        drawn = share["value"].rename("accuracy").assign_attrs(long_name=said)
        sk.plot.sweep_curve(drawn, x=x, interval=(share["low"], share["high"]), reference=at, ax=ax)
    left.set_xscale("log")
    right.axhline(float(curve.sel(alpha=1.0, arm="steered").mean()), color="black", linestyle=":")
    says = (
        f"{said} on {name}, steered to {FOCUS.get(name, 'the focus of each question')}; left: over alpha, in the "
        "quarter of the heads that gain most on calibration questions (first token alone: nothing else scaled); right: "
        "over the number of such heads, alpha 0.01; dotted: not steered; bands: 95 % Wilson"
    )
    study.figure(figure, "steering", source=ds, says=says)

    state(study, ds, (name, alphas, counts[-1]), {said: ds[score]} | {SCORES["correct"]: ds["correct"]})


def state(study: Study, ds: xr.Dataset, arms: tuple[str, list[float], int], scores: dict[str, xr.DataArray]) -> None:
    """Compare the arms by each score; ``arms`` are the task, the values of alpha and the largest number of heads."""
    (name, alphas, most), at = arms, f"steered|{AT:g}"
    gain, helps = points_by_score(scores, at, "steered|1")
    loss, worse = points_by_score(scores, "steered|1", f"heads|{most}")
    more, sink = points_by_score(scores, at, f"steered, first token kept|{AT:g}")
    if helps is not True:
        sink = "steering gains nothing for sure"
    elif ds.attrs["focus_holds_first"]:
        sink = "the part to turn to holds the first token, so keeping it changes nothing"
    alone, _ = points_by_score(scores, f"first token alone|{AT:g}", "steered|1")
    apart, flat = broad(scores, [alpha for alpha in alphas if alpha <= FLAT])
    for which, claim, paper, found, agrees in (
        ("gain", "Steering to the part that matters helps", "LLaMA-7B: about +22 points on average",
         f"at alpha {AT} {gain}", helps),
        ("alpha", "The result is the same over a broad range of alpha", "flat from 0.001 to 0.1", apart, flat),
        ("heads", "Steering all heads is worse than no steering", "worse",
         f"no steering less all {most} heads {loss}", worse),
        ("control", "Part of the gain is the first token scaled down", "",
         f"steering less steering with the first token kept {more}; that token alone {alone}", sink),
    ):  # fmt: skip
        study.claim(which, claim, paper=paper, found=f"{found}; questions of {name}", agrees=agrees)


def broad(scores: dict[str, xr.DataArray], alphas: list[float]) -> tuple[str, Verdict]:
    """How far the best alpha is above the worst by each score, and whether less than ``SAME`` points by all."""
    told, verdicts = [], []
    for said, values in scores.items():
        shares = {alpha: float(values.sel(edit=f"steered|{alpha:g}").mean()) for alpha in alphas}
        best, worst = (f"steered|{pick(shares, key=shares.__getitem__):g}" for pick in (max, min))
        apart, *_ = points_above(values.sel(edit=best), values.sel(edit=worst))
        listed = ", ".join(f"{share:.0%} at {alpha:g}" for alpha, share in shares.items())
        told.append(f"{apart.counted} from the worst to the best alpha by {said} ({listed})")
        verdicts.append(apart.below(SAME) if apart.value else True)
    return "; ".join(told), together(verdicts)


if __name__ == "__main__":
    with Study(__doc__, paper="zhang2023", model=LANGUAGE_MODELS) as study:
        study.for_each(judge)
