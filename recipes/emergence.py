"""The page on language-model variants along training, made from the shipped curves: which changes make a sink emerge.

After Gu et al. 2025, section 7 (attention operations, key biases, windows), and Qiu et al. 2025 (head-wise gates). The
papers compare models of 60 million parameters and more at the end of training; here the variants share data, schedule
and seeds with a plain softmax model and are compared at the step that all runs have reached, before the learning rate
falls. Seeds are the unit: a difference is paired by seed, its interval is Student's over the seeds.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes import seeds
from recipes.language_model import command
from sinkscope import zoo

SHIPPED = "lm-python"
BASE = f"{SHIPPED}-softmax"
"""The run that variants are compared with: everything plain."""

LENGTH = 64
"""Tokens of the windows on which a run measures itself."""

COLUMNS = {
    "alpha_mean": "mean attention to the first token",
    "alpha_max": "in the best head",
    "sink_rate_after_first": "heads over .3, layers 1+",
    "value_ratio": "value norm / median",
    "massive": "largest / median magnitude",
    "loss": "held-out loss (nat)",
}

Cells = dict[str, NDArray[np.float64]]
"""Column to its numbers, one per seed."""


@dataclass(frozen=True)
class Expectation:
    """What a paper says of a change, and what must hold in every seed for the runs to agree with it."""

    what: str
    paper: str
    rule: str


OPERATIONS = {
    "sigmoid": Expectation("sigmoid attention, rows not normalised (Gu et al.)", "no sink", "fewer"),
    "softmax1": Expectation(
        "softmax with one more logit of 0 (Gu et al.; Miller)", "no or a weaker sink on the first token", "fewer"
    ),
    "extra-key": Expectation(
        "a learned key without value in each head (Gu et al., key bias)", "the learned key takes the sink over", "fewer"
    ),
    "key-value-bias": Expectation(
        "a learned key with a learned value in each head (Gu et al., key-value bias)",
        "the learned key takes the sink over", "fewer",
    ),
    "gate": Expectation(
        "a sigmoid gate after each head (Qiu et al.)", "no sink, no massive activation", "fewer and smaller"
    ),
    "gate-elements": Expectation(
        "a sigmoid gate on each element of a head's output (Qiu et al.)", "no sink, no massive activation",
        "fewer and smaller",
    ),
    "sigmoid-normalised": Expectation("sigmoids over their sum (Gu et al.)", "more of a sink, 30.2 and 18.2 %", "more"),
    "value-bias": Expectation(
        "a learned vector added to each head's output (Gu et al., value bias)", "no number in our notes", "some"
    ),
}  # fmt: skip
"""What is changed in the attention, by the end of the run's name."""

SIGHT = {
    "alibi": Expectation("ALiBi, not rotary positions (Gu et al.)", "a sink as with rotary, 20.8 and 18.2 %", "some"),
    "learned": Expectation("learned positions (Gu et al.)", "more of a sink than with rotary, 33.1 and 18.2 %", "more"),
    "none": Expectation("no positions (Gu et al.)", "a sink as with rotary, 20.4 and 18.2 %", "some"),
    "prefix": Expectation(
        "every query sees the first five keys, which are not predicted (Gu et al., prefix LM)",
        "no number in our notes", "some",
    ),
    "no-bos": Expectation("texts without <s>", "the first token is the sink whatever it is", "some"),
    "sink-token": Expectation(
        "a token that stands for no text in front of every text (Xiao et al.)", "the sink is on it", "some"
    ),
    "fixed-at": Expectation(
        "a padding token stands third in every text (Gu et al.)", "the sink is on it, 69 and 70 %", "third"
    ),
    "random-first": Expectation(
        "a token drawn at random in front of every text (Gu et al.)", "more of a sink, 27.0 and 18.2 %", "more"
    ),
    "window": Expectation(
        "queries see the last 32 keys only (Gu et al.)",
        "the sink stays on the first token of the text, not of the window", "absolute",
    ),
}  # fmt: skip
"""What is changed in what the attention sees: positions, masks, the tokens in front."""

ARCHITECTURE = OPERATIONS | SIGHT

