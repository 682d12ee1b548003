"""Does the sink belong to the first position or to the token that stands there?

Paper: Gu et al. 2025, section on open models and table on data. Claims: in models whose tokenizer puts no token of its
own in front, the token that comes first is the sink whatever it is; the sink follows how the data were made, so that a
token which always stood at some place in training draws the sink there.
Cost: one pass per arm, seconds to a minute per model.
Different here: the paper trains a model per arm for the second claim, here a trained model reads the same text in
several arrangements: as its tokenizer gives it; without its token in front, or, where it has none, with its
beginning-of-text token put in front; with an ordinary random token in front; with its own token moved to position 8.
The third claim cannot be seen in a model without a token of its own.
"""

import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study, with_intervals
from sinkscope.analysis.texts import specials

AT = 8
"""Where the model's own first token is moved to."""


def front(model: sk.Model) -> str:
    """What is said of the token that is put in front: its own, or one that its tokenizer does not put there."""
    return "own token" if specials(model)[0] else "beginning-of-text token"


def arrangements(model: sk.Model, ids: list[list[int]]) -> dict[str, list[list[int]]]:
    """The same texts in several arrangements, each of the same length."""
    own = specials(model)[0]
    given = own[-1] if own else getattr(model.tokenizer, "bos_token_id", None)
    vocabulary = int(model.config.get_text_config().vocab_size)
    draws = np.random.default_rng(0).integers(vocabulary // 4, vocabulary // 2, len(ids)).tolist()
    bare = [row[len(own) :] for row in ids]
    bare = [[*row, *row[: len(own)]] for row in bare]
    arms = {"text alone": bare, "random token in front": [[d, *r[:-1]] for d, r in zip(draws, bare, strict=True)]}
    if given is not None:
        arms[f"{front(model)} in front"] = [[given, *row[:-1]] for row in bare]
        arms[f"{front(model)} at {AT}"] = [[*row[:AT], given, *row[AT:-1]] for row in bare]
    return arms


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw and judge one model."""
    arms = arrangements(model, [row.tolist() for row in study.texts("prose").ids])
    plain, cells = None, []
    for ids in arms.values():
        ds = study.run(sk.Prompts.from_ids(ids, model), [sk.KeyMass()])
        rate = sk.metrics.sink_rate(ds, position=[0, AT], over=("layer", "head")).reset_coords(drop=True)
        cells.append(rate.assign_coords(key=["first position", f"position {AT}"]))
        plain = ds if plain is None else plain
    rate = xr.concat(cells, dim=xr.Variable("arrangement", list(arms)))
    table = with_intervals(rate)
    shown = table["difference"].transpose("arrangement", "key")
    shown = shown.assign_attrs(long_name="sink rate", units="share of heads")
    axes = sk.plot.grouped_bars(shown, interval=(table["low"], table["high"]), title="Where the sink stands")
    study.figure(
        axes, "position_or_token", source=plain,
        says="share of heads with mean attention to the key above 0.3, T = 64; 95 % intervals over prompts",
    )  # fmt: skip

    def at(arm: str, key: str = "first position") -> Estimate:
        return Estimate.of(table, ".1%", arrangement=arm, key=key)

    alone, other = at("text alone"), at("random token in front")
    best = max(at(arm).value for arm in arms if "at" not in arm.split())
    seen = best > 0.02
    study.claim(
        "Open models", "Without a token of its own in front, the token that comes first is the sink",
        paper="GPT-2 and Pythia add no such token and have sinks (77.0 % GPT2-XL)", number=alone,
        found="; ".join(f"{at(arm)} with {arm}" for arm in arms if arm.endswith("front")),
        agrees=alone.above(0.5 * best) if seen else "no arrangement has a sink",
    )  # fmt: skip
    study.claim(
        "Open models", "Whatever token is put first is the sink", paper="random tokens: 70 to 91 %", number=other,
        found=f"a random token in front of the text, {alone} without",
        agrees=other.above(0.5 * best) if seen else "no arrangement has a sink",
    )  # fmt: skip
    token = front(model)
    moved = f"{token} at {AT}"
    if moved in arms:
        why_not = "" if seen else "no arrangement has a sink"
        why_not = why_not if specials(model)[0] else "its tokenizer puts no token of its own in front"
        there = at(moved, f"position {AT}")
        study.claim(
            "Data table", "The model's own first token draws the sink to where it is put",
            paper="fixed token at position 1, 2, 3 in training: 74, 69, 70 % there", number=there,
            found=f"at position {AT}, {at(moved)} at the first position; {at(f'{token} in front')} in front",
            agrees=why_not or there.above(0.5 * at(f"{token} in front").value),
        )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="gu2025", model=LANGUAGE_MODELS) as study:
        study.for_each(judge)
