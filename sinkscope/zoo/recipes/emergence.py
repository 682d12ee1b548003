"""The page on language-model variants along training, made from the shipped curves: which changes make a sink emerge.

After Gu et al. 2025, section 7 (attention operations, key biases), and Qiu et al. 2025 (head-wise gates). The papers
compare models of 60 million parameters and more at the end of training; here the variants share the data, the seed and
the schedule of ``zoo:lm-python`` and are compared at the step that all have reached, before the learning rate falls.
"""

from __future__ import annotations

from typing import Any

from sinkscope import zoo

BASE = "lm-python"
CLAIMS = {
    "sigmoid": ("sigmoid attention, rows not normalised (Gu et al.)", "no sink"),
    "softmax1": ("softmax with one more logit of 0 (Gu et al.; Miller)", "no or a weaker sink on the first token"),
    "extra-key": (
        "a learned key without value in each head (Gu et al., key bias)",
        "the learned key takes the sink over",
    ),
    "gate": ("a sigmoid gate after each head (Qiu et al.)", "no sink, no massive activation"),
    "no-bos": ("windows without <s>", "the first token is the sink whatever it is"),
}
COLUMNS = {
    "alpha_mean": "mean attention to the first token",
    "alpha_max": "in the best head",
    "sink_rate_after_first": "heads over .3, layers 1+",
    "value_ratio": "value norm / median",
    "massive": "largest / median magnitude",
    "loss": "held-out loss (nat)",
}


def common_step(names: list[str]) -> dict[str, dict[str, Any]]:
    """The row of each curve at the last step that all have measured."""
    rows = {name: {row["step"]: row for row in zoo.curve(name)} for name in names}
    step = max(set.intersection(*(set(by_step) for by_step in rows.values())))
    return {name: by_step[step] for name, by_step in rows.items()}


def page() -> str:
    """The page in Markdown; every number comes from the curves."""
    names = [BASE] + [name for name in zoo.curves("lm-") if name != BASE]
    rows = common_step(names)
    base = rows[BASE]
    lines = ["# What makes the sink emerge", "", "<!-- made from the training curves; do not edit -->", ""]
    lines += [
        f"Language models of one size, one seed and the same batches, compared after {base['step']} steps "
        f"({base['tokens'] / 1e6:.1f} million tokens), in the middle of the schedule of `zoo:{BASE}`. One seed each: a",
        "difference says what this run did, not what every run does. Rows that do not sum to one are divided by their",
        f"sum before the attention is averaged (the proxy of Gu et al.). Uniform attention gives {_uniform():.3f} on",
        "windows of 64 tokens.",
        "",
        "| model | " + " | ".join(COLUMNS.values()) + " |",
        "|---|" + "---|" * len(COLUMNS),
    ]
    lines += [f"| {name} | " + " | ".join(f"{rows[name][key]:.3g}" for key in COLUMNS) + " |" for name in names]
    lines += ["", "| change | the papers | here, beside softmax | agrees |", "|---|---|---|---|"]
    for name in names[1:]:
        lines.append(_verdict(name.removeprefix(f"{BASE}-"), rows[name], base))
    lines += ["", "![Curves of the variants](language-model-variants.png)", ""]
    lines += [
        "## The language model to its end",
        "",
        "![Curves of the language model](language-model-emergence.png)",
        "",
    ]
    last = zoo.curve(BASE)[-1]
    lines += [
        f"`zoo:{BASE}` after {last['tokens'] / 1e6:.1f} million tokens: {last['sink_rate_after_first']:.0%} of the",
        f"heads beyond layer 0 over .3, {last['alpha_max']:.2f} in the best head, the largest magnitude",
        f"{last['massive']:.0f}",
        "medians. Its card is [here](lm-python.md).",
        "",
    ]
    return "\n".join(lines)


def _verdict(kind: str, row: dict[str, Any], base: dict[str, Any]) -> str:
    what, paper = CLAIMS.get(kind, (kind, "not in the papers"))
    share, before = row["sink_rate_after_first"], base["sink_rate_after_first"]
    agrees = share > 0 if kind == "no-bos" else share < before / 2
    if kind == "gate":
        agrees = agrees and row["massive"] < base["massive"] / 2
    found = (
        f"heads over .3: {share:.0%} against {before:.0%}; largest magnitude {row['massive']:.0f} against "
        f"{base['massive']:.0f} medians; loss {row['loss'] - base['loss']:+.2f}"
    )
    return f"| {what} | {paper} | {found} | {'yes' if agrees else '**no**'} |"


def _uniform(length: int = 64) -> float:
    """Mean over rows of one over the keys a row sees."""
    return sum(1 / (row + 1) for row in range(length)) / length
