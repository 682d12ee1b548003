"""Which attention has a sink when trained with it: another softmax, learned keys and values, gated heads.

Paper: Gu et al. 2025, tables on attention biases and attention operations; Qiu et al. 2025 on gated heads; Miller on
softmax-off-by-one. Claims: trained without a sum that has to be one (sigmoid) a model has no sink; with a learned key
that carries no value that key is the sink and the first token is none; gated heads have none.
Cost: none, the training curves are shipped; so there is no ``--model``.
Different here: language models of 1.5 million parameters, every variant with a curve in the zoo, each judged against
the plain softmax model of the same seeds at the same step of the same schedule. What a claim predicts and when it holds
is said once, in ``recipes.emergence``, which also makes the zoo's page. Seeds are the unit: from three on there is an
interval, below that each seed's number. Sigmoid weights are divided by their sum over the row for the measurement only,
as in the paper. What another normaliser does to a trained model is asked by
``ablations/null_key_and_normalisers.py``: that is no evidence on training.
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from recipes import emergence, seeds
from sinkscope.analysis import Estimate, Study

GONE = "the first token is no sink"
CLAIMS = {
    "sigmoid": ("Attention operations", f"Trained with sigmoid, {GONE}", "0.44 % against 18.18 %"),
    "extra-key": ("Attention biases", f"Trained with a learned key without value, {GONE}", "Sink_1 = 0.00 %"),
    "key-value-bias": ("Attention biases", f"Trained with a learned key and value, {GONE}", "no number in our notes"),
    "gate": ("Qiu et al.", f"Trained with gated heads, {GONE}", "attention on it .048 against .467"),
    "gate-elements": ("Qiu et al.", f"Trained with a gate per element, {GONE}", "attention on it .048 against .467"),
    "value-bias": ("Attention biases", "Trained with a learned vector added to each head's output, the first token is "
                   "a sink", "no number in our notes"),
    "softmax1": ("Miller", "Trained with softmax-off-by-one, the first token is a weaker sink or none", "no number"),
    "sigmoid-normalised": ("Attention operations", "Trained with sigmoids over their sum, the first token is more of a "
                           "sink", "30.24 % against 18.18 %"),
    "alibi": ("Positions", "Trained with ALiBi, the first token is a sink", "20.78 % against 18.18 %"),
    "learned": ("Positions", "Trained with learned positions, the first token is more of a sink", "33.13 against "
                "18.18 %"),
    "none": ("Positions", "Trained without positions, the first token is a sink", "20.35 % against 18.18 %"),
    "prefix": ("Masks", "Trained with five keys in front that every query sees, the first token is a sink", "no number "
               "in our notes"),
    "sink-token": ("Xiao et al. 2024", "Trained with a token in front that stands for no text, it is the sink", "no "
                   "number in our notes"),
    "fixed-at": ("Data", "Trained with one token third in every text, it is the sink", "69.64 % on it"),
    "random-first": ("Data", "Trained with a random token in front, it is more of a sink", "27.03 % against 18.18 %"),
    "no-bos": ("Open models", "Trained without a token of its own in front, the first token is the sink",
               "GPT-2 XL 77.0 %"),
}  # fmt: skip
"""Where the paper says it, in which words, with which number; the rule is that of ``emergence.ARCHITECTURE``."""
KEYS = {"sink_rate_after_first": "sink rate", "alpha_mean": "mean attention", "loss": "loss"}


def draw(study: Study, step: int, trained: dict[str, emergence.Pair]) -> None:
    """Bars of sink rate and mean attention by variant."""
    both = [[pair.own[key].mean() for key in list(KEYS)[:2]] for pair in trained.values()]
    shown = xr.DataArray(both, {"arm": list(trained), "what": ["sink rate, layers 1 up", "mean attention"]})
    figure, axes = plt.subplots(figsize=(9.2, 4.4))
    sk.plot.grouped_bars(shown, ylabel="first token", title="Trained with it, mean over seeds", ax=axes)
    axes.set_xticks(axes.get_xticks(), list(trained), rotation=40, ha="right")  # side by side they would run together
    source = shown.assign_attrs(model_id=f"{emergence.BASE} and its variants", n_prompts=64)
    study.figure(
        figure, "variants", source=source,
        says="sink rate: share of heads beyond layer 0 with mean attention to the first token above 0.3, T = 64; from "
        f"training curves at step {step}",
    )  # fmt: skip


def beside(pair: emergence.Pair, rule: str, held: np.ndarray) -> Estimate:
    """Difference of the sink rate to softmax over the seeds, and in how many of these the rule of the claim holds."""
    if rule == "third":  # a rate of its own: plain runs have another token there in every text
        rate = 100 * pair.own["sink_rate_third"]
        said = f"% of the heads have their sink on the third token, as claimed in {held.sum()} of {len(held)}"
        return Estimate(float(rate.mean()), np.nan, np.nan, len(rate), said, ".0f", "seeds")
    points = 100 * (pair.own["sink_rate_after_first"] - pair.plain["sink_rate_after_first"])
    mean, ends = seeds.mean_and_interval(points)
    by_seed = "" if ends else f" ({', '.join(f'{value:+.0f}' for value in points)} by seed)"
    unit = f"points of sink rate beside softmax{by_seed}, as claimed in {held.sum()} of {len(held)}"
    return Estimate(mean, *(ends or (np.nan, np.nan)), len(points), unit, "+.0f", "seeds")


def main() -> None:
    """Draw what the variants do and judge each claim over its seeds."""
    with Study(__doc__, paper="gu2025", model=()) as study:
        asked = {kind: claim for kind, claim in emergence.ARCHITECTURE.items() if kind in CLAIMS}
        step, trained = emergence.common_step(emergence.compared(asked))
        draw(study, step, trained)
        for name, (where, claim, paper) in CLAIMS.items():
            study.subject = f"zoo:lm-python-{name}"
            if name not in trained:
                study.claim(where, claim, paper=paper, agrees="no such run in the zoo", found="no such run in the zoo")
                continue
            pair = trained[name]
            told = ", ".join(
                f"{label} {pair.own[key].mean():.3g} (softmax {pair.plain[key].mean():.3g}, difference "
                f"{seeds.text(pair.own[key] - pair.plain[key], spec='+.2g')})" for key, label in KEYS.items()
            )  # fmt: skip
            held = emergence.holds(asked[name].rule, pair)
            found = (
                f"after {step} steps {told}; in {held.sum()} of {len(held)} seeds {emergence.RULES[asked[name].rule]}"
            )
            seen = bool((pair.plain["sink_rate_after_first"] > 0).all())
            agrees = bool(held.all()) if seen else "softmax has no sink at that step either"
            study.claim(
                where, claim, paper=paper, number=beside(pair, asked[name].rule, held), found=found, agrees=agrees
            )


if __name__ == "__main__":
    main()
