"""Sink rate over models and kinds of input: prose, code, random tokens, one token repeated.

Paper: Gu et al. 2025, Table 1 and figure 1 (share of heads whose mean attention to the first token is above 0.3, T =
64). Claim: random tokens have sinks too, somewhat fewer; when one token is repeated they are gone in models with rotary
positions (identical tokens share them) and stay in models with learned absolute positions.
Cost: one pass per kind of input and model, seconds to a minute.
Different here: small models, and MiniLM, an encoder with learned positions (its key mass averages all rows); 32
sequences instead of 100; natural text is SciPy's docstrings; intervals are over sequences.
"""

import xarray as xr

import sinkscope as sk
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study, with_intervals
from sinkscope.analysis.texts import specials

KINDS = ("prose", "code", "random", "repeated", "all the same")
"""``repeated`` follows the model's own first token; in ``all the same`` the first token is that one too (the paper)."""


def prompts_of(study: Study, kind: str, model: sk.Model) -> sk.Prompts:
    """The prompts of a kind."""
    if kind != "all the same":
        return study.texts(kind)
    ids = study.texts("repeated").ids
    return sk.Prompts.from_ids([[int(row[len(row) // 2])] * len(row) for row in ids], model)


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw and judge one model."""
    kinds = KINDS if any(specials(model)) else tuple(kind for kind in KINDS if kind != "repeated")
    readings = [study.run(prompts_of(study, kind, model), [sk.KeyMass()]) for kind in kinds]
    rates = [sk.metrics.sink_rate(ds, over=("layer", "head")) for ds in readings]
    rate = xr.concat(rates, dim=xr.Variable("input", list(kinds)))
    table = with_intervals(rate)
    shown = table["difference"].assign_attrs(long_name="sink rate", units="share of heads")
    bars = [array.expand_dims("series", axis=1) for array in (shown, table["low"], table["high"])]
    axes = sk.plot.grouped_bars(bars[0], interval=(bars[1], bars[2]), title="Sink rate by kind of input")
    study.figure(
        axes, "sink_rate_by_input", source=readings[0],
        says="share of heads with mean attention to the first token above 0.3, T = 64; 95 % intervals over prompts",
    )  # fmt: skip

    at = {kind: Estimate.of(table, ".1%", input=kind) for kind in kinds}
    rotary = "rope" in str(model.config).lower()
    seen = at["prose"].value > 0.02
    study.claim(
        "Table 1", "Random tokens have sinks too", number=at["random"],
        paper="LLaMA2-7B 92.5 % natural, 90.1 % random; Mistral-7B 97.5 %, 75.2 %",
        found=f"random tokens; {at['prose']} prose, {at['code']} code",
        agrees=at["random"].above(0.5 * at["prose"].value) if seen else "next to no head has a sink on prose",
    )  # fmt: skip
    same, behind = at[KINDS[4]], f"; behind a first token of its own {at['repeated']}" if "repeated" in at else ""
    bound = 0.2 * at["prose"].value
    study.claim(
        "Table 1", f"One token 64 times: sinks {'vanish, rotary' if rotary else 'stay, learned'} positions",
        paper="0.0 % Mistral, LLaMA" if rotary else "GPT2-XL 62.3 % against 77.0 % natural", number=same,
        found=f"one token 64 times, {at['prose']} prose{behind}",
        agrees=(same.below(bound) if rotary else same.above(bound)) if seen else "next to no head has a sink on prose",
    )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="gu2025", model=(*LANGUAGE_MODELS, "minilm")) as study:
        study.for_each(judge)