RECIPE = {
    "weight-decay": Expectation("weight decay .5, not .3 (Gu et al.)", "more sinks up to .5, fewer from 2 on", "more"),
    "learning-rate": Expectation("learning rate 6e-3, not 4e-3 (Gu et al.)", "more sinks, and earlier", "more"),
    "depth": Expectation("8 layers of width 112, not 6 of 128", "not asked", "more"),
    "repeats": Expectation(
        "half of the windows say a span again and again, not three in ten",
        "a head with nothing to copy attends to the first token (Guo et al.)", "more",
    ),
    "repeats-more": Expectation("seven in ten of them", "as above", "more"),
    "heads": Expectation(
        "8 heads of width 16, not 4 of 32, and half of the windows say a span again", "not asked", "more"
    ),
    "as-shipped": Expectation(
        f"the recipe of `zoo:{SHIPPED}`: weight decay .5, four in ten of them", "a mixture chosen here", "more"
    ),
}  # fmt: skip
"""What is changed in the training."""

RULES = {
    "more": "more heads over .3 than softmax",
    "fewer": "less than half the heads of softmax over .3",
    "fewer and smaller": "less than half the heads over .3 and half the largest magnitude of softmax",
    "some": "some head over .3",
    "third": "some head over .3 on the third token",
    "absolute": "some head over .3 on the first token, none on the oldest key in view",
}


def compared(claims: dict[str, Expectation]) -> dict[str, str]:
    """Runs of the zoo that bear on some claims, by the kind that a claim names; the plain one is always first."""
    known = zoo.curves(f"{SHIPPED}-")
    kinds = {kind: f"{SHIPPED}-{kind}" for kind in claims if f"{SHIPPED}-{kind}" in known}
    shipped = {"as-shipped": SHIPPED} if "as-shipped" in claims and SHIPPED in zoo.curves() else {}
    return {"softmax": BASE} | kinds | shipped


@dataclass(frozen=True)
class Pair:
    """Numbers of a run, and those of the plain run with the same seeds in the same order."""

    own: Cells
    plain: Cells


def common_step(runs: dict[str, str]) -> tuple[int, dict[str, Pair]]:
    """The last step that every run has measured, and its numbers by kind.

    Only seeds that the base model has too are taken, so that all differences can be paired.
    """
    rows = {
        kind: {
            seed: {row["step"]: row for row in zoo.curve(name, seed)}
            for seed in zoo.seeds(name) if seed in zoo.seeds(BASE)
        }
        for kind, name in runs.items()
    }  # fmt: skip
    step = max(set.intersection(*(set(by_step) for group in rows.values() for by_step in group.values())))
    at = {kind: {seed: by_step[step] for seed, by_step in group.items()} for kind, group in rows.items()}
    plain = at["softmax"]
    return step, {
        kind: Pair(_cells(list(group.values())), _cells([plain[seed] for seed in group])) for kind, group in at.items()
    }


def _cells(rows: list[dict[str, Any]]) -> Cells:
    # Runs of one name may be of different versions of the recipe, and a later one measures more.
    shared = [key for key in rows[0] if key != "detail" and all(key in row for row in rows)]
    return {key: np.array([row[key] for row in rows]) for key in shared}


def page() -> str:
    """The page in Markdown; every number comes from the curves."""
    lines = ["# What makes the sink emerge", "", "<!-- made from the training curves; do not edit -->", ""]
    step, pairs = common_step(compared(ARCHITECTURE | RECIPE))
    tokens = pairs["softmax"].own["tokens"][0]
    lines += _paragraph(
        f"Language models of about one size on the same text, compared after {step} steps ({tokens / 1e6:.1f} million "
        f"tokens), in the middle of the schedule of `zoo:{SHIPPED}`. A seed decides weights and batches, the same for "
        "all. A cell is the mean over the seeds, with the lowest and highest in brackets; differences are paired by "
        "seed, with Student's 95 % interval from three seeds on. With one seed a difference says what this run did, "
        "not what every run does. Rows that do not sum to one are divided by their sum before the attention is "
        f"averaged (Gu et al.'s proxy). Uniform attention gives {_uniform(LENGTH):.3f} on {LENGTH} tokens, and "
        f"{_uniform(32):.3f} over the 32 queries that see the first token through the window."
    )
    for title, claims, figure in (
        ("The attention", OPERATIONS, "variants"), ("What it sees", SIGHT, "sight"),
        ("The training", RECIPE, "recipes"),
    ):  # fmt: skip
        lines += ["", f"## {title}", "", *_tables(claims, pairs), "", f"![Curves](language-model-{figure}.png)"]
    last = zoo.curve(SHIPPED)[-1]
    lines += ["", "## The language model to its end", "", "![Curves](language-model-emergence.png)", ""]
    lines += _paragraph(
        f"`zoo:{SHIPPED}` after {last['tokens'] / 1e6:.1f} million tokens: {last['sink_rate_after_first']:.0%} of the "
        f"heads beyond layer 0 over .3, {last['alpha_max']:.2f} in the best head, the largest magnitude "
        f"{last['massive']:.0f} medians. Its card is [here](lm-python.md)."
    )
    lines += ["", "## The commands", ""]
    lines += [f"- {name}: {_command(name)}" for name in compared(ARCHITECTURE | RECIPE).values() if name != SHIPPED]
    return "\n".join(lines) + "\n"


def _tables(claims: dict[str, Expectation], pairs: dict[str, Pair]) -> list[str]:
    cells = {kind: pairs[kind].own for kind in compared(claims)}
    lines = ["| run | seeds | " + " | ".join(COLUMNS.values()) + " |", "|---|---|" + "---|" * len(COLUMNS)]
    lines += [
        f"| {kind} | {len(cells[kind]['loss'])} | " + " | ".join(_cell(cells[kind][key]) for key in COLUMNS) + " |"
        for kind in cells
    ]
    lines += ["", "| change | the papers | here, beside softmax | agrees, in every seed, where |", "|---|---|---|---|"]
    return lines + [_verdict(claims[kind], pairs[kind]) for kind in cells if kind in claims]


def _paragraph(text: str) -> list[str]:
    return textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)


def _command(name: str) -> str:
    last, known = zoo.curve(name)[-1], zoo.seeds(name)
    seed, each = ("", "") if known == [0] else (" --seed N", f", N = {', '.join(map(str, known))}")
    took = f", {last['cpu_seconds'] / 60:.0f} minutes of one core" if "cpu_seconds" in last else ""
    return f"`{command(zoo.recipe(name), last['step'])}{seed}`{each}{took}"


def _cell(values: NDArray[np.float64]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3g}"
    return f"{values.mean():.3g} ({values.min():.3g} to {values.max():.3g})"


def _verdict(claim: Expectation, pair: Pair) -> str:
    differences = {key: pair.own[key] - pair.plain[key] for key in COLUMNS}
    found = [f"heads over .3: {seeds.text(differences['sink_rate_after_first'], 100, '+.0f')} points"]
    found.append(f"largest magnitude: {seeds.text(differences['massive'], 1, '+.0f')} medians")
    found.append(f"loss: {seeds.text(differences['loss'], 1, '+.2f')} nat")
    if "oldest_max" in pair.own:
        found.append(f"best head on the oldest key in view: {_cell(pair.own['oldest_max'])}")
    if claim.rule == "third":
        found.append(f"heads over .3 on the third token: {_cell(pair.own['sink_rate_third'])}")
    agrees = holds(claim.rule, pair)
    held = "yes" if agrees.all() else f"**no** ({agrees.sum()} of {len(agrees)} seeds)"
    return f"| {claim.what} | {claim.paper} | {'; '.join(found)} | {held}: {RULES[claim.rule]} |"


def holds(rule: str, pair: Pair) -> NDArray[np.bool_]:
    """Whether one of ``RULES`` holds, for each seed."""
    cells, base = pair.own, pair.plain
    share, before = cells["sink_rate_after_first"], base["sink_rate_after_first"]
    if rule == "more":
        return share > before
    if rule == "some":
        return share > 0
    if rule == "third":
        return cells["sink_rate_third"] > 0
    if rule == "absolute":
        return (share > 0) & (cells["oldest_max"] <= 0.3)
    fewer = share < before / 2
    return fewer & (cells["massive"] < base["massive"] / 2) if rule == "fewer and smaller" else fewer


def _uniform(length: int) -> float:
    """Mean over rows of one over the keys a row sees."""
    return sum(1 / (row + 1) for row in range(length)) / length
